"""Error messages: one line, printable, of bounded length, whatever a file's names hold."""

import subprocess
import sys

import pytest

from ilgnet_repro.cli._options import for_command
from ilgnet_repro.errors import IlgnetError, LayerError, ParseError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IlgnetError("x: is not a folder; make it"), "x: is not a folder; make it"),
        (LayerError("pool1", "Pooling", "pad 3 is too large"), "pool1 (Pooling): pad 3 is too large"),
        (LayerError("a\nb", "T\x85", "bad"), "a\\nb (T\\x85): bad"),
        (ParseError("bad", file="n.prototxt", line=3, column=7), "n.prototxt:3:7: bad"),
        (ParseError("bad", file="n.prototxt"), "n.prototxt: bad"),
        (IlgnetError("bücher 图.jpg: absent"), "bücher 图.jpg: absent"),
    ],
    ids=["plain", "layer", "control characters", "position", "no position", "letters of any script"],
)
def test_messages(error, expected) -> None:
    assert str(error) == expected


def test_a_long_message_keeps_its_start_and_end() -> None:
    text = str(IlgnetError("start" + "x" * 5000 + "end"))
    assert len(text) < 1010
    assert text.startswith("start")
    assert text.endswith("end")


@pytest.mark.parametrize(
    ("error", "where", "what", "remedy"),
    [
        (IlgnetError("x: is not a folder; make it"), "x", "is not a folder", "make it"),
        (LayerError("a: b", "T", "pad: 3; 4; use 2"), "a: b (T)", "pad: 3; 4", "use 2"),
        (IlgnetError("nothing to do"), "", "nothing to do", ""),
        (ParseError("bad; fix it", file="n.prototxt", line=3, column=7), "n.prototxt:3:7", "bad", "fix it"),
    ],
    ids=["a file", "a layer", "no parts", "a place in a file"],
)
def test_parts(error, where, what, remedy) -> None:
    assert (error.where, error.what, error.remedy) == (where, what, remedy)


@pytest.mark.parametrize(
    ("option", "message", "expected"),
    [
        ("precision", 'w: too large for precision="int8"; use another', "w: too large for --precision int8; use another"),
        ("out", "d: no folder; give another as out=", "d: no folder; give another as --out"),
        ("dynamic_size", "fits one size; leave out dynamic_size=True", "fits one size; leave out --dynamic-size"),
        (
            "input_shapes", 'size unknown; give input_shapes={"data": (N, 3, H, W)}',
            "size unknown; give --shape data=N,3,H,W",
        ),
        ("allow_missing", "allow_missing=['a', 'b'] draws them", "--allow-missing a, b draws them"),
        ("", 'crop="bvlc" is a file', 'crop="bvlc" is a file'),
        ("out", "out.png: about=3", "out.png: about=3"),
    ],
    ids=["a value", "no value", "a switch", "a shape", "a list", "no option", "no keyword"],
)  # fmt: skip
def test_a_command_spells_the_option_as_its_flag(option, message, expected) -> None:
    assert for_command(IlgnetError(message, option=option)) == expected


def test_every_error_is_a_public_name() -> None:
    """In a child process: another test may have imported the module already."""
    program = (
        "import sys, ilgnet_repro as ir\n"
        "assert ir.errors.IlgnetError is ir.IlgnetError\n"
        "found = {name for name, kind in vars(ir.errors).items()\n"
        "         if isinstance(kind, type) and issubclass(kind, Exception)}\n"
        "assert found == {name for name in ir.__all__ if name.endswith('Error')}, found\n"
        "assert all(issubclass(getattr(ir, name), ir.IlgnetError) for name in found)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
