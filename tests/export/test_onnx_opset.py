"""`opset`: every operator in the form of the lowest and the newest opset, and refusals by layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from golden_cases import NAMES, read_case, tolerance
from small_nets import SMALL_TEXT, net_of

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.onnx_opsets import DEFAULT, LOWEST, newest
from ilgnet_repro.layers.support.base import Layer, integers
from ilgnet_repro.layers.support.registry import register_layer
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.onnx_net import open_session

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 dim: 4 dim: 5 } } }'


def check(model: onnx.ModelProto, net: CaffeNet, inputs: dict[str, np.ndarray]) -> None:
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    with torch.inference_mode():
        expected = net({name: torch.from_numpy(value) for name, value in inputs.items()})
    given = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    for entry, value in zip(session.get_outputs(), session.run(None, given), strict=True):
        np.testing.assert_allclose(value, expected[entry.name].numpy(), rtol=1e-4, atol=1e-5)


# Every case of Caffe's layers is run by `make consumers`; these have the operators whose form depends on the opset.
CASES = [
    "MVN-across", "Reduction-asum", "Reduction-mean", "Reduction-sumsq", "Slice-even", "Slice-points", "LSTM-static",
    "SPP-max3", "DetectionOutput-center_encoded", "PriorBox-1x1", "Upsample-mask_scale3",
]  # fmt: skip


@pytest.mark.parametrize("opset", [LOWEST, None], ids=["lowest", "newest"])
@pytest.mark.parametrize("name", [*CASES, *NAMES[::23]])
def test_recorded_cases(name: str, opset: int | None, tmp_path) -> None:
    case = read_case(name)
    net = case.net(tmp_path)
    model = build_onnx(net, opset=opset or newest())
    assert model.opset_import[0].version == (opset or newest())
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    found = session.run(None, {entry.name: case.inputs[entry.name] for entry in session.get_inputs()})
    for entry, value in zip(session.get_outputs(), found, strict=True):
        np.testing.assert_allclose(value, case.outputs[entry.name], **tolerance(name), err_msg=entry.name)


FORMS = [
    ("nearest", 'type: "Upsample" upsample_param { scale: 3 }'),
    ("bilinear", 'type: "Interp" interp_param { height: 9 width: 7 }'),
    ("mean of axes", 'type: "MVN" mvn_param { across_channels: true }'),
    ("equal parts", 'type: "Slice" top: "y2" slice_param { axis: 1 }'),
    ("parts", 'type: "Slice" top: "y2" slice_param { axis: 1 slice_point: 2 }'),
    ("some axes of a shape", 'type: "Flatten" flatten_param { axis: 2 }'),
    ("batch statistics", 'type: "BatchNorm" batch_norm_param { use_global_stats: false }'),
]


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20, 22])
@pytest.mark.parametrize("rest", [row[1] for row in FORMS], ids=[row[0] for row in FORMS])
def test_forms_by_opset(rest: str, opset: int) -> None:
    net = net_of(INPUT + f'layer {{ name: "y" bottom: "x" top: "y" {rest} }}')
    x = np.random.default_rng(2).standard_normal((3, 6, 4, 5), np.float32)
    check(build_onnx(net, opset=opset), net, {"x": x})


ROIS = 'layer { name: "r" type: "Input" top: "r" input_param { shape { dim: 3 dim: 5 } } }'


@pytest.mark.parametrize("opset", [13, 22])
def test_regions_reach_past_the_image_in_every_opset(opset: int) -> None:
    """ONNX Runtime has no MaxRoiPool of opset 22; bins without a pixel are 0."""
    net = net_of(
        INPUT
        + ROIS
        + 'layer { name: "y" type: "ROIPooling" bottom: "x" bottom: "r" top: "y" roi_pooling_param {'
        " pooled_h: 2 pooled_w: 3 spatial_scale: 0.5 } }"
    )
    model = build_onnx(net, opset=opset)
    assert ("MaxRoiPool" in {node.op_type for node in model.graph.node}) == (opset < 22)
    x = np.random.default_rng(3).standard_normal((2, 6, 4, 5), np.float32) - 3
    rois = np.float32([[0, 1, 1, 7, 5], [1, 3, 0, 3, 0], [0, 6, 5, 40, 30], [1, 20, 20, 30, 30]])
    check(model, net, {"x": x, "r": rois})


def test_forms_that_most_consumers_read() -> None:
    """OpenCV 5 reads no `axes` of Resize and no ConstantOfShape without a value; OpenCV 4 no part of a Shape."""
    net = net_of(
        INPUT + 'layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "m" pooling_param {'
        " kernel_size: 2 stride: 2 } }"
        'layer { name: "u" type: "Upsample" bottom: "p" bottom: "m" top: "u" upsample_param { scale: 2 } }'
        'layer { name: "i" type: "Interp" bottom: "u" top: "i" interp_param { height: 9 width: 7 } }'
    )  # fmt: skip
    for opset in (LOWEST, 20):
        nodes = build_onnx(net, opset=opset).graph.node
        given = {node.op_type: {entry.name for entry in node.attribute} for node in nodes}
        assert given["ConstantOfShape"] == {"value"}
        assert "axes" not in given["Resize"]
        assert given["Shape"] == set()


class _Smooth(Layer):
    def onnx(self, graph, x):
        return [graph.node(self.op, [x], **self.attributes)]

    def forward(self, x):
        return (self.torch(x),)


SMOOTH = [
    ("Mish", {}, torch.nn.functional.mish, 18),
    ("HardSwish", {}, torch.nn.functional.hardswish, 14),
    ("Gelu", {}, torch.nn.functional.gelu, 20),
    ("Gelu", {"approximate": "tanh"}, lambda x: torch.nn.functional.gelu(x, approximate="tanh"), 20),
]


@pytest.mark.parametrize(("op", "attributes", "torch_", "since"), SMOOTH)
@pytest.mark.parametrize("opset", [13, 20])
def test_operators_of_a_users_layer_are_written_out_below_their_opset(
    own_layer_types, op, attributes, torch_, since, opset
) -> None:
    register_layer("Smooth")(
        type("Smooth", (_Smooth,), {"op": op, "attributes": attributes, "torch": staticmethod(torch_)})
    )
    net = net_of(INPUT + 'layer { name: "y" type: "Smooth" bottom: "x" top: "y" }')
    model = build_onnx(net, opset=opset)
    assert (op in {node.op_type for node in model.graph.node}) == (opset >= since)
    check(model, net, {"x": np.random.default_rng(4).standard_normal((2, 6, 4, 5), np.float32) * 3})


REFUSED = [
    ("operator", "CenterCropPad", lambda graph, x: [x, graph.constant(integers(2, 6, 4, 5))], {}, 18),
    ("attribute", "ScatterND", lambda graph, x: [x, x, x], {"reduction": "max"}, 18),
    ("earlier attribute", "ScatterND", lambda graph, x: [x, x, x], {"reduction": "add"}, 16),
    ("computed axes", "ReduceMean", lambda graph, x: [x, x], {}, 18),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "needed"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_an_operator_of_a_later_opset_is_refused_by_layer(
    own_layer_types, op, inputs, attributes, needed
) -> None:
    @register_layer("Later")
    class Later(Layer):
        def onnx(self, graph, x):
            return [graph.node(op, inputs(graph, x), **attributes)]

    net = net_of(INPUT + 'layer { name: "y" type: "Later" bottom: "x" top: "y" }')
    with pytest.raises(IlgnetError) as caught:
        build_onnx(net, opset=13)
    assert (
        str(caught.value)
        == f"y (Later): its ONNX operator {op} is so from opset {needed} on; write opset={needed}"
    )
    assert caught.value.option == "opset"
    assert op in {node.op_type for node in build_onnx(net, opset=needed).graph.node}


# ---------------------------------------------------------------------- the option

IR = [(13, 7), (14, 7), (15, 8), (18, 8), (19, 9), (20, 9), (21, 10), (22, 10)]


@pytest.mark.parametrize(("opset", "version"), IR)
def test_the_file_has_the_opset_and_its_ir_version(folder, opset: int, version: int) -> None:
    ir.save(small_net(folder), folder / "o.onnx", opset=opset)
    model = onnx.load(str(folder / "o.onnx"))
    assert (model.opset_import[0].version, model.ir_version) == (opset, version)


def small_net(folder) -> CaffeNet:
    return ir.load_net(folder / "deploy.prototxt", folder / "small.caffemodel")


@pytest.mark.parametrize("opset", [12, 99, 0, -1, True, "13", 13.0], ids=repr)
def test_other_opsets_are_refused(folder, opset) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(IlgnetError) as caught:
        ir.save(small_net(folder), folder / "o.onnx", opset=opset)
    assert str(caught.value) == (
        f"opset={opset!r}: choose one from 13 to {newest()}, the newest that ONNX Runtime accepts here"
    )
    assert sorted(folder.iterdir()) == before


def test_other_formats_have_no_opset(folder) -> None:
    with pytest.raises(
        IlgnetError, match=r"^opset= is for onnx files, not safetensors; convert to that separately$"
    ):
        ir.save(small_net(folder), folder / "o.safetensors", opset=17)


def test_the_command(folder, capsys) -> None:
    arguments = ["convert", str(folder / "small.caffemodel"), "--to", "onnx", "--verify"]
    assert main([*arguments, "--opset", "18"]) == 0
    assert onnx.load(str(folder / "small.onnx")).opset_import[0].version == 18
    assert main(arguments) == 0
    assert onnx.load(str(folder / "small.onnx")).opset_import[0].version == DEFAULT == 13
    capsys.readouterr()
    assert main([*arguments, "--opset", "12"]) == 1
    assert capsys.readouterr().err == (
        f"ilgnet: --opset 12: choose one from 13 to {newest()}, the newest that ONNX Runtime accepts here\n"
    )


def test_without_onnx_runtime_the_onnx_package_decides(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    newest.cache_clear()
    try:
        assert newest() == onnx.defs.onnx_opset_version()
        model = build_onnx(net_of(SMALL_TEXT), opset=newest())
        onnx.checker.check_model(model, full_check=True)
    finally:
        newest.cache_clear()
