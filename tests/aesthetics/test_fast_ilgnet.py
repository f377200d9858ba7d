"""ILGNet's fast path on the recorded images: within 0.005 of Caffe's probabilities."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from golden_cases import FOLDER
from places import SHARED

from ilgnet_repro.aesthetics import ilgnet
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.engines.fast import fast
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import read_mean
from ilgnet_repro.reading.transforms import Transform
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.zoo.seeded import seeded_blobs

fast_net = partial(fast, engine="torch")

GOLDEN = FOLDER.parent / "ilgnet"
MEAN = SHARED / "ilgnet" / "mean" / "AVA2_mean.binaryproto"
HIGH = "loss1/loss"


@pytest.fixture(scope="module")
def net() -> CaffeNet:
    text = ilgnet.deploy()
    graph = build_graph(text)
    shapes = {name: [spec.shape for spec in specs] for name, specs in plan_net(graph).blobs.items()}
    biases = {"loss1/classifier_cjy": np.loadtxt(GOLDEN / "classifier_bias.txt")}
    return CaffeNet(graph, dict(seeded_blobs(text, shapes, biases=biases)))


@pytest.mark.parametrize(
    ("precision", "most"), [("float32", 1e-5), ("float16", 1e-5), ("bfloat16", 0.005), ("int8", 0.005)]
)
def test_probabilities(net: CaffeNet, precision: str, most: float) -> None:
    fast = fast_net(net, precision)
    with np.load(GOLDEN / "blobs.npz") as recorded:
        images = [recorded[f"in/{number}"].reshape(1, 3, 227, 227) for number in (0, 1)]
        expected = [recorded[f"sample/{number}/{HIGH}"] for number in (0, 1)]
    for image, probabilities in zip(images, expected, strict=True):
        found = fast(data=torch.from_numpy(image))[HIGH][0]
        np.testing.assert_allclose(found, probabilities, rtol=0, atol=most)
    # Three of one image, one of the other: a batch gives the results of single images.
    batch = fast(data=torch.from_numpy(np.concatenate([images[0]] * 3 + [images[1]])))[HIGH]
    np.testing.assert_allclose(batch, np.stack([expected[0]] * 3 + [expected[1]]), rtol=0, atol=most)


@pytest.mark.skipif(not MEAN.is_file(), reason="needs ../shared/ilgnet, the authors' mean file")
@pytest.mark.parametrize(("precision", "most"), [("float32", 2e-4), ("float16", 0.005)])
def test_all_hundred_recorded_probabilities(net: CaffeNet, precision: str, most: float) -> None:
    fast = fast_net(net, precision)
    transform = Transform(crop_size=227, mean=read_mean(MEAN))
    images = [row.image()[0] for row in LmdbReader(GOLDEN / "val_lmdb")]
    with np.load(GOLDEN / "blobs.npz") as recorded:
        expected = recorded["high_probability"]
    for start in (*range(0, 96, 16), 96):
        batch = torch.from_numpy(transform.batch(np.stack(images[start : start + 16])))
        found = fast(data=batch)[HIGH][:, 1]
        np.testing.assert_allclose(found, expected[start : start + 16], rtol=0, atol=most)
