"""`ilgnet view --svg`: boxes, edges and what is written in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from places import ROOT
from small_nets import SMALL_TEXT

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net, read_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import GraphError
from ilgnet_repro.web import layout
from ilgnet_repro.web.layout import place_boxes
from ilgnet_repro.web.net_graph import Drawing, _short, draw, svg

SVG = "{http://www.w3.org/2000/svg}"
# An element-wise sum of a value that ReLU replaces in place, read before it is replaced.
FORK = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 6 kernel_size: 2 } }
layer { name: "power" type: "Power" bottom: "conv" top: "power" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "sum" type: "Eltwise" bottom: "power" bottom: "conv" top: "sum" }
"""
WRONG = 'layer { name: "<b>&\\"" type: "Unheard" bottom: "data" top: "odd" }'


def drawn(text: str) -> Drawing:
    return draw(audit(parse_net(text)))


def test_a_box_per_layer_with_the_in_place_layers_on_its_top() -> None:
    boxes = [box.lines for box in drawn(SMALL_TEXT).boxes]
    assert boxes == [
        ("data (Input)", "1x3x9x7"),
        # 4 kernels of 3x3x3 and 4 biases; 4x7x5 outputs of 27 products.
        ("conv (Convolution)", "+ relu (ReLU)", "1x4x7x5", "112 parameters, 3.78k multiply-adds"),
        ("pool (Pooling)", "1x4x3x2"),
        ("ip (InnerProduct)", "1x5", "125 parameters, 120 multiply-adds"),
        ("prob (Softmax)", "1x5"),
    ]


def test_edges_name_the_value_that_is_read() -> None:
    assert [edge.blob for edge in drawn(FORK).edges] == ["data", "conv@conv", "power", "conv"]


@pytest.mark.parametrize("name", ["ilgnet", "googlenet", "alexnet", "squeezenet"])
def test_no_boxes_overlap_and_every_edge_goes_down(name: str) -> None:
    drawing = draw(audit(read_net(ROOT / "prototxt" / name / "deploy.prototxt")))
    for index, a in enumerate(drawing.boxes):
        assert a.x >= 0 and a.x + a.width <= drawing.width and a.y + a.height <= drawing.height
        for b in drawing.boxes[index + 1 :]:
            apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
            assert apart_x or a.y + a.height <= b.y or b.y + b.height <= a.y, (a.lines, b.lines)
    for edge in drawing.edges:
        points = edge.path.replace("M", " ").replace("C", " ").split()
        heights = [float(point.split(",")[1]) for point in points]
        assert heights == sorted(heights)


def test_a_long_edge_passes_beside_the_boxes_between_its_ends() -> None:
    found = place_boxes([(40.0, 10.0)] * 3, [(0, 1), (1, 2), (0, 2)])
    (x, y), (end_x, end_y) = found.paths[2][1:-1]
    assert x == end_x and abs(x - found.centres[1][0]) >= 20
    assert (y, end_y) == (found.centres[1][1] - 5, found.centres[1][1] + 5)


def test_a_net_too_large_to_draw_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_POINTS", 3)
    place_boxes([(1.0, 1.0)] * 3, [(0, 1), (1, 2)])
    with pytest.raises(GraphError, match=r"^the net is too large to draw: over 3 boxes and bends$"):
        place_boxes([(1.0, 1.0)] * 3, [(0, 1), (1, 2), (0, 2)])


def test_names_of_the_file_stay_text() -> None:
    root = ElementTree.fromstring(svg(drawn(FORK + WRONG)))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert '<b>&" (Unheard)' in texts and "not supported" in texts
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "style", "defs", "marker", "path", "g", "rect", "text",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0"), (999, "999"), (1000, "1k"), (60_965_224, "60.97M"), (2.5e12, "2.5T"), (7e15, "7000T")]
)  # fmt: skip
def test_counts_are_short(number: float, shown: str) -> None:
    assert _short(number).replace("e+03", "000") == shown


@pytest.mark.parametrize(
    "files", [["deploy.prototxt"], ["small.caffemodel"], ["small.caffemodel", "deploy.prototxt"]]
)
def test_the_command_draws_every_form(files: list[str], folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert main(["view", *files, "--svg", "net.svg"]) == 0
    # 112 + 125 parameters; 3780 + 120 multiply-adds.
    assert capsys.readouterr() == ("net.svg: 6 layers, 237 parameters, 3,900 multiply-adds per image\n", "")
    ElementTree.parse(folder / "net.svg")


INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }\n'
NOTED = {
    "an unsupported layer": (
        INPUT + 'layer { name: "odd" type: "Unheard" bottom: "x" top: "y" }', [],
        "odd (Unheard): layer type is unknown; register a class for it (docs/layers.md)",
    ),
    "an unknown field": (
        INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" relu_param { slope: 2 } }', [],
        "r (ReLU): field relu_param.slope (line 2, column 66) is unknown to Caffe and to this package; remove it, or "
        "ignore it with --ignore-field relu_param.slope if it does not affect "
        "the result",
    ),
    "an unknown field of the net": (
        "fog: 3\n" + INPUT, [],
        "net '': field fog (line 1, column 1) is unknown to Caffe and to this package; remove it, or ignore it with "
        "--ignore-field fog if it does not affect the result",
    ),
    "a shape that is needed": (
        'layer { name: "d" type: "Data" top: "x" data_param { source: "db" batch_size: 2 } }', [],
        "d (Data): give the shape of 'x'; it is known only from db (--shape x=N,C,H,W)",
    ),
    "an ignored value": (
        INPUT + 'layer { name: "p" type: "Pooling" bottom: "x" top: "y" pooling_param { kernel_size: 2 pool: AVG } }',
        ["--ignore-field", "pooling_param.pool"], "p: pooling_param.pool has its default MAX: AVG is ignored",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options", "note"), NOTED.values(), ids=NOTED)
def test_what_is_wrong_with_a_drawn_net_is_said(
    text: str, options: list[str], note: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    assert main(["view", str(tmp_path / "net.prototxt"), "--svg", str(tmp_path / "net.svg"), *options]) == 0
    assert capsys.readouterr().err == f"note: {note}\n"
    ElementTree.parse(tmp_path / "net.svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deploy.prototxt", "--svg", "deploy.prototxt"], "deploy.prototxt"),
        (["deploy.prototxt", "deploy.prototxt", "--svg", "a.svg"], "give one prototxt and one weights file"),
        (["gone.prototxt", "--svg", "a.svg"], "gone.prototxt"),
        (["deploy.prototxt", "--svg", "a.svg", "--port", "8001"], "--svg"),
    ],
    ids=["overwrites its input", "two prototxts", "absent", "a page too"],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(folder)
    assert main(["view", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "a.svg").exists()
