"""Memory that Caffe's layers share: every way to run a net against buffers simulated in numpy, and the refusals."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from caffe_memory import random_net

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.errors import IlgnetError, LayerError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.to_pt2 import export
from ilgnet_repro.runtime.fold import fold
from ilgnet_repro.runtime.load import load_graph, load_net
from ilgnet_repro.runtime.net import CaffeNet

SEEDS = range(60)


def outputs_of(net: CaffeNet, use: str, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Run a net in one of the ways in which it can be run."""
    if use == "onnx":
        session = onnxruntime.InferenceSession(
            build_onnx(net).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [entry.name for entry in session.get_outputs()]
        given = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
        return dict(zip(names, session.run(None, given), strict=True))
    if use == "source":
        scope: dict = {}
        exec(compile(build_source(net, class_name="Written").text, "written", "exec"), scope)
        made = scope["Written"]()(*(inputs[name] for name in net.inputs_for(net.outputs)))
    elif use == "pt2":
        made = export(net).module()(**inputs)
    else:
        made = (fast_net(net) if use == "fast" else net)(inputs)
    return {name: value.detach().numpy() for name, value in made.items()}


def check(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_blob_equals_its_memory_after_the_pass(seed) -> None:
    made = random_net(seed)
    net = load_net(parse_net(made.text))
    assert net.outputs == tuple(sorted(made.unread))
    inputs = {name: torch.from_numpy(values.copy()) for name, values in made.inputs.items()}
    blobs = net(inputs, blobs=list(made.blobs))
    check(made.blobs, {name: value.numpy() for name, value in blobs.items()})
    torch.testing.assert_close(inputs["x"], torch.from_numpy(made.inputs["x"]))  # the caller's is not changed


@pytest.mark.parametrize("use", ["onnx", "source", "fast"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_form_gives_the_outputs(seed, use) -> None:
    made = random_net(seed)
    net = load_net(parse_net(made.text))
    inputs = {name: torch.from_numpy(values) for name, values in made.inputs.items()}
    expected = {name: made.blobs[name] for name in net.outputs}
    if use == "onnx" and "x" in expected and not np.array_equal(expected["x"], inputs["x"]):
        with pytest.raises(IlgnetError, match=r"'x' is an input and, written in place, an output"):
            build_onnx(net)
        return
    check(expected, outputs_of(net, use, inputs))


@pytest.mark.parametrize("seed", [1, 4])
def test_an_exported_program_gives_the_outputs(seed) -> None:
    made = random_net(seed)
    net = load_net(parse_net(made.text))
    inputs = {name: torch.from_numpy(values) for name, values in made.inputs.items()}
    check({name: made.blobs[name] for name in net.outputs}, outputs_of(net, "pt2", inputs))


@pytest.mark.parametrize("seed", SEEDS)
def test_folding_changes_no_output(seed) -> None:
    made = random_net(seed)
    text = parse_net(made.text)
    result = fold(load_net(text), text, {})
    net = CaffeNet(result.graph, result.arrays)
    inputs = {name: torch.from_numpy(values) for name, values in made.inputs.items()}
    check({name: made.blobs[name] for name in sorted(made.unread)}, outputs_of(net, "torch", inputs))


# ---------------------------------------------------------------------- refusals

INPUT = 'layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'


def layer(name: str, type_: str, bottoms: str = "", tops: str = "", more: str = "") -> str:
    blobs = [f'bottom: "{blob}"' for blob in bottoms.split()] + [f'top: "{blob}"' for blob in tops.split()]
    return f'layer {{ name: "{name}" type: "{type_}" {" ".join(blobs)} {more} }}\n'


PARAMETER = "parameter_param { shape { dim: 2 dim: 3 } }"
REFUSED = [
    (
        "a top like another position's bottom", "TEST", layer("e", "Eltwise", "x y", "y"),
        "e (Eltwise): top 0 and bottom 1 are both 'y'; Caffe writes in place only where both have the same "
        "position, so give the top another name",
    ),
    (
        "read twice and shared", "TEST", layer("f", "Flatten", "x", "f") + layer("r", "ReLU", "x", "x"),
        "r (ReLU): top 'x' is written in place, but f reads it too and 'f' shares its memory; Caffe refuses this "
        "(produced by multiple sources), so give the top another name",
    ),
    (
        "another bottom in the same memory", "TEST",
        layer("s", "Split", "x", "a b") + layer("e", "Eltwise", "a b", "a"),
        "e (Eltwise): top 'a' is written in place, but bottoms 'a', 'b' share memory; give the top another name",
    ),
    (
        "a Parameter's blob in training", "TRAIN",
        layer("p", "Parameter", "", "p", PARAMETER) + layer("f", "Flatten", "p", "f") + layer("r", "ReLU", "f", "f"),
        "r (ReLU): top 'f' is written in place, but it is the blob of p (Parameter) itself, so that a pass changes "
        "the weights; give the top another name",
    ),
    (
        "a Parameter's blob that another has", "TEST",
        layer("p", "Parameter", "", "p", PARAMETER + ' param { name: "w" }')
        + layer("q", "Parameter", "", "q", PARAMETER + ' param { name: "w" }') + layer("r", "ReLU", "p", "p"),
        "r (ReLU): top 'p' is written in place, but it is the blob of p (Parameter) itself, so that a pass changes "
        "the weights; give the top another name",
    ),
    (
        "a loss's probabilities in training", "TRAIN",
        layer("l", "SoftmaxWithLoss", "x y", "l p") + layer("r", "ReLU", "p", "p"),
        "r (ReLU): top 'p' is written in place, but it is what the gradient of l (SoftmaxWithLoss) is computed from; "
        "give the top another name",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "text", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(phase, text, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        load_graph(parse_net(INPUT + text), phase=phase)
    assert str(caught.value) == message


OVERWRITING = [
    ("AbsVal", ""), ("Split", ""), ("Flatten", ""), ("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }"),
    ("LRN", ""), ("Normalize", ""), ("Convolution", "convolution_param { num_output: 3 kernel_size: 1 }"),
    ("Deconvolution", "convolution_param { num_output: 3 kernel_size: 1 }"),
    ("Im2col", "convolution_param { kernel_size: 1 }"),
    ("InnerProduct", "inner_product_param { num_output: 60 }"), ("Embed", "embed_param { input_dim: 4 num_output: 2 }"),
    ("Pooling", "pooling_param { kernel_size: 1 }"), ("SPP", "spp_param { pyramid_height: 2 }"),
    ("ArgMax", ""), ("Reduction", ""), ("Tile", "tile_param { tiles: 1 }"), ("Permute", "permute_param { order: 0 }"),
    ("ShuffleChannel", "shuffle_channel_param { group: 3 }"),
]  # fmt: skip
OVERWRITING_TWO = [
    ("Concat", "", ""), ("Crop", "", ""), ("EuclideanLoss", "", ""), ("SoftmaxWithLoss", "", ""), ("Accuracy", "", ""),
    ("HingeLoss", "", ""), ("SigmoidCrossEntropyLoss", "", ""), ("BatchReindex", "", ""), ("Filter", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "bottoms", "more"),
    [(type_, "x", more) for type_, more in OVERWRITING]
    + [(type_, "x y", more) for type_, more, _ in OVERWRITING_TWO],
    ids=[row[0] for row in (*OVERWRITING, *OVERWRITING_TWO)],
)
def test_layers_that_do_not_work_in_place(type_, bottoms, more) -> None:
    with pytest.raises(LayerError) as caught:
        load_net(parse_net(INPUT + layer("a", type_, bottoms, "x", more)))
    assert str(caught.value) == (
        f"a ({type_}): cannot be written in place: Caffe refuses it or computes from overwritten values; "
        "give the top another name"
    )


IN_PLACE = [  # type, further bottoms, fields, what Caffe makes of x and y
    ("ReLU", "", "", lambda x, y: np.maximum(x, 0)),
    ("Softmax", "", "", lambda x, y: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    ("Scale", "y", "scale_param { axis: 0 }", lambda x, y: x * y),
    ("Bias", "y", "bias_param { axis: 0 }", lambda x, y: x + y),
    ("Threshold", "", "threshold_param { threshold: 0.5 }", lambda x, y: (x > 0.5).astype(x.dtype)),
    ("Concat", "", "", lambda x, y: x),
    ("Slice", "", "", lambda x, y: x),
    ("Dropout", "", "", lambda x, y: x),
    ("Eltwise", "y", "", lambda x, y: y),
    ("Eltwise", "y", "eltwise_param { coeff: 3 coeff: -2 }", lambda x, y: -2 * y),
    (
        "Eltwise",
        "y z",
        "eltwise_param { coeff: 3 coeff: -2 coeff: 0.5 }",
        lambda x, y: -2 * y + 0.5 * np.tanh(y),
    ),
    ("Eltwise", "y", "eltwise_param { operation: MAX }", lambda x, y: y),
    ("Eltwise", "y z", "eltwise_param { operation: MAX }", lambda x, y: np.maximum(y, np.tanh(y))),
    ("Eltwise", "y", "eltwise_param { operation: PROD }", lambda x, y: x * y),
]


@pytest.mark.parametrize("use", ["torch", "onnx", "source", "fast"])
@pytest.mark.parametrize(("type_", "bottoms", "more", "formula"), IN_PLACE)
def test_in_place_gives_what_caffe_gives(type_, bottoms, more, formula, use) -> None:
    text = layer("z", "TanH", "y", "z") + layer("c", "Power", "x", "c")
    text += layer("a", type_, f"c {bottoms}", "c", more) + layer("o", "Power", "c", "o")
    net = load_net(parse_net(INPUT + text))
    random = np.random.default_rng(5)
    x, y = (random.standard_normal((2, 3, 4, 5)).astype(np.float32) for _ in range(2))
    inputs = {name: torch.from_numpy({"x": x, "y": y}[name]) for name in net.inputs_for(net.outputs)}
    np.testing.assert_allclose(outputs_of(net, use, inputs)["o"], formula(x, y), rtol=1e-5, atol=1e-6)


def test_the_product_of_overwritten_bottoms_has_no_gradient() -> None:
    text = INPUT + layer("c", "Power", "x", "c")
    text += layer("e", "Eltwise", "c y", "c", "eltwise_param { operation: PROD }")
    with pytest.raises(LayerError, match=r"e \(Eltwise\): cannot be written in place"):
        load_net(parse_net(text), phase="TRAIN")


# ---------------------------------------------------------------------- gradients

GRADIENTS = [  # text, outputs whose gradient is 1, the gradients of x and y
    # Caffe's Split adds the gradients of its tops; the sigmoid's, computed from the ReLU's values, passes by the ReLU.
    (
        "a reader of what a sharer wrote",
        layer("s", "Split", "x", "a b") + layer("r", "ReLU", "a", "a")
        + layer("p", "Power", "b", "p", "power_param { power: 2 }"),
        lambda x, y: ((x > 0) + 2 * np.maximum(x, 0), 0 * y),
    ),
    (
        "a sum in place", layer("e", "Eltwise", "x y", "x") + layer("o", "Power", "x", "o"),
        lambda x, y: (np.ones_like(x), np.ones_like(y)),
    ),
    (
        "coefficients in place", layer("e", "Eltwise", "x y", "x", "eltwise_param { coeff: 3 coeff: -2 }"),
        lambda x, y: (3 * np.ones_like(x), -6 * np.ones_like(y)),
    ),
    # Flatten gives c the gradient memory of f; x keeps the memory that c had before, which nothing fills.
    ("Concat, Flatten", layer("c", "Concat", "x", "c") + layer("f", "Flatten", "c", "f"), lambda x, y: (0 * x, 0 * y)),
    (
        "Reshape, ReLU in place, Flatten",
        layer("c", "Reshape", "x", "c", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }")
        + layer("r", "ReLU", "c", "c") + layer("f", "Flatten", "c", "f"),
        lambda x, y: (0 * x, 0 * y),
    ),
    (
        "Slice, read twice, Flatten",
        layer("c", "Slice", "x", "c") + layer("f", "Flatten", "c", "f") + layer("p", "Power", "c", "p"),
        lambda x, y: (2 * np.ones_like(x), 0 * y),
    ),
    (
        "Flatten, Reshape",
        layer("f", "Flatten", "x", "f")
        + layer("c", "Reshape", "f", "c", "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }"),
        lambda x, y: (np.ones_like(x), 0 * y),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "formula"), [row[1:] for row in GRADIENTS], ids=[row[0] for row in GRADIENTS]
)
def test_gradients(text, formula) -> None:
    net = load_net(parse_net(INPUT + text), phase="TRAIN")
    random = np.random.default_rng(3)
    arrays = [random.standard_normal((2, 3, 4, 5)) for _ in range(2)]
    inputs = {
        name: torch.from_numpy(array).requires_grad_() for name, array in zip("xy", arrays, strict=True)
    }
    outputs = [value for name, value in net(inputs).items() if name != "y" and value.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
    for (name, value), expected in zip(inputs.items(), formula(*arrays), strict=True):
        found = np.zeros_like(expected) if value.grad is None else value.grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


# ---------------------------------------------------------------------- inputs and names


def test_an_input_keeps_its_name_where_a_layer_writes_it() -> None:
    net = load_net(parse_net(INPUT + layer("r", "ReLU", "x", "x") + layer("p", "Power", "x", "o")))
    assert net.inputs == ("x", "y")
    x = torch.randn(2, 3, 4, 5)
    found = net(x=x, y=x, blobs=["x", "o"])
    torch.testing.assert_close(found["x"], x.relu())
    torch.testing.assert_close(found["o"], x.relu())
    assert [entry.name for entry in build_onnx(net, outputs=["o"]).graph.input] == ["x"]


def test_generated_names_never_equal_names_of_the_net() -> None:
    text = INPUT + layer("c", "Power", "x", "a", "power_param { shift: 1 }") + layer("b", "TanH", "x", "a@c")
    text += layer("r", "ReLU", "a", "a") + layer("e", "Eltwise", "a a@c", "o")
    net = load_net(parse_net(text))
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(net(x=x, y=x)["o"], (x + 1).relu() + x.tanh())
    assert list(net.graph.names.items())[2:5] == [
        (("a", "c"), "a@c'"), (("a@c", "b"), "a@c"), (("a", "r"), "a"),
    ]  # fmt: skip


def test_numbering_of_repeated_layers_avoids_existing_names() -> None:
    text = layer("a", "ReLU", "x", "p") + layer("a", "TanH", "x", "q") + layer("a#2", "AbsVal", "x", "s")
    graph = load_graph(parse_net(INPUT + text + layer("", "BNLL", "x", "t") + layer("", "ELU", "x", "u")))
    assert [node.name for node in graph] == ["in", "a", "a#3", "a#2", "", "#2"]
