"""Written Python is torch source that people use further: it is trained, traced, compiled, exported and quantized."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from golden_cases import read_case
from small_nets import net_of
from torch import nn

from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.runtime.net import CaffeNet

DATA = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }\n'
)
CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {'
    ' num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.3 } } }\n'
)
NORM = (
    'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv"'
    " batch_norm_param { moving_average_fraction: 0.9 } }\n"
)
SCALE = (
    'layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true'
    ' filler { type: "uniform" min: 0.5 max: 1.5 } bias_filler { type: "gaussian" } } }\n'
)
END = (
    'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }\n'
    'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.4 } }\n'
    'layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param {'
    ' num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }\n'
)
FORK = (
    'layer { name: "bn" type: "BN" bottom: "conv" top: "conv" bn_param { slope_filler { type: "uniform" min: 1 max: 2 }'
    ' bias_filler { type: "gaussian" } momentum: 0.8 } }\n'
)
NVIDIA = NORM.replace("moving_average_fraction: 0.9", "moving_average_fraction: 0.9 scale_bias: true")
GLOBAL = NORM.replace("moving_average_fraction: 0.9", "use_global_stats: true")
BIAS = 'layer { name: "bias" type: "Bias" bottom: "conv" top: "conv" bias_param { filler { type: "gaussian" } } }\n'
PRELU = 'layer { name: "prelu" type: "PReLU" bottom: "conv" top: "conv" }\n'
# Layers, the parameters and the buffers of the written module, without those of conv and ip.
NETS = {
    "BatchNorm": (NORM, "", "bn.running_mean bn.running_var bn.num_batches_tracked"),
    "BatchNorm and Scale": (
        NORM + SCALE, "bn.weight bn.bias", "bn.running_mean bn.running_var bn.num_batches_tracked",
    ),
    "stated statistics": (GLOBAL + SCALE, "scale_bias scale_weight", "bn_mean bn_variance"),
    "a fork's BN": (FORK, "bn.weight bn.bias", "bn.running_mean bn.running_var bn.num_batches_tracked"),
    "NVIDIA's": (NVIDIA, "bn.weight bn.bias", "bn.running_mean bn.running_var bn.num_batches_tracked"),
    "Scale, Bias and PReLU": (SCALE + BIAS + PRELU, "scale_bias scale_weight bias_bias prelu.weight", ""),
}  # fmt: skip


def whole(layers: str) -> CaffeNet:
    net = net_of(DATA + CONV + layers + END)
    with torch.no_grad():
        for node in net.graph:
            if node.type in ("BatchNorm", "BN"):
                layer = net.layer(node.name)
                layer.blob("mean").copy_(torch.linspace(-0.3, 0.4, 4).view_as(layer.blob("mean")))
                other = "variance" if node.type == "BatchNorm" else "fourth_blob"
                layer.blob(other).copy_(torch.linspace(0.6, 1.7, 4).view_as(layer.blob(other)))
                if node.type == "BatchNorm":
                    layer.blob("scale_factor").fill_(1)
    return net


def written(net: CaffeNet) -> nn.Module:
    source = build_source(net, class_name="Written")
    scope: dict = {"__name__": "written"}
    exec(compile(source.text, "written", "exec"), scope)
    module: nn.Module = scope["Written"]()
    module.load_state_dict({name: value.clone() for name, value in source.state.items()}, strict=True)
    return module


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 9, 7, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("layers", "parameters", "buffers"), NETS.values(), ids=NETS)
def test_it_is_trained_as_the_net_is(layers, parameters, buffers, images) -> None:
    net = whole(layers)
    module = written(net)
    own = ["conv.weight", "conv.bias", "ip.weight", "ip.bias"]
    assert {name for name, _ in module.named_parameters()} == {*own, *parameters.split()}
    assert [name for name, _ in module.named_buffers()] == buffers.split()
    assert all(value.requires_grad for value in module.parameters())
    torch.testing.assert_close(module(images)["ip"], net(images)["ip"])  # in eval mode from the start
    # The loss goes back through stored statistics, and through those of the batch.
    for training in (True,) if layers == FORK else (False, True):  # that fork's gradient is not the true one
        for one in (module, net):
            one.zero_grad()
            one.train(training)
            torch.manual_seed(5)
            one(images)["ip"].square().sum().backward()
        torch.testing.assert_close(
            module.conv.weight.grad, net.layer("conv").weight.grad, rtol=1e-3, atol=1e-3
        )
    # Steps of an optimizer change what it computes; the statistics move with the batches.
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(images)["ip"].square().mean().backward()
    optimizer.step()
    after = module.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # A ReLU follows PReLU, so that its slopes have no gradient.
    assert changed == set(after) - {"bn_mean", "bn_variance", "prelu.weight"}


@pytest.mark.parametrize(("phase", "training"), [("TEST", False), ("TRAIN", True)], ids=["deploy", "train"])
def test_it_starts_in_the_mode_of_its_phase(phase, training, images) -> None:
    from ilgnet_repro.caffe.graph_build import build_graph
    from ilgnet_repro.caffe.prototxt import parse_net

    module = written(CaffeNet(build_graph(parse_net(DATA + CONV + NORM + END), phase), seed=3))
    assert (module.training, module.bn.training, module.drop.training) == (training,) * 3
    module.eval()
    torch.testing.assert_close(module(images)["ip"], module(images)["ip"], rtol=0, atol=0)
    module.train()
    assert not torch.equal(module(images)["ip"], module(images)["ip"])  # dropout draws


def test_layers_that_share_their_weights_are_one_module() -> None:
    layer = (
        'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" param {{ name: "w" }} param {{ name: "b" }}'
        ' inner_product_param {{ num_output: 4 weight_filler {{ type: "gaussian" }} }} }}\n'
    )
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}\n'
        for name in "xy"
    )
    net = net_of(text + layer.format("left", "x") + layer.format("right", "y"))
    module = written(net)
    assert [name for name, _ in module.named_parameters()] == ["left.weight", "left.bias"]
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    for name, value in net(x=x, y=y).items():
        torch.testing.assert_close(module(x, y)[name], value)


def traced(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.jit.trace(module, images, strict=False)(images)["ip"]


def compiled(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.compile(module, backend="eager", fullgraph=True)(images)["ip"]


def exported(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    axes = {"data": {0: torch.export.Dim("N", min=1, max=64)}}
    return torch.export.export(module, (images,), dynamic_shapes=axes).module()(images)["ip"]


def symbolic(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.fx.symbolic_trace(module)(images)["ip"]


@pytest.mark.parametrize(
    ("layers", "through"),
    [
        *((NORM + SCALE, through) for through in (traced, compiled, exported, symbolic)),
        *((layers, symbolic) for layers in (GLOBAL + SCALE, FORK, SCALE + BIAS + PRELU)),
    ],
)
def test_torchs_tools_take_it(layers, through, images) -> None:
    module = written(whole(layers))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(through(module, images), module(images)["ip"])


@pytest.mark.filterwarnings("ignore")
def test_fx_quantizes_it(images) -> None:
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no x86 engine")
    module = written(whole(NORM + SCALE)).eval()
    prepared = quantize_fx.prepare_fx(module, get_default_qconfig_mapping("x86"), (images,))
    with torch.no_grad():
        prepared(images)
        quantized = quantize_fx.convert_fx(prepared)
        found, wanted = quantized(images)["ip"], module(images)["ip"]
    kinds = {type(one).__module__ for one in quantized.modules()}
    assert any("quantized" in kind for kind in kinds)
    assert not any(
        isinstance(one, nn.BatchNorm2d) for one in quantized.modules()
    )  # fused into the convolution
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))


def recorded(name: str, folder: Path) -> tuple[nn.Module, list[torch.Tensor]]:
    """The written module of a recorded layer, and its inputs."""
    case = read_case(name)
    net = case.net(folder)
    source = build_source(net, class_name="Written")
    return written(net), [torch.from_numpy(case.inputs[key]).float() for key in source.arguments]


@pytest.mark.parametrize(
    "name", ["LRN-across", "LSTM-basic", "DetectionOutput-batch3", "CTCGreedyDecoder-accuracy"]
)
def test_fx_takes_functions_that_decide_by_shapes_or_values(name: str, tmp_path) -> None:
    module, inputs = recorded(name, tmp_path)
    with torch.no_grad():
        for key, value in torch.fx.symbolic_trace(module)(*inputs).items():
            torch.testing.assert_close(value, module(*inputs)[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["DetectionOutput-batch3", "CTCGreedyDecoder-accuracy", "WarpCTCLoss-blank_between"]
)
def test_jit_trace_is_refused_where_values_decide(name: str, tmp_path) -> None:
    """It would keep what the values of its example decided, and compute something else for others."""
    module, inputs = recorded(name, tmp_path)
    with pytest.raises(
        RuntimeError, match=r"^torch\.jit\.trace cannot record what is decided by values; run the module"
    ):
        torch.jit.trace(module, inputs, strict=False)
