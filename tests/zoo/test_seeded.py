"""Seeded weights against the recipe written out for small nets."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from zoo_counter import count

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import WeightsError
from ilgnet_repro.zoo import googlenet
from ilgnet_repro.zoo.seeded import seeded_blobs

GOLDEN = Path(__file__).parents[1] / "golden" / "ilgnet"
SMALL = parse_net(
    'layer { name: "conv" type: "Convolution" } layer { name: "relu" type: "ReLU" } '
    'layer { name: "fc" type: "InnerProduct" } layer { name: "up" type: "Deconvolution" }'
)
SHAPES = {"conv": [(5, 3, 2, 4), (5,)], "fc": [(7, 11), (7,)], "up": [(3, 2, 4, 4)]}


def test_layers_are_in_net_order_with_their_shapes():
    net = googlenet.deploy()
    shapes = count(net)[1]
    first = [(name, [b.shape for b in blobs]) for name, blobs in islice(seeded_blobs(net, shapes), 9)]
    assert first == [(name, shapes[name]) for name in list(shapes)[:9]]


def test_small_net_follows_the_recipe():
    random = np.random.RandomState(3)
    expected = []
    for blobs in SHAPES.values():
        weight = random.standard_normal(blobs[0]).astype(np.float32)
        expected.append(weight * np.float32(np.sqrt(2 / np.prod(blobs[0][1:]))))
        expected += [random.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in blobs[1:]]
    found = dict(seeded_blobs(SMALL, SHAPES, seed=3))
    assert list(found) == ["conv", "fc", "up"]
    for mine, theirs in zip((b for blobs in found.values() for b in blobs), expected, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, theirs)


def test_a_given_bias_replaces_only_the_drawn_bias():
    values = np.loadtxt(GOLDEN / "classifier_bias.txt")
    shapes = {"conv": [(5, 3, 2, 4), (5,)], "fc": [(2, 11), (2,)], "up": [(3, 2, 4, 4)]}
    drawn = dict(seeded_blobs(SMALL, shapes))
    found = dict(seeded_blobs(SMALL, shapes, biases={"fc": values}))
    np.testing.assert_array_equal(found["fc"][1], values.astype(np.float32))
    for layer, index in (("conv", 0), ("conv", 1), ("fc", 0), ("up", 0)):
        np.testing.assert_array_equal(found[layer][index], drawn[layer][index])


REFUSED = {
    "missing": ({"conv": SHAPES["conv"]}, {}, "fc (InnerProduct): 0 blob shapes; "),
    "three_blobs": ({**SHAPES, "conv": [(1,), (1,), (1,)]}, {}, "conv (Convolution): 3 blob shapes; "),
    "bias_length": (SHAPES, {"fc": [1.0, 2.0]}, "fc (InnerProduct): 2 bias values; its bias has shape (7,)"),
    "bias_of_none": (SHAPES, {"up": [1.0]}, "up (Deconvolution): has no bias; remove it from biases"),
    "bias_of_unknown": (SHAPES, {"fc8": [1.0]}, "fc8: bias values are given but the net has no such layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    shapes, biases, message = REFUSED[name]
    with pytest.raises(WeightsError) as error:
        list(seeded_blobs(SMALL, shapes, biases=biases))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
