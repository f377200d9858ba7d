"""The nets of a fine-tuning run: what is kept of a trained net, what the new layer learns, how batches are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT, net_of

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.errors import GraphError
from ilgnet_repro.finetune.nets import (
    Feeding,
    Targets,
    deploy_net,
    make_schedule,
    small_body,
    train_val_net,
    tuned_body,
)
from ilgnet_repro.runtime.net import CaffeNet

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 5 dim: 3 dim: 8 dim: 8 } } }\n'
CONV = 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 7 kernel_size: 3 } }\n'
RELU = 'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }\n'
POOL = 'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE global_pooling: true } }\n'
SOFTMAX = 'layer { name: "s" type: "Softmax" bottom: "%s" top: "s" }\n'
DENSE = (
    'layer { name: "%s" type: "InnerProduct" bottom: "%s" top: "%s" inner_product_param { num_output: 6 } }\n'
)


def layers(text: str) -> list[tuple[str, str]]:
    return [(layer.name, layer.type) for layer in parse_net(text).layer]


BODIES = {
    "dense": (
        INPUT + CONV + RELU + POOL + DENSE % ("d", "p", "d") + SOFTMAX % "d",
        ["c", "r", "p", "d_new"], "d_new", "d_new",
    ),
    "fully convolutional": (
        # As SqueezeNet: the ReLU would only cut off what is below 0.
        INPUT + CONV + RELU + POOL + SOFTMAX % "p",
        ["c_new", "p_new"], "c_new", "p_new",
    ),
    "dense, then activations": (
        INPUT + CONV + DENSE % ("d", "c", "d") + 'layer { name: "a" type: "Sigmoid" bottom: "d" top: "d" }\n',
        ["c", "d_new"], "d_new", "d_new",
    ),
    "on the input itself": (INPUT + DENSE % ("d", "x", "d"), ["d_new"], "d_new", "d_new"),
    "a branch that is cut off": (
        INPUT + CONV + DENSE % ("d", "c", "d") + DENSE % ("e", "d", "e") + SOFTMAX % "e",
        ["c", "d", "e_new"], "e_new", "e_new",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "kept", "last", "top"), BODIES.values(), ids=BODIES)
def test_the_last_layer_is_replaced(text: str, kept: list[str], last: str, top: str) -> None:
    body = tuned_body(net_of(text), 4)
    assert [layer.name for layer in body.layers] == kept
    assert (body.blob, body.shape, body.last, body.top) == ("x", (3, 8, 8), last, top)
    net = CaffeNet(build_graph(deploy_net(body, Targets("classes", 4))), seed=1)
    values = net(torch.zeros(2, 3, 8, 8))["prob"]
    assert values.reshape(2, -1).shape == (2, 4)
    # The new layer draws its weights; in a deploy text fillers are often missing.
    assert float(net.params[last][0].detach().std()) > 0


def test_a_chosen_layer_and_outputs_that_are_left_out() -> None:
    text = INPUT + CONV + DENSE % ("d", "c", "d") + DENSE % ("e", "d", "e") + DENSE % ("f", "d", "f")
    body = tuned_body(net_of(text), 2, "d")
    assert [layer.name for layer in body.layers] == ["c", "d_new"] and body.replaced == "d"


REFUSED = {
    "two outputs": (
        INPUT + CONV + DENSE % ("d", "c", "d") + DENSE % ("e", "c", "e"), None,
        "has 2 outputs (d, e); name the layer to replace as layer=",
    ),
    "two branches": (
        INPUT + CONV + DENSE % ("d", "c", "d") + DENSE % ("e", "c", "e")
        + 'layer { name: "sum" type: "Eltwise" bottom: "d" bottom: "e" top: "sum" }\n', None,
        "sum (Eltwise) joins several branches before a layer with weights is found; name the layer to replace",
    ),
    "no weights": (INPUT + SOFTMAX % "x", None, "has no layer with weights before its output; give another net"),
    "an unknown layer": (INPUT + CONV, "conv", "layer='conv': is not a layer that can be replaced; name one of c"),
    "no image": (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 5 dim: 9 } } }\n' + DENSE % ("d", "x", "d"),
        None, "input 'x' is [5, 9]; only nets of images, N x 3 x H x W, are fine-tuned",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "layer", "message"), REFUSED.values(), ids=REFUSED)
def test_nets_without_a_layer_to_replace(text: str, layer: str | None, message: str) -> None:
    with pytest.raises(GraphError) as error:
        tuned_body(net_of(text), 4, layer)
    assert message in str(error.value), error.value


def train_net(targets: Targets, phase: str = "TRAIN") -> CaffeNet:
    body = tuned_body(net_of(INPUT + CONV + POOL + DENSE % ("d", "p", "d")), targets.outputs)
    text = train_val_net(body, targets, Feeding((104.0, 117.0, 123.0), 0.5, (10, 10)), "out", (5, 4))
    for layer in text.layer:
        if layer.type == "Data":  # fed by the test
            layer.type = "Input"
            layer.ClearField("data_param")
            layer.ClearField("transform_param")
    batch = {"TRAIN": 5, "TEST": 4}[phase]
    label = (batch,) if targets.task == "classes" else (batch, targets.outputs, 1, 1)
    shapes = {"x": (batch, 3, 8, 8), "label": label}
    from ilgnet_repro.runtime.load import load_net

    return load_net(text, phase=phase, input_shapes=shapes, seed=2)


def test_scores_are_learned_in_units_of_their_deviation() -> None:
    targets = Targets("score", 1, mean=5.0, deviation=2.0)
    net = train_net(targets)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32))
    labels = torch.tensor([1.0, 4.0, 6.0, 7.0, 9.0]).reshape(5, 1, 1, 1)
    learned = net({"x": x, "label": labels}, blobs=["d_new"])["d_new"]
    loss = net.loss({"x": x, "label": labels})
    z = (labels.reshape(5, 1) - 5) / 2
    assert torch.allclose(loss, ((learned - z) ** 2).sum() / (2 * 5), rtol=1e-5)
    loss.backward()
    gradient = net.params["d_new"][1].grad
    assert gradient is not None and torch.allclose(gradient, ((learned - z).sum() / 5).reshape(1), rtol=1e-4)


@pytest.mark.parametrize(("phase", "count"), [("TRAIN", 5), ("TEST", 4)])
def test_distributions_are_learned_by_their_cross_entropy(phase: str, count: int) -> None:
    net = train_net(Targets("distribution", 3, (1.0, 2.0, 4.0)), phase)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(count, 3, 8, 8)).astype(np.float32))
    shares = rng.dirichlet((1.0, 2.0, 3.0), count).astype(np.float32)
    found = net({"x": x, "label": torch.from_numpy(shares).reshape(count, 3, 1, 1)}, blobs=["d_new", "loss"])
    logits = found["d_new"].detach().double().numpy()
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert float(found["loss"].detach()) == pytest.approx(-(shares * log_shares).sum(axis=1).mean(), rel=1e-5)


def test_a_distribution_is_deployed_with_its_mean() -> None:
    body = tuned_body(net_of(INPUT + CONV + POOL + DENSE % ("d", "p", "d")), 3)
    net = CaffeNet(build_graph(deploy_net(body, Targets("distribution", 3, (1.0, 2.0, 4.5)))), seed=3)
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 3, 8, 8)).astype(np.float32))
    assert net.outputs == ("prob", "score")
    found = net(x)
    assert torch.allclose(found["score"][:, 0], found["prob"] @ torch.tensor([1.0, 2.0, 4.5]), rtol=1e-6)


def test_how_images_are_fed_is_written_out() -> None:
    body = tuned_body(net_of(SMALL_TEXT), 2)
    text = format_message(
        train_val_net(body, Targets("classes", 2), Feeding((1.5, 2.0, 3.0), 0.25, (16, 16)), "out", (8, 5))
    )
    train, val = parse_net(text).layer[:2]
    assert (train.transform_param.mirror, val.transform_param.mirror) == (True, False)
    for layer, source, batch in ((train, "out/train_lmdb", 8), (val, "out/val_lmdb", 5)):
        assert list(layer.transform_param.mean_value) == [1.5, 2.0, 3.0]
        assert layer.transform_param.scale == 0.25
        assert (layer.data_param.source, layer.data_param.batch_size) == (source, batch)


@pytest.mark.parametrize(
    ("size", "convolutions", "side"), [(32, 3, 4), (48, 4, 3), (64, 4, 4), (80, 4, 5), (128, 5, 4), (1024, 8, 4)]
)  # fmt: skip
def test_the_small_net_ends_in_a_small_map(size: int, convolutions: int, side: int) -> None:
    body = small_body(size, 3)
    net = CaffeNet(build_graph(deploy_net(body, Targets("classes", 3))), seed=1)
    assert sum(layer.type == "Convolution" for layer in body.layers) == convolutions
    assert net.shapes[f"pool{convolutions}"][2:] == (side, side)
    assert net.shapes["prob"] == (1, 3)


SCHEDULES = {  # train, val, batch -> batch, val batch, iterations of an epoch, batches of a test
    "round": (320, 100, 32, (32, 50, 10, 2)),
    "fewer than a batch": (9, 4, 32, (9, 4, 1, 1)),
    "a prime number of val images": (33, 101, 32, (32, 51, 2, 2)),
    "one val image": (3, 1, 2, (2, 1, 2, 1)),
}


@pytest.mark.parametrize(("train", "val", "batch", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(train: int, val: int, batch: int, expected: tuple[int, ...]) -> None:
    found = make_schedule(train, val, 7, batch)
    assert (found.batch, found.val_batch, found.per_epoch, found.test_iter) == expected
    assert found.max_iter == 7 * expected[2]
    assert found.val_batch * found.test_iter >= val  # each val image is tested
