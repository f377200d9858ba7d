"""`caffe.draw`: nodes, edges and labels of the graph, and images by Graphviz."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ilgnet_repro import pycaffe as caffe
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe import draw, plain_drawing
from ilgnet_repro.pycaffe import layers as L
from ilgnet_repro.pycaffe import params as P
from ilgnet_repro.pycaffe.plain_drawing import Edge, Node

NET = parse_net("""
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } data_param { batch_size: 6 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 2 }
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_h: 3 kernel_w: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" exclude { phase: TRAIN } }
""")
DOT = re.compile(r'^(\w+)(?: -> (\w+))? \[label="(.*?)"(?:,.*fillcolor="(#\w+)".*)?\];$')


def read(
    net: Any, rankdir: str = "LR", **options: Any
) -> tuple[dict[str, tuple[str, str]], list[tuple[str, str, str]]]:
    """Nodes (label and colour) by id, and edges (from, to, label), of the graph as text."""
    nodes, edges = {}, []
    for line in draw.get_pydot_graph(net, rankdir, **options).to_string().splitlines():
        found = DOT.match(line)
        if found and found[2]:
            edges.append((found[1], found[2], found[3]))
        elif found:
            nodes[found[1]] = (found[3], found[4])
    return nodes, edges


def test_every_layer_and_blob_is_a_node() -> None:
    nodes, edges = read(NET)
    assert sorted(label for label, _ in nodes.values()) == sorted(
        [
            *("data", "label", "conv", "pool", "ip", "acc"),
            r"data\n(Data)",
            r"conv\n(Convolution)\nkernel size: 3\nstride: 2\npad: 1",
            r"relu\n(ReLU)",
            r"pool\n(Pooling AVE)\nkernel size: 3x2\nstride: 1\npad: 0",
            r"ip\n(InnerProduct)",
            r"acc\n(Accuracy)",
        ]
    )
    colours = {label.partition("\\")[0]: colour for label, colour in nodes.values() if "(" in label}
    assert colours == {
        "data": "#6495ED", "conv": "#FF5050", "relu": "#90EE90", "pool": "#FF9900", "ip": "#CC33FF", "acc": "#6495ED",
    }  # fmt: skip
    shown = [(nodes[a][0].partition("\\")[0], nodes[b][0].partition("\\")[0], label) for a, b, label in edges]
    assert shown == [
        ("data", "data", "Batch 6"), ("data", "label", "Batch 6"), ("data", "conv", ""), ("conv", "conv", "4"),
        ("conv", "relu", ""), ("relu", "conv", ""), ("conv", "pool", ""), ("pool", "pool", ""), ("pool", "ip", ""),
        ("ip", "ip", "10"), ("ip", "acc", ""), ("label", "acc", ""), ("acc", "acc", ""),
    ]  # fmt: skip


def layers_of(net: Any, **options: Any) -> list[str]:
    return [label.partition("\\")[0] for label, _ in read(net, **options)[0].values() if "(" in label]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (None, ["data", "conv", "relu", "pool", "ip", "acc"]),
        (caffe.TRAIN, ["data", "conv", "relu", "pool", "ip"]),
        (caffe.TEST, ["conv", "relu", "pool", "ip", "acc"]),
    ],
    ids=["both", "train", "test"],
)
def test_phases(phase: int | None, expected: list[str]) -> None:
    assert layers_of(NET, phase=phase) == expected


def test_labels_on_request_and_down_the_page() -> None:
    assert all(label == "" for _, _, label in read(NET, label_edges=False)[1])
    labels = [label for label, _ in read(NET, "TB", display_lrm=True)[0].values()]
    assert "conv (Convolution) kernel size: 3 stride: 2 pad: 1 lr mult: 2.0, 1.0" in labels
    assert "relu (ReLU)" in labels


def test_nets_of_older_generations() -> None:
    v1 = parse_net('input: "x" input_dim: 1 input_dim: 2 input_dim: 4 input_dim: 3 '
                   'layers { name: "r" type: RELU bottom: "x" top: "y" }')  # fmt: skip
    assert layers_of(v1) == ["input", "r"]


def test_names_are_text_not_markup() -> None:
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 2]))
    n['"];evil->x["{a|b}<i>\\N\n'] = L.ReLU(n.data)
    text = draw.get_pydot_graph(n.to_proto(), "LR").to_string()
    assert r'node2 [label="\"];evil-\>x[\"\{a\|b\}\<i\>\\N\\n\n(ReLU)"' in text
    image = draw.draw_net(n.to_proto(), "LR", "svg").decode()
    assert ">&quot;];evil&#45;&gt;x[&quot;{a|b}&lt;i&gt;\\N\\n</text>" in image
    assert "<i>" not in image


def test_images() -> None:
    image = draw.draw_net(NET, "LR")
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape[1] > 3 * pixels.shape[0]  # from left to right
    assert draw.draw_net(NET, "TB", "svg", phase=caffe.TEST).count(b'<g id="node') == 11
    assert draw.draw_net(NET, "LR", "raw").startswith(b'digraph "small" {')


def test_files(tmp_path: Path) -> None:
    draw.draw_net_to_file(NET, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes() == draw.draw_net(NET, "LR", "png")
    draw.draw_net_to_file(NET, tmp_path / "a.raw", "BT", caffe.TRAIN, True)
    assert b"rankdir=BT" in (tmp_path / "a.raw").read_bytes()


def test_the_tables() -> None:
    assert draw.get_pooling_types_dict() == {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}
    assert draw.choose_color_by_layertype("Deconvolution") == "#FF5050"
    assert draw.get_layer_lr_mult(NET.layer[1]) == (2, 1)
    assert draw.get_layer_lr_mult(NET.layer[2]) == (0, 0)
    assert draw.get_edge_label(NET.layer[4]) == "10"
    assert draw.get_layer_label(NET.layer[2], "TB") == "relu (ReLU)"
    assert P.Pooling.AVE == 1


@pytest.mark.parametrize(
    ("given", "shown", "hidden"),
    [
        ([], "Data", "lr mult"),
        (["--rankdir", "TB", "--phase", "TEST", "--display_lrm"], "lr mult: 2.0, 1.0", "(Data)"),
    ],
    ids=["as it is", "all flags"],
)
def test_the_command(
    given: list[str], shown: str, hidden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "net.prototxt", tmp_path / "net.raw"
    source.write_text(format_message(NET))
    assert main(["caffe", "draw_net", str(source), str(target), *given]) == 0
    assert capsys.readouterr().out == f"Drawing net to {target}\n"
    text = target.read_text()
    assert shown in text and hidden not in text
    assert main(["caffe", "draw_net", str(source), str(source)]) == 1
    assert "is the input" in capsys.readouterr().err


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)


def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "_PROGRAMS", ("no-such-program",))


@pytest.mark.parametrize("without", [absent, no_program], ids=["pydot", "Graphviz"])
def test_without_them_matplotlib_draws(
    without: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text in SVG: every label, each edge's, none as markup or as TeX; and the same image each time."""
    without(monkeypatch)
    image = draw.draw_net(NET, "LR", "png", phase=caffe.TRAIN)
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape[1] > 2 * pixels.shape[0]
    assert {tuple(colour) for colour in pixels.reshape(-1, 3)} >= {(0x50, 0x50, 0xFF), (0xE0, 0xE0, 0xE0)}
    down = cv2.imdecode(np.frombuffer(draw.draw_net(NET, "TB"), np.uint8), cv2.IMREAD_COLOR)
    assert down.shape[0] > down.shape[1]
    n = caffe.NetSpec()
    n["$a_b$ <i>"] = L.Input(shape=dict(dim=[1, 2]))
    text = draw.draw_net(n.to_proto(), "LR", "svg").decode()
    assert "<i>" not in text and "$a_b$ &lt;i&gt;" in text


def test_matplotlib_places_layers_after_what_they_read() -> None:
    nodes = [Node(name, "#fff", name.isupper()) for name in ("A", "x", "y", "B", "R", "z")]
    edges = [
        Edge(*pair, "") for pair in ((0, 1), (0, 2), (1, 3), (3, 5), (5, 4), (4, 5))
    ]  # R is in place on z
    assert plain_drawing._places(nodes, edges) == [(0, 0), (1, 0), (1, 1), (2, 0), (4, 0), (3, 0)]


REFUSED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None] | None, Callable[[], Any], str]] = {
    "a graph without pydot": (absent, lambda: draw.get_pydot_graph(NET, "LR"), "get_pydot_graph needs pydot ("),
    "a format of Graphviz without it": (
        no_program, lambda: draw.draw_net(NET, "LR", "dot"),
        "image format 'dot' needs Graphviz; without it give jpg, jpeg, pdf, png or svg"),
    "a direction": (None, lambda: draw.draw_net(NET, "UP"), "rankdir 'UP' is not LR, RL, TB or BT"),
    "a format": (None, lambda: draw.draw_net(NET, "LR", "no such"), "image format 'no such' is not the name of one"),
    "an unknown format": (None, lambda: draw.draw_net(NET, "LR", "xyz"), "Graphviz cannot write xyz; give png or svg"),
    "no suffix": (None, lambda: draw.draw_net_to_file(NET, "net"), "image format '' is not the name of one; give png"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    prepare, work, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    if prepare:
        prepare(monkeypatch)
    with pytest.raises(IlgnetError, match=re.escape(message)):
        work()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""  # pydot prints what Graphviz says
