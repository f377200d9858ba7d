"""Parameters and bottoms that make no sense are refused by the layer's name before memory is taken."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net

BOTTOM = 'bottom: "x" '
INPUT = 'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }} '


def graph(layer: str, *dims: int):
    text = INPUT.format(dims=" ".join(f"dim: {size}" for size in dims))
    return build_graph(
        upgrade_net(parse_net(f'{text} layer {{ name: "op" bottom: "x" top: "y" {layer} }}'), []), "TEST"
    )


REFUSED = {
    "Deconvolution-without-pixels": (
        (2, 3, 0, 5),
        'type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 3 }',
        "op (Deconvolution): ",
    ),
    "Convolution-of-rank-2": (
        (2, 4),
        'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 axis: 7 }',
        "op (Convolution): ",
    ),
    "DenseBlock-without-end": (
        (2, 3, 8, 9),
        'type: "DenseBlock" denseblock_param { numTransition: 2147483648 growthRate: 7 }',
        "op (DenseBlock): numTransition 2147483648 must be at most 1000",
    ),
    **{
        f"{kind}-of-classes-beyond-memory": (
            (1, 1, 3, 7),
            f'type: "{kind}" {BOTTOM * more} {message} {{ num_classes: 2147483648 }}',
            f"op ({kind}): num_classes 2147483648 must be at most 30,000",
        )
        for kind, message, more in (
            ("DetectionOutput", "detection_output_param", 2),
            ("DetectionEvaluate", "detection_evaluate_param", 1),
            ("MultiBoxLoss", "multibox_loss_param", 3),
        )
    },
    **{
        f"{kind}-of-shifts-beyond-memory": (
            (2, 3, 8, 9),
            f'type: "{kind}" {BOTTOM} correlation_param {{ kernel_size: 1 max_displacement: {reach} }}',
            f"op ({kind}): max_displacement {reach} with stride_2 1 gives {shifts} shifts; at most 10,000",
        )
        for kind, reach, shifts in (
            ("Correlation", 50, "10,201"),
            ("Correlation1D", 4294967295, "8,589,934,591"),
        )
    },
    "Correlation-of-padding-beyond-memory": (
        (2, 3, 8, 9),
        f'type: "Correlation" {BOTTOM} correlation_param {{ kernel_size: 1 max_displacement: 1 pad: 9000 stride_1: 3000 }}',
        "op (Correlation): pad 9000 makes 1,945,836,432 values of bottom [2, 3, 8, 9], of which the 49 positions",
    ),
    **{
        f"{kind}-of-tops-outside-the-image": (
            (1, 3, height, 9),
            f'type: "{kind}" {BOTTOM} correlation_param {{ kernel_size: 1 max_displacement: 20 {fields} }}',
            f"op ({kind}): pad {pad} makes {values} values of bottom [1, 3, {height}, 9], most of them of positions "
            "outside it; pad less",
        )
        for kind, height, pad, fields, values in (
            ("Correlation", 8, 1000, "stride_2: 2 pad: 1000", "1,708,871,472"),
            ("Correlation1D", 700, 2000, "pad: 2000", "113,910,300"),
        )
    },
    **{
        f"filler-{name}": ((2, 3, 4, 5), f"type: {layer}", message)
        for name, layer, message in (
            (
                "uniform-of-swapped-ends",
                '"InnerProduct" inner_product_param { num_output: 4 weight_filler { type: "uniform" min: 2 max: 1 } }',
                "op (InnerProduct): weight filler uniform: min 2 and max 1 cannot be drawn from",
            ),
            (
                "uniform-beyond-numbers",
                '"InnerProduct" inner_product_param { num_output: 4 weight_filler { type: "uniform" max: inf } }',
                "op (InnerProduct): weight filler uniform cannot fill a blob of shape [4, 60] (RuntimeError: ",
            ),
            (
                "gaussian-of-negative-std",
                '"PReLU" prelu_param { channel_shared: true filler { type: "gaussian" std: -1 } }',
                "op (PReLU): slope filler gaussian: std -1 cannot be drawn from",
            ),
            (
                "gaussian-of-std-nan",
                '"Scale" scale_param { num_axes: 0 filler { type: "gaussian" std: nan } }',
                "op (Scale): weight filler gaussian: std nan cannot be drawn from",
            ),
            (
                "gaussian-sparse-negative",
                '"InnerProduct" inner_product_param { num_output: 4 weight_filler { type: "gaussian" sparse: -7 } }',
                "op (InnerProduct): weight filler gaussian: sparse -7 cannot be drawn from",
            ),
            (
                "gaussian-sparse-of-a-scalar",
                '"Bias" bias_param { num_axes: 0 filler { type: "gaussian" sparse: 2 } }',
                "op (Bias): bias filler gaussian cannot fill a blob of shape [] (IndexError: ",
            ),
        )
    },
    "PriorBox-of-density-beyond-memory": (
        (2, 3, 8, 9),
        f'type: "PriorBox" {BOTTOM} prior_box_param {{ fixed_size: 4 density: 4294967295 }}',
        "op (PriorBox): top 'y' would hold ",
    ),
    "DeephiResize-beyond-numbers": (
        (2, 3, 8, 9),
        'type: "DeephiResize" deephi_resize_param { scale_h: 3e38 scale_w: 2 }',
        "op (DeephiResize): ",
    ),
    "weights-beyond-memory": (
        (2, 3, 8, 9),
        'type: "InnerProduct" inner_product_param { num_output: 214748364 }',
        "op (InnerProduct): weight would hold 46,385,646,624 values, more than Caffe's limit of 2,147,483,647",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    dims, layer, message = REFUSED[name]
    with pytest.raises(IlgnetError) as caught:
        plan_net(graph(layer, *dims))
        CaffeNet(graph(layer, *dims), seed=1)({"x": torch.zeros(dims)})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_same_layers_with_parameters_that_make_sense():
    for dims, layer in (
        ((2, 3, 4, 5), 'type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 3 }'),
        ((2, 3, 8, 9), 'type: "DenseBlock" denseblock_param { numTransition: 2 growthRate: 7 }'),
        ((2, 3, 8, 9), 'type: "DeephiResize" deephi_resize_param { scale_h: 3 scale_w: 2 }'),
        ((2, 3, 8, 9), 'type: "InnerProduct" inner_product_param { num_output: 6 }'),
        (
            (2, 3, 4, 5),
            f'type: "Correlation" {BOTTOM} correlation_param {{ kernel_size: 1 max_displacement: 1 pad: 1 }}',
        ),
        ((2, 3, 4, 5), 'type: "Scale" scale_param { num_axes: 0 filler { type: "positive_unitball" } }'),
        ((2, 3, 4, 5), 'type: "Scale" scale_param { num_axes: 0 filler { type: "uniform" min: 2 max: 2 } }'),
    ):
        assert torch.isfinite(CaffeNet(graph(layer, *dims), seed=1)({"x": torch.ones(dims)})["y"]).all()


@pytest.mark.parametrize("size", [9, 11, 4294967295])
def test_lrn_with_a_window_beyond_all_channels(size):
    """All five channels are in each window; only the divisor is that of the size."""
    x = torch.linspace(-3, 3, 2 * 5 * 3 * 4).view(2, 5, 3, 4)
    net = CaffeNet(graph(f'type: "LRN" lrn_param {{ local_size: {size} alpha: 2 beta: 0.75 }}', 2, 5, 3, 4))
    total = x.double().square().sum(1, keepdim=True)
    expected = x / (1 + 2 / size * total) ** 0.75
    torch.testing.assert_close(net({"x": x})["y"].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Power" power_param { power: inf scale: 1e-45 }',
        'type: "Power" power_param { power: -1 scale: nan shift: -3e38 }',
        'type: "Exp" exp_param { scale: 1e-45 shift: 1e-45 }',
        'type: "Exp" exp_param { base: inf }',
        'type: "Log" log_param { scale: 1e-45 shift: 3e38 }',
    ],
    ids=["power", "nan", "exp", "base", "log"],
)
def test_inputs_are_drawn_for_any_parameters(layer):
    try:
        inputs = seeded_inputs(CaffeNet(graph(layer, 2, 3, 4, 5), seed=1))
    except IlgnetError:
        return  # the layer refuses the parameters itself
    assert torch.isfinite(inputs["x"]).all() and inputs["x"].shape == (2, 3, 4, 5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "layer",
    [
        'type: "Mean" mean_param { operation: ADD value: 2 input_scale: 3e38 output_scale: 3e38 }',
        'type: "DeephiResize" deephi_resize_param { scale_h: 3e38 scale_w: 2 }',
    ],
    ids=["factor", "size"],
)
def test_numbers_beyond_float32_print_no_warning(layer):
    with suppress(IlgnetError):
        build_onnx(CaffeNet(graph(layer, 2, 3, 4, 5), seed=1))
