"""Error messages: one line, printable, of bounded length, whatever a file's names hold."""

import pytest

from ilgnet_repro.errors import IlgnetError, LayerError, ParseError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IlgnetError("x: is no folder; make it"), "x: is no folder; make it"),
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


def test_a_long_message_keeps_its_ends() -> None:
    text = str(IlgnetError("start" + "x" * 5000 + "end"))
    assert len(text) < 1010
    assert text.startswith("start")
    assert text.endswith("end")
