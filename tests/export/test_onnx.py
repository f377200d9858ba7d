"""ONNX files: one file or two, streamed, batch and size open, weights shared, no file left over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_nets import FULLY_CONVOLUTIONAL, SHARED_TEXT, SMALL_TEXT, net_of, write_weights

import ilgnet_repro as ir
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export import onnx_file
from ilgnet_repro.export.onnx_graph import build_onnx, plan_onnx
from ilgnet_repro.runtime.onnx_net import open_session


def run(model: onnx.ModelProto | Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = open_session(model if isinstance(model, Path) else model.SerializeToString())
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def drawn(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------- the file


def test_the_streamed_file_equals_the_model_and_passes_the_checker(folder) -> None:
    ir.convert(folder / "small.caffemodel", to=("onnx",), verify=True)
    path = folder / "small.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    net = ir.load_net(folder / "deploy.prototxt", folder / "small.caffemodel")
    expected = build_onnx(net, metadata={entry.key: entry.value for entry in model.metadata_props})
    assert model.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert {entry.name for entry in model.graph.initializer} == {
        "conv.weight",
        "conv.bias",
        "ip.weight",
        "ip.bias",
    }
    assert [name for node in model.graph.node for name in node.output][-1] == "prob"
    first = path.read_bytes()
    ir.convert(folder / "small.caffemodel", to=("onnx",))
    assert path.read_bytes() == first


def test_metadata_is_that_of_the_safetensors_file(folder) -> None:
    from safetensors import safe_open

    ir.convert(folder / "small.caffemodel", to=("onnx", "safetensors"), sha256=True)
    model = onnx.load(str(folder / "small.onnx"))
    with safe_open(folder / "small.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert {entry.key: entry.value for entry in model.metadata_props} == metadata
    assert len(json.loads(metadata["source"])["sha256"]) == 64


def test_past_the_limit_weights_go_to_a_second_file(folder, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "SINGLE_FILE_LIMIT", 1000)
    report = ir.convert(folder / "small.caffemodel", to=("onnx",), verify=True)
    assert [Path(entry.path).name for entry in report.written] == ["small.onnx", "small.onnx.data"]
    model = onnx.load(str(folder / "small.onnx"), load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer
    ]
    assert [int(place["offset"]) % onnx_file.PAGE for place in places] == [0] * 4
    assert {place["location"] for place in places} == {"small.onnx.data"}
    onnx.checker.check_model(str(folder / "small.onnx"), full_check=True)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_open(batch: int) -> None:
    net = net_of(SMALL_TEXT)
    x = drawn(batch, 3, 9, 7)
    np.testing.assert_allclose(
        run(build_onnx(net), {"data": x})["prob"], net(data=x)["prob"].detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_shared_weights_are_stored_once() -> None:
    net = net_of(SHARED_TEXT)
    model = build_onnx(net)
    assert [entry.name for entry in model.graph.initializer] == ["a.weight"]
    x = drawn(2, 3)
    np.testing.assert_allclose(
        run(model, {"x": x})["b"], net(x=x)["b"].detach().numpy(), rtol=1e-4, atol=1e-5
    )


PASSED_ON = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "a" type: "AbsVal" bottom: "x" top: "a" }
layer { name: "d" type: "Dropout" bottom: "a" top: "a" }
layer { name: "s" type: "Split" bottom: "a" top: "s1" top: "s2" }
layer { name: "e" type: "Exp" bottom: "s1" top: "e" }
%s
"""


@pytest.mark.parametrize(
    ("rest", "operators"),
    [
        ('layer { name: "q" type: "Silence" bottom: "s2" }', ["Abs", "Exp"]),
        ("", ["Abs", "Exp"]),  # s2 is an output and takes the value's name; s1 reads the same value
    ],
    ids=["no one reads it", "an output"],
)
def test_layers_that_do_nothing_add_no_node(rest: str, operators: list[str]) -> None:
    net = net_of(PASSED_ON % rest)
    model = build_onnx(net)
    assert [node.op_type for node in model.graph.node] == operators
    x = drawn(2, 3)
    found = run(model, {"x": x})
    assert set(found) == set(net.outputs)
    for blob, value in net(x=x).items():
        np.testing.assert_allclose(found[blob], value.numpy(), rtol=1e-5)


def test_an_output_that_is_an_input_keeps_its_name() -> None:
    net = net_of(PASSED_ON % 'layer { name: "t" type: "Split" bottom: "x" top: "copy" }')
    x = drawn(2, 3)
    np.testing.assert_array_equal(run(build_onnx(net), {"x": x})["copy"], x)


# ---------------------------------------------------------------------- any size


@pytest.mark.parametrize("size", [(21, 26), (40, 33), (13, 50)], ids=["its own", "larger", "narrow"])
def test_a_net_of_any_size(size: tuple[int, int]) -> None:
    net = net_of(FULLY_CONVOLUTIONAL)
    model = build_onnx(net, dynamic_size=True)
    onnx.checker.check_model(model, full_check=True)
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", 3, "H", "W"]
    x = drawn(2, 3, *size)
    found = run(model, {"data": x})
    for blob, value in net(data=x).items():
        np.testing.assert_allclose(found[blob], value.detach().numpy(), rtol=1e-4, atol=1e-5)


NEEDS_SIZE = [
    ("dense", SMALL_TEXT, "ip (InnerProduct): its weights fit one size of image only; export without dynamic_size=True"),
    (
        "no image", SHARED_TEXT, "net 'shared': no input is an image (N, C, H, W); drop dynamic_size=True",
    ),
    (
        "lengths of the image",
        FULLY_CONVOLUTIONAL + 'layer { name: "spp" type: "SPP" bottom: "pool" top: "spp" spp_param { pyramid_height: 2 } }',
        "spp (SPP): its ONNX nodes hold the size; export without dynamic_size=True",
    ),
    (
        "a stated length",
        FULLY_CONVOLUTIONAL + 'layer { name: "flat" type: "Reshape" bottom: "up" top: "flat" reshape_param { '
        "shape { dim: 0 dim: 2 dim: -1 dim: 28 } } }",
        "flat (Reshape): ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"), [row[1:] for row in NEEDS_SIZE], ids=[row[0] for row in NEEDS_SIZE]
)
def test_a_layer_that_needs_a_fixed_size_is_named(text: str, message: str) -> None:
    with pytest.raises(IlgnetError) as caught:
        build_onnx(net_of(text), dynamic_size=True)
    assert str(caught.value).startswith(message)


def test_a_layer_whose_nodes_fix_the_size_is_named(monkeypatch) -> None:
    from ilgnet_repro.layers.activation import ReLU
    from ilgnet_repro.layers.support.base import integers

    def baked(self, graph, x):
        return [graph.node("Reshape", [x, graph.constant(integers(-1, *graph.shape(x)[1:]))])]

    monkeypatch.setattr(ReLU, "onnx", baked)
    with pytest.raises(IlgnetError, match=r"^relu \(ReLU\): its ONNX nodes hold the size; export without"):
        build_onnx(net_of(FULLY_CONVOLUTIONAL), dynamic_size=True)


# ---------------------------------------------------------------------- LRN written out


@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (3, 0.6)], ids=["AlexNet's", "another power"])
def test_fast_lrn_gives_the_same_values(size: int, beta: float) -> None:
    net = net_of(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 7 dim: 4 dim: 5 } } }'
        f'layer {{ name: "n" type: "LRN" bottom: "x" top: "n" lrn_param {{ local_size: {size} alpha: 0.3 '
        f"beta: {beta} k: 2 }} }}"
    )
    x = drawn(3, 7, 4, 5) * 5
    model = plan_onnx(net, fast_lrn=True).proto()
    assert "LRN" not in {node.op_type for node in model.graph.node}
    assert all(node.name.startswith("n:") for node in model.graph.node)
    assert model.graph.node[-1].output[0] == "n"
    assert [node.op_type for node in build_onnx(net).graph.node] == ["LRN", "Mul"]  # k is taken out of it
    np.testing.assert_allclose(run(model, {"x": x})["n"], net(x=x)["n"].numpy(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- ILGNet, narrow, and refusals


OPTIONS_REFUSED = [
    ("preprocessing", ("pt2",), {"with_preprocessing": True}, "with_preprocessing= is for onnx files, not pt2"),
    ("precision", ("onnx", "python"), {"precision": "int8"}, "precision= is for safetensors and onnx files, not"),
    ("size", ("safetensors",), {"dynamic_size": True}, "dynamic_size= is for onnx and pt2 files, not safetensors"),
    ("lrn", ("caffemodel",), {"fast_lrn": True}, "fast_lrn= is for onnx files, not caffemodel"),
    ("unknown precision", ("onnx",), {"precision": "int4"}, "precision='int4': choose one of float32, float16, "),
    ("both", ("onnx",), {"with_preprocessing": True, "dynamic_size": True}, "dynamic_size=True: the preprocessing resizes"),
    ("order", ("onnx",), {"with_preprocessing": True, "input_order": "RBG"}, "net 'small': its preprocessing is unknown"),
    ("dense", ("onnx",), {"dynamic_size": True}, "ip (InnerProduct): its weights fit one size"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [row[1:] for row in OPTIONS_REFUSED],
    ids=[row[0] for row in OPTIONS_REFUSED],
)
def test_unsupported_options_are_refused_without_leaving_files(folder, to, options, message) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(IlgnetError) as caught:
        ir.convert(folder / "small.caffemodel", to=to, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before


UNWRITABLE = SMALL_TEXT.replace('type: "ReLU" bottom: "conv" top: "conv"',
                                'type: "Dropout" bottom: "conv" top: "conv"')  # fmt: skip


def test_an_operator_onnx_lacks_leaves_no_file(tmp_path) -> None:
    write_weights(tmp_path / "t.caffemodel", UNWRITABLE)
    (tmp_path / "t.prototxt").write_text(UNWRITABLE)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(
        IlgnetError, match=r"^relu \(Dropout\): cannot be written as ONNX: it draws random numbers"
    ):
        ir.convert(tmp_path / "t.caffemodel", to=("safetensors", "onnx"), phase="TRAIN")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_missing_runtime_is_reported(folder, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(IlgnetError, match=r"^ONNX Runtime is not installed.*ilgnet_repro\[runtime\]"):
        ir.convert(folder / "small.caffemodel", to=("onnx",), verify=True)
    assert onnxruntime.__name__ == "onnxruntime"
    assert not (folder / "small.onnx").exists()


# ---------------------------------------------------------------------- names

# Blobs and layers named like the writer's own values, like each other, or with characters that it uses itself.
ODD_NAMES = [
    ("a blob like a constant", ("x", "const_0", "const_1", "const_2"), ("a", "b", "c")),
    ("a blob like a node's output", ("x", "a:Mul_1", "b:Add_2", "b:Mul_1"), ("a", "b", "c")),
    ("a blob like a parameter", ("x", "c.weight", "c.bias", "c.weight'"), ("a", "b", "c")),
    ("space and quoted", ("x", " ", '"', "'"), (" ", "'", "\\")),
    ("dots, slashes and at signs", ("x", "a@b", "a/b", "a.b"), ("a@b", "a/b", "a.b")),
]


@pytest.mark.parametrize(
    ("blobs", "layers"), [row[1:] for row in ODD_NAMES], ids=[row[0] for row in ODD_NAMES]
)
def test_odd_names_stay_distinct(blobs: tuple[str, ...], layers: tuple[str, ...]) -> None:
    def quoted(name: str) -> str:
        return name.replace("\\", "\\\\").replace('"', '\\"')

    x, a, b, c = map(quoted, blobs)
    first, second, third = map(quoted, layers)
    net = net_of(
        f'layer {{ name: "in" type: "Input" top: "{x}" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}\n'
        f'layer {{ name: "{first}" type: "Power" bottom: "{x}" top: "{a}" power_param {{ scale: 2 shift: 1 }} }}\n'
        f'layer {{ name: "{second}" type: "Power" bottom: "{a}" top: "{b}" power_param {{ scale: 3 shift: 1 }} }}\n'
        f'layer {{ name: "{third}" type: "InnerProduct" bottom: "{b}" top: "{c}" inner_product_param {{'
        ' num_output: 2 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 3 } } }'
    )
    model = build_onnx(net)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    made = [name for node in graph.node for name in node.output]
    stored = [entry.name for entry in graph.initializer]
    assert len({*made, *stored, blobs[0]}) == len(made) + len(stored) + 1
    assert len({node.name for node in graph.node}) == len(graph.node)
    value = drawn(2, 3)
    np.testing.assert_allclose(
        run(model, {blobs[0]: value})[blobs[3]],
        net({blobs[0]: torch.from_numpy(value)})[blobs[3]].detach(),
        rtol=1e-5,
    )


STEP_NAMES = ["r:step:kept", "r:step:h", "r:Scan_in_0", "r:Mul_9"]


@pytest.mark.parametrize("name", STEP_NAMES)
def test_a_blob_may_be_named_like_a_value_within_a_step(name: str) -> None:
    """The graph inside a Scan node sees the names around it, and must not hide one of them."""
    net = net_of(
        f'layer {{ name: "x" type: "Input" top: "{name}" input_param {{ shape {{ dim: 4 dim: 2 dim: 3 }} }} }}'
        'layer { name: "m" type: "Input" top: "m" input_param { shape { dim: 4 dim: 2 } } }'
        f'layer {{ name: "r" type: "RNN" bottom: "{name}" bottom: "m" top: "y" recurrent_param {{ num_output: 5'
        ' weight_filler { type: "uniform" min: -1 max: 1 } } }'
    )
    model = build_onnx(net)
    onnx.checker.check_model(model, full_check=True)
    (scan,) = (node for node in model.graph.node if node.op_type == "Scan")
    (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
    inside = [entry.name for entry in body.input] + [made for node in body.node for made in node.output]
    around = [entry.name for entry in (*model.graph.input, *model.graph.initializer)]
    around += [made for node in model.graph.node for made in node.output]
    assert len({*inside, *around}) == len(inside) + len(around)
    x, marks = drawn(4, 2, 3), np.float32([[0, 0], [1, 1], [1, 0], [1, 1]])
    np.testing.assert_allclose(
        run(model, {name: x, "m": marks})["y"],
        net({name: torch.from_numpy(x), "m": torch.from_numpy(marks)})["y"].detach(),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


def test_a_blob_without_a_name_is_refused() -> None:
    net = net_of(
        'layer { name: "in" type: "Input" top: "" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "r" type: "ReLU" bottom: "" top: "y" }'
    )
    with pytest.raises(IlgnetError) as caught:
        build_onnx(net)
    assert str(caught.value) == (
        "in (Input): cannot be written as ONNX: a blob without a name stands for none there; name its top"
    )
