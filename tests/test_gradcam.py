"""`grad_cam`: the map of a net whose gradients are known, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT, net_of

from ilgnet_repro.errors import GraphError
from ilgnet_repro.gradcam import grad_cam, spatial_blobs
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.net import CaffeNet

IMAGE = np.random.default_rng(4).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.fixture
def net() -> CaffeNet:
    net = net_of(SMALL_TEXT)
    net.about = replace(net.about, preprocessing=Preprocessing(size=(9, 7), mean_value=(104.0, 117.0, 123.0)))
    return net


def expected(net: CaffeNet, blob: str, index: int, step: float = 0.25) -> np.ndarray:
    """The map by differences: every value of the blob moved, the layers after it (linear, or pools) run again."""
    found = net(net.prepare(IMAGE), blobs=["pool"])["pool"].detach().double().numpy()[0]
    assert blob == "pool"
    matrix = net.params["ip"][0].detach().double().numpy()[index].reshape(found.shape)
    bias = net.params["ip"][1].detach().double().numpy()[index]
    value = (matrix * found).sum() + bias
    slopes = np.zeros_like(found)
    for place in np.ndindex(found.shape):
        moved = found.copy()
        moved[place] += step
        slopes[place] = ((matrix * moved).sum() + bias - value) / step
    channels, height, width = found.shape
    heat = np.zeros((height, width))
    for k in range(channels):
        heat += slopes[k].sum() / (height * width) * found[k]
    return np.maximum(heat, 0)


@pytest.mark.parametrize("index", range(5))
def test_the_map_is_that_of_the_formula_before_softmax(net: CaffeNet, index: int) -> None:
    heat = grad_cam(net, IMAGE, "pool", index=index)
    np.testing.assert_allclose(heat.values, expected(net, "pool", index), rtol=1e-4, atol=1e-4)
    assert (heat.output, heat.index, heat.values.shape) == ("prob", index, (3, 2))


def test_defaults_are_the_last_spatial_blob_and_the_largest_value(net: CaffeNet) -> None:
    with torch.inference_mode():  # as a server may call it
        heat = grad_cam(net, IMAGE)
    values = net(net.prepare(IMAGE))["prob"].flatten()
    assert (heat.blob, heat.index) == ("pool", int(values.argmax()))
    assert heat.score == pytest.approx(float(values.detach().max()))


def test_a_value_that_relu_replaces_has_its_own_map(net: CaffeNet) -> None:
    assert spatial_blobs(net) == ("conv@conv", "conv", "pool")
    shapes = {name: grad_cam(net, IMAGE, name).values.shape for name in spatial_blobs(net)}
    assert shapes == {"conv@conv": (7, 5), "conv": (7, 5), "pool": (3, 2)}


def test_the_net_is_as_before(net: CaffeNet) -> None:
    net.train()
    grad_cam(net, IMAGE)
    assert net.training and all(blob.grad is None for blobs in net.params.values() for blob in blobs)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (IMAGE, {"blob": "poool"}, "net 'small': has no blob 'poool' (did you mean pool?)"),
        (IMAGE, {"blob": "ip"}, "blob 'ip': has shape [1, 5]; a heat map needs channels x height x width"),
        (IMAGE, {"output": "ip"}, "net 'small': has no output 'ip'"),
        (IMAGE, {"index": 5}, "index=5: output 'prob' has 5 values; give one from 0 to 4"),
        (IMAGE, {"index": -1}, "index=-1: output 'prob' has 5 values; give one from 0 to 4"),
        ([IMAGE, IMAGE], {}, "image: 2 images; give one"),
    ],
    ids=["no such blob", "a vector", "no output", "index too large", "negative index", "two images"],
)
def test_refused(net: CaffeNet, image, options, message: str) -> None:
    with pytest.raises(GraphError) as error:
        grad_cam(net, image, **options)
    assert str(error.value).startswith(message)
