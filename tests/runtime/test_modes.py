"""`train()` and `eval()`: what they switch and what they do not, and which calls always use the phase's mode."""

from __future__ import annotations

import ast
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import NAMES, read_case, tolerance
from layer_nets import draw, one_layer

import ilgnet_repro as ir
from ilgnet_repro import layers
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe_tool.test import caffe_test
from ilgnet_repro.caffe_tool.time import caffe_time
from ilgnet_repro.errors import GraphError, LayerError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.to_pt2 import export
from ilgnet_repro.runtime.modes import as_loaded
from ilgnet_repro.train.loop import _Pass

IMAGES, ROWS = (4, 3, 7, 6), (5, 3)
SLOPES = 'slope_filler { type: "constant" value: 1.5 } bias_filler { type: "constant" value: 0.25 }'
NVIDIAS = 'scale_filler { type: "constant" value: 1.5 } bias_filler { type: "constant" value: 0.25 }'

SWITCHED = {  # the layer, its bottom's shape
    "Dropout": ('type: "Dropout"', IMAGES),
    "Dropout by ratio": ('type: "Dropout" dropout_param { dropout_ratio: 0.2 }', ROWS),
    "stochastic pooling": ('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }', IMAGES),
    "stochastic, the whole plane": ('type: "Pooling" pooling_param { pool: STOCHASTIC global_pooling: true }', IMAGES),
    "stochastic pyramid": ('type: "SPP" spp_param { pool: STOCHASTIC pyramid_height: 1 }', IMAGES),
    "BatchNorm": ('type: "BatchNorm"', IMAGES),
    "BatchNorm of rows": ('type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.5 eps: 0.1 }', ROWS),
    "BatchNorm of one image": ('type: "BatchNorm"', (1, 3, 7, 6)),
    "BatchNorm of one value": ('type: "BatchNorm"', (1, 3)),
    "NVIDIA's, five blobs": (f'type: "BatchNorm" batch_norm_param {{ {NVIDIAS} }}', IMAGES),
    "NVIDIA's, three blobs": ('type: "BatchNorm" batch_norm_param { scale_bias: false }', IMAGES),
    "NVIDIA's, use_global_stats": (
        f'type: "BatchNorm" batch_norm_param {{ use_global_stats: true {NVIDIAS} }}', IMAGES),
    "BN of four blobs": (f'type: "BN" bn_param {{ {SLOPES} }}', IMAGES),
    "BN of four blobs, rows": (f'type: "BN" bn_param {{ momentum: 0.7 {SLOPES} }}', ROWS),
    "BN with moving_average": (f'type: "BN" bn_param {{ moving_average: true {SLOPES} }}', IMAGES),
    "BN with inverse deviations": (f'type: "BN" bn_param {{ fourth_blob: INVERSE_STD {SLOPES} }}', IMAGES),
}  # fmt: skip
NOT_SWITCHED = {
    "use_global_stats: true": ('type: "BatchNorm" batch_norm_param { use_global_stats: true }', IMAGES),
    "use_global_stats: false": ('type: "BatchNorm" batch_norm_param { use_global_stats: false }', IMAGES),
    "frozen BN": (f'type: "BN" bn_param {{ frozen: true {SLOPES} }}', IMAGES),
    "BN of two blobs": ('type: "BN" bn_param { scale_filler { type: "constant" value: 2 } }', IMAGES),
    "folded BN": ('type: "BN" bn_param { bn_mode: INFERENCE }', IMAGES),
    "MAX pooling": ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 }', IMAGES),
    "MAX pyramid": ('type: "SPP" spp_param { pyramid_height: 2 }', IMAGES),
}
# Recorded cases of these types contain values that train() or eval() switch.
SWITCHING_TYPES = {"BatchNorm", "Dropout"}


def made(body: str, shape: tuple[int, ...], phase: str):
    """The layer as a net, with statistics like those of a trained net."""
    net = one_layer(body, shape, phase=phase)
    layer = net.layer("op")
    values = {"mean": (0.3, -0.2, 0.1), "variance": (0.5, 1.25, 2.0), "fourth_blob": (0.5, 1.25, 2.0)}
    with torch.no_grad():
        for name in layer.blob_names:
            if name in values:
                layer.blob(name).copy_(torch.tensor(values[name]).view_as(layer.blob(name)))
            elif name == "scale_factor":
                layer.blob(name).fill_(1.25)
    return net


def outcome(net, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """What two passes give from one seed: the top, the gradient of the bottom, and the blobs after them."""
    x = torch.from_numpy(np.abs(draw(*shape, seed=4))).requires_grad_()
    torch.manual_seed(11)
    net(in0=x)
    top = net(in0=x)["top0"]
    (top * torch.linspace(-1, 1, top.numel()).view_as(top)).sum().backward()
    return [top.detach(), x.grad, *(blob.detach().clone() for blob in net.layer("op").blobs)]


def assert_same(found, wanted) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("body", "shape"), SWITCHED.values(), ids=SWITCHED)
def test_a_mode_gives_what_the_phase_gives(body, shape) -> None:
    train, test = (made(body, shape, phase) for phase in ("TRAIN", "TEST"))
    assert (train.training, test.training) == (True, False)
    trained, tested = (outcome(net, shape) for net in (train, test))
    assert any(not torch.equal(one, other) for one, other in zip(trained, tested, strict=True))
    assert_same(outcome(made(body, shape, "TEST").train(), shape), trained)
    assert_same(outcome(made(body, shape, "TRAIN").eval(), shape), tested)
    there_and_back = made(body, shape, "TEST").train().eval()
    assert_same(outcome(there_and_back, shape), tested)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize(("body", "shape"), NOT_SWITCHED.values(), ids=NOT_SWITCHED)
def test_modes_stated_in_the_text_are_not_switched(body, shape, phase) -> None:
    wanted = outcome(made(body, shape, phase), shape)
    for mode in (True, False):
        assert_same(outcome(made(body, shape, phase).train(mode), shape), wanted)


ONE_A_TYPE = {name.split("-")[0]: name for name in NAMES if not name.startswith("sweep")}


@pytest.mark.parametrize("type_", sorted(set(ONE_A_TYPE) - SWITCHING_TYPES))
def test_no_other_layer_is_switched(type_: str, tmp_path) -> None:
    case = read_case(ONE_A_TYPE[type_])
    other = case.net(tmp_path).train(case.phase == "TEST")
    with torch.no_grad():
        found = other({name: torch.from_numpy(value) for name, value in case.inputs.items()})
    for blob, expected in case.outputs.items():
        np.testing.assert_allclose(found[blob].numpy(), expected, **tolerance(case.name), err_msg=blob)


RECORDED = [name for name in NAMES if name.split("-")[0] == "BatchNorm"]


@pytest.mark.parametrize("name", RECORDED)
def test_caffes_own_numbers_from_the_other_phase(name: str, tmp_path) -> None:
    case = read_case(name)
    other = replace(case, phase="TEST" if case.phase == "TRAIN" else "TRAIN")
    net = other.net(tmp_path).train(case.phase == "TRAIN")
    with torch.no_grad():
        found = net({name: torch.from_numpy(value) for name, value in case.inputs.items()})
    for blob, expected in case.outputs.items():
        np.testing.assert_allclose(found[blob].numpy(), expected, **tolerance(case.name), err_msg=blob)


def test_statistics_that_a_fork_does_not_keep_are_refused_in_eval() -> None:
    net = one_layer(f'type: "BN" bn_param {{ moving_average: false {SLOPES} }}', IMAGES, phase="TRAIN")
    x = torch.from_numpy(draw(*IMAGES))
    net(x)
    with pytest.raises(LayerError) as caught:
        net.eval()(x)
    assert str(caught.value) == (
        "op (BN): moving_average: false keeps no statistics for eval(), and its fork leaves the result undefined; "
        "state true if the weights hold 4 blobs"
    )


def test_layers_read_the_mode_only_in_forward() -> None:
    """Plans and written files depend on the phase, a pass depends on the mode."""
    wrong = []
    for path in sorted(Path(layers.__file__).parent.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                read = {
                    node.attr
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
                }
                forbidden = {"is_train", "phase"} if function.name == "forward" else {"training"}
                wrong += [f"{path.name} {function.name} reads {name}" for name in read & forbidden]
    assert wrong == []


# ---------------------------------------------------------------------- the mode of a net

TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 7 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
DATA = torch.from_numpy(draw(*IMAGES))


def loaded(phase: str = "TEST"):
    net = ir.load_net(parse_net(TEXT), phase=phase, seed=3)
    with torch.no_grad():
        for blob, value in zip(net.params["bn"], (0.1, 0.9, 1.0), strict=True):
            blob.fill_(value)
    return net


class Batches:
    """A feed of one batch."""

    def batches(self, count: int):
        for _ in range(count):
            yield {"data": DATA}


USES = {
    "fast": lambda net: ir.fast(net)(DATA)["prob"],
    "deviation": lambda net: torch.tensor(ir.fast(net).deviation(DATA)["prob"] < 1e-5),
    "caffe_test": lambda net: torch.tensor([row.mean for row in caffe_test(net, Batches(), 2).means]),
    "pt2": lambda net: export(net).module()(data=DATA)["prob"],
    "onnx": lambda net: torch.frombuffer(bytearray(build_onnx(net).SerializeToString()), dtype=torch.uint8),
    "source": lambda net: torch.tensor(list(build_source(net, class_name="Net").text.encode())),
    "caffe_time": lambda net: torch.tensor(caffe_time(net, {"data": DATA}, 1).iterations),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_commands_give_the_phases_numbers_and_leave_the_mode(use) -> None:
    wanted = use(loaded())
    net = loaded().train()
    before = [blob.clone() for blobs in net.params.values() for blob in blobs]
    torch.testing.assert_close(use(net), wanted)
    assert all(module.training for module in net.modules())
    after = [blob for blobs in net.params.values() for blob in blobs]
    assert_same(after, before)  # no statistics moved


def test_a_solver_trains_in_the_mode_of_its_phase() -> None:
    text = TEXT.replace('"Softmax"', '"Softmax" loss_weight: 1')
    found = []
    for mode in (True, False):
        net = ir.load_net(parse_net(text), phase="TRAIN", seed=3).train(mode)
        torch.manual_seed(5)
        found.append([*_Pass(net)({"data": DATA})[1].values(), *net.params["bn"]])
        assert net.training is mode
    assert_same(*found)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_all_modules_start_in_the_mode_of_the_phase(phase) -> None:
    net = loaded(phase)
    for one in (net, copy.deepcopy(net)):
        assert {module.training for module in one.modules()} == {phase == "TRAIN"}
    other = copy.deepcopy(net.train(phase == "TEST"))
    assert {module.training for module in other.modules()} == {phase == "TEST"}
    assert net.train() is net
    assert net.eval() is net


def test_a_replacement_module_keeps_its_mode_until_it_is_switched() -> None:
    net = loaded()
    net.layers.drop = torch.nn.Dropout(0.5)
    assert net.layers.drop.training
    with as_loaded(net):
        assert not net.layers.drop.training
    assert net.layers.drop.training
    assert not net.eval().layers.drop.training


def test_the_mode_is_restored_after_an_error() -> None:
    net = loaded().train()
    net.layers.bn.eval()
    with pytest.raises(ZeroDivisionError), as_loaded(net):
        assert not any(module.training for module in net.modules())
        raise ZeroDivisionError
    assert [name for name, module in net.named_modules() if not module.training] == ["layers.bn"]
    with as_loaded(lambda: 0):  # no module, no mode
        pass


def test_a_fast_net_is_not_put_into_training_mode() -> None:
    fast = ir.fast(loaded().train())
    assert not any(module.training for module in fast.modules())
    assert fast.eval() is fast
    with pytest.raises(
        GraphError, match=r"a fast net cannot be put into training mode; do it with the exact net"
    ):
        fast.train()


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("mode", [True, False])
def test_both_modes_compile_and_export(phase, mode) -> None:
    torch._dynamo.reset()
    wanted = {}
    for kind in ("eager", "compiled", "exported"):
        net = loaded(phase).train(mode)
        net.layers.drop.ratio = 0.0  # no draws
        run = net
        if kind == "compiled":
            run = torch.compile(net, backend="eager", fullgraph=True)
        elif kind == "exported":
            run = torch.export.export(net, (), {"data": DATA}).module()
        with torch.no_grad():
            wanted[kind] = run(data=DATA)["prob"]
    for kind in ("compiled", "exported"):
        torch.testing.assert_close(wanted[kind], wanted["eager"])
