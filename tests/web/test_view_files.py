"""`open_view`: every saved form of a net as rows, their values, and what is refused."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from places import ROOT
from safetensors.torch import save_file
from small_nets import SMALL_TEXT, net_of, write_weights
from torch import nn

import ilgnet_repro as ir
from ilgnet_repro.about import About
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import GraphError, IlgnetError
from ilgnet_repro.runtime.model import Model
from ilgnet_repro.runtime.pt2_file import read_pt2
from ilgnet_repro.runtime.seeded_inputs import draw_inputs
from ilgnet_repro.web.module_rows import module_rows
from ilgnet_repro.web.net_graph import draw
from ilgnet_repro.web.onnx_rows import onnx_rows
from ilgnet_repro.web.pt2_rows import pt2_rows
from ilgnet_repro.web.rows import Blob, Row
from ilgnet_repro.web.view_files import View, open_view
from ilgnet_repro.web.view_values import (
    CaffeValues,
    ModelValues,
    channel_images,
    show_blob,
    show_weights,
    statistics,
)

IMAGE = np.random.default_rng(6).integers(0, 256, (11, 8, 3), np.uint8)
LAYERS = ["data", "conv", "relu", "pool", "ip", "prob"]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small net in every form, and its ONNX file without metadata, as another program would write it."""
    folder = tmp_path_factory.mktemp("forms")
    write_weights(folder / "small.caffemodel")
    (folder / "deploy.prototxt").write_text(SMALL_TEXT)
    ir.convert(folder / "small.caffemodel", to=("safetensors", "onnx", "python"))
    model = onnx.load(folder / "small.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "foreign.onnx")
    return folder


def opened(folder: Path, name: str) -> View:
    is_text = name.endswith(".prototxt")
    return open_view(str(folder / name) if is_text else None, None if is_text else str(folder / name))


CAFFE_FORMS = (
    "deploy.prototxt", "small.caffemodel", "small.safetensors", "small.onnx", "small.py",
    "small.weights.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", CAFFE_FORMS)
def test_a_form_that_holds_the_caffe_net_has_its_layers(forms: Path, name: str) -> None:
    rows = opened(forms, name).rows
    assert [row.name for row in rows.layers] == LAYERS
    # 4 kernels of 3x3x3, 4 biases, 5 rows of 24, 5 biases; 4x7x5 outputs of 27 products, 5 of 24.
    assert (rows.parameters, rows.multiply_adds) == (4 * 28 + 5 * 25, 140 * 27 + 5 * 24)
    conv = rows.layers[1]
    assert (conv.reads, conv.writes, conv.bottoms, conv.tops) == (
        ("data",), ("conv@conv",), ((1, 3, 9, 7),), ((1, 4, 7, 5),)
    )  # fmt: skip
    assert conv.blobs == (Blob("weight", (4, 3, 3, 3)), Blob("bias", (4,)))
    assert "num_output: 4" in conv.fields and "relu" not in conv.fields


def test_an_onnx_file_of_others_has_its_own_nodes(forms: Path) -> None:
    rows = opened(forms, "foreign.onnx").rows
    assert [row.type for row in rows.layers] == [
        "input", "Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Softmax",
    ]  # fmt: skip
    assert (rows.parameters, rows.multiply_adds) == (4 * 28 + 5 * 25, 140 * 27 + 5 * 24)
    assert [row.tops for row in rows.layers[1:4]] == [
        ((None, 4, 7, 5),), ((None, 4, 7, 5),), ((None, 4, 3, 2),)
    ]  # fmt: skip
    assert rows.form.startswith("ONNX, opset ai.onnx ")


VALUED = ("small.caffemodel", "small.safetensors", "small.onnx", "foreign.onnx")


@pytest.mark.parametrize("name", VALUED)
@pytest.mark.parametrize("image", [None, IMAGE], ids=["seeded", "an image"])
def test_values_are_those_of_the_net(forms: Path, name: str, image: np.ndarray | None) -> None:
    net = ir.load(forms / "small.caffemodel")
    if image is None:
        given = draw_inputs(net.plan, net.graph, ("data",))["data"]
    else:  # nothing says how its images are prepared
        given = torch.nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(), (9, 7), mode="bilinear"
        )
    expected = net({"data": given}, blobs=("pool",))["pool"].detach().numpy()
    view = opened(forms, name)
    row = next(row for row in view.rows.layers if "pool" in row.writes)
    found = show_blob(view.values(), row, "pool", image)
    tolerance = 1e-5 if image is None else 0.02  # another rounding of the resized image
    assert found["shape"] == [1, 4, 3, 2]
    for key, value in (("min", expected.min()), ("max", expected.max()), ("mean", expected.mean())):
        assert found[key] == pytest.approx(
            value, rel=tolerance, abs=tolerance * float(np.abs(expected).max())
        ), key
    assert len(found["channels"]) == 4
    assert ("seed 7" in found["from"]) == (image is None)
    weights = [one for row in view.rows.layers for one in show_weights(view.values(), row)]
    kernel = net.params["conv"][0].detach().numpy()
    held = next(one for one in weights if one["shape"] == [4, 3, 3, 3])
    assert held["deviation"] == pytest.approx(kernel.std(), rel=1e-5)


def test_an_exported_program_holds_the_net_and_its_weights() -> None:
    path = ROOT / "tests" / "compat" / "files" / "plain" / "photo.pt2"
    if not path.is_file():
        pytest.skip("tests/compat is not in this copy")
    view = open_view(None, str(path))
    same = open_view(None, str(path.with_suffix(".safetensors")))
    assert [row.name for row in view.rows.layers] == [row.name for row in same.rows.layers]
    assert (view.rows.parameters, view.rows.multiply_adds) == (163, 1824)
    for row in view.rows.layers[1:]:
        assert show_blob(view.values(), row, row.writes[0], None) == show_blob(
            same.values(), row, row.writes[0], None
        )
        assert show_weights(view.values(), row) == show_weights(same.values(), row)
    own = pt2_rows(read_pt2(path), "photo.pt2")  # as it is drawn without the Caffe net
    conv = next(row for row in own.layers if row.type.startswith("conv2d"))
    assert (conv.reads, conv.tops[0][1:], conv.parameters) == (("data",), (4, 4, 4), 112)
    assert (own.parameters, own.multiply_adds) == (163, 4 * 16 * 27 + 2 * 16)  # without Scale's


def test_a_net_without_weights_says_so(forms: Path) -> None:
    view = opened(forms, "deploy.prototxt")
    assert view.why == "a prototxt has no weights, so there are no values; give the weights file beside it"
    with pytest.raises(GraphError, match="a prototxt has no weights"):
        view.values()


def test_weights_that_do_not_fit_are_drawn_with_the_reason(forms: Path, tmp_path: Path) -> None:
    (tmp_path / "wide.prototxt").write_text(SMALL_TEXT.replace("num_output: 5", "num_output: 6"))
    view = open_view(str(tmp_path / "wide.prototxt"), str(forms / "small.caffemodel"))
    assert [row.name for row in view.rows.layers] == LAYERS
    assert view.why == "layer ip, blob 0 is 5x24 in the file and 6x24 in the net"
    assert view.why in view.rows.notes


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("small.onnx", {"phase": "TRAIN"}, "holds its own net, to which phase= does not apply; leave it out"),
        ("foreign.onnx", {"input_shapes": {"data": (2, 3, 9, 7)}}, "to which input_shapes= does not apply"),
        ("alone.py", {}, "alone.py: is Python source, which is not run; give alone.weights.safetensors"),
        ("cut.onnx", {}, "cut.onnx: is not an ONNX file"),
        ("cut.safetensors", {}, "is not a complete safetensors file"),
        ("image.png", {}, "image.png: is a PNG image, not a net to draw; give a prototxt, or a .caffemodel"),
        ("weights.pt", {}, "pickles are never read; give the Caffe file"),
        ("plain.safetensors", {}, "holds no Caffe net; only files written by `ilgnet convert` can be loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(("x", "y", "2", "s", "g", "t")) else None,
)  # fmt: skip
def test_refused_in_one_line(forms: Path, tmp_path: Path, name: str, options, message: str) -> None:
    form = name.partition(".")[2]
    path = forms / name if (forms / name).exists() else tmp_path / name
    if name.startswith("cut"):
        path.write_bytes((forms / f"small.{form}").read_bytes()[:700])
    elif name == "alone.py":
        path.write_text("import torch\n\n\nclass Net(torch.nn.Module):\n    pass\n")
    elif name == "image.png":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    elif name == "weights.pt":
        torch.save({"a": torch.zeros(3)}, path)
    elif name == "plain.safetensors":
        save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(IlgnetError) as error:
        open_view(None, str(path), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["small.onnx", "foreign.onnx", "small.py"])
def test_the_command_draws_them(forms: Path, name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(forms / name), "--svg", "net.svg"]) == 0
    assert capsys.readouterr().out.endswith("layers, 237 parameters, 3,900 multiply-adds per image\n")


# ---------------------------------------------------------------------------------------- ONNX graphs


def graph_of(nodes, inputs, outputs, weights=()) -> onnx.ModelProto:
    made = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()]
        for ends in (inputs, outputs)
    ]
    held = [
        helper.make_tensor(name, kind, value.shape, value.ravel().tolist()) for name, kind, value in weights
    ]
    return helper.make_model(helper.make_graph(nodes, "g", *made, held))


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    ("node", "weight", "inputs", "products"),
    [
        # 2 x 6 x 4 x 5 outputs; each sums 3/3 channels of 2 x 3.
        (helper.make_node("Conv", ["x", "w"], ["y"], group=3), (6, 1, 2, 3), (2, 3, 5, 7), 2 * 6 * 4 * 5 * 6),
        # Each of 2 x 4 x 3 x 5 values goes to 6 channels of 2 x 3.
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), (4, 6, 2, 3), (2, 4, 3, 5), 2 * 4 * 3 * 5 * 36),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (5, 7), (2, 7), 2 * 5 * 7),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (7, 5), (7, 2), 2 * 5 * 7),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (4, 6), (2, 3, 4), 2 * 3 * 6 * 4),
        (helper.make_node("Add", ["x", "w"], ["y"]), (4,), (2, 3, 4), 0),
    ],
    ids=["grouped Conv", "ConvTranspose", "Gemm transB", "Gemm transA", "MatMul", "Add"],
)  # fmt: skip
def test_products_of_onnx_operators(node, weight, inputs, products: int) -> None:
    model = graph_of([node], {"x": inputs}, {"y": None}, [("w", FLOAT, np.zeros(weight, np.float32))])
    row = onnx_rows(model, Path("net.onnx")).layers[-1]
    assert (row.multiply_adds, row.parameters) == (products, math.prod(weight))
    assert row.name == "y"  # a node without a name has that of its output


def test_graphs_inside_shared_weights_constants_and_hostile_names() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"])], "then", [], [helper.make_tensor_value_info("z", FLOAT, None)]
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", FLOAT, (1,), [1.0])),
        helper.make_node("Mul", ["x", "w"], ["<script>\x1b[31m"], name="<b>&\n"),
        helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner),
        helper.make_node("Reshape", ["out", "to"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["y2"], domain="odd.domain"),
        helper.make_node("Identity", ["later"], ["loop"]),
        helper.make_node("Identity", ["loop"], ["later"]),
    ]
    weights = [("w", FLOAT, np.zeros((3, 4), np.float32)), ("to", INT64, np.array([4, 3]))]
    model = graph_of(nodes, {"x": (3, 4), "yes": ()}, {"y2": None}, weights)
    rows = onnx_rows(model, Path("net.onnx"))
    by_type = {row.type: row for row in rows.layers}
    assert "Constant" not in by_type
    assert by_type["If"].reads == ("yes", "x")  # x is read by the graphs inside
    assert by_type["If"].parameters == 12 and by_type["Mul"].parameters == 12
    assert rows.parameters == 12  # w once; a shape is no parameter
    assert by_type["odd.domain.Add"].reads == ("y",)
    drawing = draw(rows)  # of a cycle only the edge to a later node is drawn
    assert [edge.blob for edge in drawing.edges] == ["x", "yes", "x", "out", "y", "loop"]


# ---------------------------------------------------------------------------------------- torch models


class Small(Model):
    """Two branches, a module that is called twice, one that never is, and operators between them."""

    name = "small"
    least_side = 3

    def __init__(self) -> None:
        super().__init__(About(), (3, 6, 7), {"score": 5})
        self.conv = nn.Conv2d(3, 4, (3, 2), bias=False)
        self.twice = nn.Conv2d(4, 4, 1)
        self.drop = nn.Dropout(0.5)
        self.dense = nn.Linear(4, 5)
        self.idle = nn.Linear(9, 9)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.conv(x)
        second = self.twice(torch.relu(self.twice(first)))
        return {"score": self.dense(self.drop((first + second).mean((2, 3))))}


def test_rows_of_a_model_are_its_modules_and_the_operators_between_them() -> None:
    rows = module_rows(Small().eval(), "data", (1, 3, 6, 7))
    found = [(row.name, row.type, row.reads, row.tops[0], row.parameters, row.multiply_adds) for row in rows]
    wide = (1, 4, 4, 6)
    assert found == [
        ("data", "input", (), (1, 3, 6, 7), 0, 0),
        ("conv", "Conv2d", ("data",), wide, 4 * 3 * 6, 96 * 18),
        ("twice", "Conv2d", ("conv",), wide, 20, 96 * 4),
        ("relu", "relu", ("twice",), wide, 0, 0),
        ("twice#2", "Conv2d", ("relu",), wide, 0, 96 * 4),  # its weights are counted once
        ("add", "add", ("conv", "twice#2"), wide, 0, 0),
        ("mean", "mean", ("add",), (1, 4), 0, 0),
        ("drop", "Dropout", ("mean",), (1, 4), 0, 0),
        ("dense", "Linear", ("drop",), (1, 5), 25, 20),
    ]


def test_values_of_a_model_are_those_of_its_modules() -> None:
    model = Small().eval()
    values = ModelValues(model)
    rows = {row.name: row for row in module_rows(model, "data", (1, 3, 6, 7))}
    given, _ = values.blob(rows["data"], "data", None)
    with torch.no_grad():
        first = model.conv(torch.from_numpy(given))
        second = model.twice(torch.relu(model.twice(first)))
    for name, expected in (("conv", first), ("twice#2", second), ("add", first + second)):
        np.testing.assert_allclose(values.blob(rows[name], name, None)[0], expected.numpy(), rtol=1e-5)
    assert {name: value.shape for name, value in values.weights(rows["twice#2"]).items()} == {
        "weight": (4, 4, 1, 1), "bias": (4,)
    }  # fmt: skip
    assert values.weights(rows["add"]) == {}


# ---------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "values",
    [[3.0, 0.0, -1.5, 0.0, 7.25], [math.nan, 1.0, math.inf, 0.0, -math.inf], [2.0], [2.0, 2.0], [math.nan], []],
    ids=["plain", "not finite", "one", "equal", "only NaN", "empty"],
)  # fmt: skip
@pytest.mark.parametrize("piece", [2, 1 << 20], ids=["in pieces", "at once"])
def test_statistics_are_those_of_a_slow_sum(values: list[float], piece: int, monkeypatch) -> None:
    monkeypatch.setattr("ilgnet_repro.web.view_values.PIECE", piece)
    found = statistics(np.array(values, np.float32))
    finite = [value for value in values if math.isfinite(value)]
    mean = sum(finite) / len(finite) if finite else None
    spread = math.sqrt(sum((value - mean) ** 2 for value in finite) / len(finite)) if finite else None
    assert found["count"] == len(values) and found["shape"] == [len(values)]
    assert found["nan"] == sum(map(math.isnan, values)) and found["infinite"] == sum(map(math.isinf, values))
    assert found["zeros"] == (values.count(0.0) / len(values) if values else None)
    assert (found["min"], found["max"]) == (min(finite, default=None), max(finite, default=None))
    assert found["mean"] == pytest.approx(mean) and found["deviation"] == pytest.approx(spread)
    assert sum(found["histogram"]) == len(finite)


def test_bins_count_the_values_between_their_ends() -> None:
    found = statistics(np.arange(48, dtype=np.float32))  # 24 bins of two values
    assert found["histogram"] == [2] * 24


def test_channels_are_the_first_planes_in_common_grey() -> None:
    values = np.stack([np.full((3, 2), float(k)) for k in range(14)])[None]
    values[0, 0, 0, 0] = math.nan
    images = channel_images(values)
    assert [(one["height"], one["width"]) for one in images] == [(3, 2)] * 12
    grey = [base64.b64decode(one["pixels"]) for one in images]
    assert grey[0] == bytes(6) and grey[11] == bytes([255] * 6) and grey[1] == bytes([round(255 / 11)] * 6)
    large = channel_images(np.zeros((1, 1, 200, 65), np.float32))
    assert (large[0]["height"], large[0]["width"]) == (50, 33)
    assert channel_images(np.zeros((1, 5), np.float32)) == channel_images(np.zeros((1, 5, 1, 1))) == []


def test_a_value_that_is_not_finite_is_counted() -> None:
    net = net_of(SMALL_TEXT)
    with torch.no_grad():
        net.params["conv"][1][2] = math.nan
    values, row = CaffeValues(net), Row("conv", "Convolution", blobs=(Blob("weight"), Blob("bias")))
    found = show_blob(values, row, "conv@conv", None)
    assert (found["nan"], found["count"]) == (35, 140)
    assert [one["nan"] for one in show_weights(values, row)] == [0, 1]
