"""BatchNorm of NVIDIA's Caffe by its files: DIGITS' order of blobs, and factors that its releases wrote."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from wire_bytes import chunk, layer, shape

CHANNELS, EPS = 3, 1e-4
RNG = np.random.default_rng(11)
SCALE, BIAS, MEAN = (RNG.standard_normal(CHANNELS).astype(np.float32) for _ in range(3))
VARIANCE = RNG.uniform(0.5, 2, CHANNELS).astype(np.float32)
TEXT = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: [2, 3, 5, 4] }} }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "bn" batch_norm_param {{ eps: 1e-4 {} }} }}
"""
FILLERS = 'scale_filler { type: "constant" value: 1 } bias_filler { type: "constant" value: 0 }'


def net_of(folder: Path, fields: str, *blobs: tuple[np.ndarray, tuple[int, ...]]):
    """Load a net whose file holds these values in these shapes."""
    coded = [chunk(5, np.float32(values).tobytes()) + shape(*dims) for values, dims in blobs]
    (folder / "n.caffemodel").write_bytes(layer("bn", *coded, kind="BatchNorm"))
    (folder / "n.prototxt").write_text(TEXT.format(fields))
    return ir.load(folder / "n.caffemodel")


def check(net) -> None:
    x = np.random.default_rng(2).standard_normal((2, CHANNELS, 5, 4)).astype(np.float32)
    mean, variance, scale, bias = (one[:, None, None] for one in (MEAN, VARIANCE, SCALE, BIAS))
    expected = (x - mean) / np.sqrt(variance + EPS) * scale + bias
    np.testing.assert_allclose(net(x=torch.from_numpy(x))["bn"].detach().numpy(), expected, atol=1e-5)


FOUR = (1, CHANNELS, 1, 1)
# NVIDIA's Caffe 0.15 (DIGITS), where the fifth is reserved, and 0.16.
ORDERS = {
    "0.15": ((SCALE, FOUR), (BIAS, FOUR), (MEAN, FOUR), (VARIANCE, FOUR), (np.ones(1), (1,))),
    "0.15, all of one shape": ((SCALE, FOUR), (BIAS, FOUR), (MEAN, FOUR), (VARIANCE, FOUR), (np.zeros(CHANNELS), FOUR)),
    "0.16": ((MEAN, (3,)), (VARIANCE, (3,)), (np.zeros(1), (1,)), (SCALE, (3,)), (BIAS, (3,))),
}  # fmt: skip


@pytest.mark.parametrize("blobs", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(
    "fields", [FILLERS, "scale_bias: true", ""], ids=["fillers", "scale_bias", "no field"]
)
def test_five_blobs_in_either_order(tmp_path, fields, blobs) -> None:
    """A text of 0.15 need not state a filler: its layer always has five blobs, which the file shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = net_of(tmp_path, fields, *blobs)
    check(net)
    ir.save(net, tmp_path / "again.caffemodel")
    check(ir.load(tmp_path / "again.caffemodel"))
    assert [blob.shape for blob in open_caffemodel(tmp_path / "n.caffemodel").layers[0].blobs] == [
        *((CHANNELS,), (CHANNELS,), (1,), (CHANNELS,), (CHANNELS,))
    ]


def test_other_layers_and_counts_keep_their_order(tmp_path) -> None:
    blobs = [chunk(5, values.tobytes()) + shape(*FOUR) for values in (SCALE, BIAS, MEAN, VARIANCE)]
    (tmp_path / "n").write_bytes(
        layer("a", *blobs, blobs[0], kind="BN") + layer("b", *blobs, kind="BatchNorm")
    )
    assert [blob.shape for one in open_caffemodel(tmp_path / "n").layers for blob in one.blobs] == [FOUR] * 9


ZERO = (
    "bn (BatchNorm): its scale factor is 0 and its means are not; Caffe takes mean and variance as 0 then, NVIDIA's "
    "Caffe, which wrote such files in 2017, as they are stored: set the factor to 1 for its numbers"
)
INTEL = "bn (BatchNorm): the third of its five blobs is 250; NVIDIA's Caffe, as here, does not divide by it, Intel's does"
WARNED = {
    "zero": ("", ((MEAN, (3,)), (VARIANCE, (3,)), (np.zeros(1), (1,))), ZERO),
    "five of Intel's": ("", (*ORDERS["0.16"][:2], (np.full(1, 250), (1,)), *ORDERS["0.16"][3:]), INTEL),
}


@pytest.mark.parametrize(("fields", "blobs", "message"), WARNED.values(), ids=WARNED)
def test_a_factor_that_two_forks_read_differently_is_warned_of(tmp_path, fields, blobs, message) -> None:
    with pytest.warns(UserWarning) as caught:
        net_of(tmp_path, fields, *blobs)
    assert message in [str(one.message) for one in caught]


def test_zeros_as_caffe_initializes_them_are_not_warned_of(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net_of(tmp_path, "", (np.zeros(3), (3,)), (np.zeros(3), (3,)), (np.zeros(1), (1,)))
