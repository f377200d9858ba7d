"""Names from files reach the terminal as text: no markup, no emoji, no control sequence, no extra line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.cli._console import add_row, make_console
from ilgnet_repro.cli.main import main
from ilgnet_repro.schema import caffe_pb2 as pb

# The text, and how it is shown.
TEXTS = {
    "markup": ("[red]x[/red]", "[red]x[/red]"),
    "a closing tag": ("[/x]", "[/x]"),
    "a link": ("[link=http://evil]x", "[link=http://evil]x"),
    "a backslash": ("x\\[bold]", "x\\[bold]"),
    "emoji": (":smile:", ":smile:"),
    "colour": ("\x1b[31mx", "\\x1b[31mx"),
    "title": ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
    "C1": ("\x9b31mx", "\\x9b31mx"),
    "a line": ("x\nproblem: y", "x\\nproblem: y"),
    "a return": ("x\rproblem: y", "x\\rproblem: y"),
    "NUL": ("x\0y", "x\\x00y"),
    "right to left": ("x\u202ey", "x\\u202ey"),
}


def write(folder: Path, name: str, scale: float = 1) -> None:
    """A net whose name, layer, blob and input all hold the text."""
    net = pb.NetParameter(name=f"net {name}")
    net.layer.add(name="in", type="Input", top=[f"i {name}"]).input_param.shape.add().dim.extend((1, 3))
    layer = net.layer.add(name=f"l {name}", type="InnerProduct", bottom=[f"i {name}"], top=[f"t {name}"])
    layer.inner_product_param.num_output = 2
    (folder / "n.prototxt").write_text(format_message(net))
    net.layer.add(name=f"extra {name}", type="InnerProduct", bottom=[f"i {name}"], top=["extra"])
    net.layer[-1].inner_product_param.num_output = 2  # in the weights only
    weights = [np.float32([[1, 2, 3], [4, 5, 6]]) * scale, np.float32([1, 2])]
    write_caffemodel(folder / "n.caffemodel", net, {f"l {name}": weights, f"extra {name}": weights})


@pytest.mark.parametrize(("text", "shown"), TEXTS.values(), ids=TEXTS)
def test_commands_show_names_as_text(text: str, shown: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    arguments = ["n.caffemodel", "--prototxt", "n.prototxt", "--to", "safetensors,onnx", "--verify"]
    assert main(["convert", *arguments]) == 0
    converted = "".join(capsys.readouterr())
    assert main(["audit", "n.prototxt", "n.caffemodel"]) == 0
    audited = "".join(capsys.readouterr())
    assert main(["compare", "n.safetensors", "n.onnx"]) == 0
    compared = "".join(capsys.readouterr())
    write(tmp_path, text, 2)
    assert main(["compare", "n.safetensors", "n.caffemodel", "--prototxt", "n.prototxt"]) == 1
    differing = "".join(capsys.readouterr())
    for output, prefixes in (
        (converted, ("net ", "t ", "extra ")),
        (audited, ("net ", "l ", "t ", "extra ")),
        (compared, ("t ", "i ")),
        (differing, ("t ", "the first is t ")),
    ):
        for prefix in prefixes:
            assert prefix + shown in output
        assert not [sign for sign in output if not sign.isprintable() and sign != "\n"]
        assert not [line for line in output.splitlines() if line.startswith("problem: y")]


def test_a_terminal_gets_only_the_commands_colours() -> None:
    from rich.table import Table

    stream = io.StringIO()
    console = make_console(stream, force_terminal=True, width=200, color_system="truecolor")
    table = Table(title="\x1b]0;title\x07")
    table.add_column("[bold]column")
    add_row(table, "[red]\x1b[31mcell\n:smile:")
    console.print(table)
    console.print("[red]line \x1b[2J")
    console.print("[red]ours[/]", markup=True)
    written = stream.getvalue()
    assert "\\x1b]0;title\\x07" in written
    assert "[red]\\x1b[31mcell\\n:smile:" in written
    assert "[red]line \\x1b[2J" in written
    assert "\x1b[31mours\x1b[0m" in written
    assert not {"\x1b]", "\x1b[2J", "\x07"} & {
        written[i : i + n] for i in range(len(written)) for n in (1, 2, 4)
    }
