"""The ranking network of AADB's authors: its layers, its numbers on seeded weights, its score and its mean image."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ilgnet_repro as ir
from ilgnet_repro.aesthetics.aadb import ATTRIBUTES, deploy
from ilgnet_repro.aesthetics.models.attributes import ATTRIBUTES as DATASETS
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.known import assumed
from ilgnet_repro.runtime.plan import plan_net

# Weights and biases of each layer by the paper's sizes: 8 groups of AlexNet, the heads, and the score of all of them.
SIZES = {
    "conv1": 96 * 3 * 11 * 11 + 96,
    "conv2": 256 * 48 * 5 * 5 + 256,
    "conv3": 384 * 256 * 9 + 384,
    "conv4": 384 * 192 * 9 + 384,
    "conv5": 256 * 192 * 9 + 256,
    "fc6": 4096 * 9216 + 4096,
    "fc7": 4096 * 4096 + 4096,
    "fc8new": 512 * 4096 + 512,
    **{f"fc8_{name}": 256 * 4096 + 256 for name in ATTRIBUTES},
    **{f"fc9_{name}": 256 + 1 for name in ATTRIBUTES},
    "fc10_merge": 128 * (512 + 11 * 256) + 128,
    "fc11_score": 128 + 1,
}


def test_the_net_has_the_layers_of_the_release():
    plan = plan_net(build_graph(deploy()))
    found = {name: sum(prod(blob.shape) for blob in blobs) for name, blobs in plan.blobs.items() if blobs}
    assert found == SIZES
    assert sum(SIZES.values()) == 70_932_108
    assert set(plan.graph.outputs) == {"fc11_score", *(f"fc9_{name}" for name in ATTRIBUTES)}
    assert DATASETS["aadb"] == ATTRIBUTES


def test_its_score_is_known_and_its_mean_image_is_asked_for():
    known = assumed(deploy())
    assert known is not None and known.name == "aadb"
    assert (known.score.output, known.score.index) == ("fc11_score", 0)
    assert known.preprocessing is None and "mean_AADB_regression_warp256.binaryproto" in known.note


def test_the_numbers_on_seeded_weights(tmp_path):
    """Against torch's functions, layer by layer: pooling rounds up, LRN divides alpha by its window."""
    net = ir.load_net(deploy(), seed=5)
    generator = torch.Generator().manual_seed(6)
    blobs = {}
    with torch.no_grad():
        for name, values in net.params.items():
            for index, value in enumerate(values):
                fan = value[0].numel() if value.dim() > 1 else 100
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5)
                blobs[name, index] = value.clone()
    x = torch.randn(2, 3, 227, 227, generator=generator) * 50

    def compute(dtype):
        """The outputs, and in float64 the largest value of any layer."""

        def note(value):
            largest.append(float(value.abs().max()))
            return value

        def conv(name, x, **geometry):
            return note(F.conv2d(x, *(blobs[name, index].to(dtype) for index in (0, 1)), **geometry).relu())

        def dense(name, x):
            weight, bias = (blobs[name, index].to(dtype) for index in (0, 1))
            return note(F.linear(x, weight.reshape(weight.shape[-2:]), bias))

        def pool(x):
            return F.max_pool2d(x, 3, 2, ceil_mode=True)

        largest: list[float] = []
        top = F.local_response_norm(pool(conv("conv1", x.to(dtype), stride=4)), 5, 1e-4, 0.75, 1.0)
        top = F.local_response_norm(pool(conv("conv2", top, padding=2, groups=2)), 5, 1e-4, 0.75, 1.0)
        top = conv("conv4", conv("conv3", top, padding=1), padding=1, groups=2)
        top = pool(conv("conv5", top, padding=1, groups=2)).flatten(1)
        top = dense("fc7", dense("fc6", top).relu()).relu()
        heads = {name: dense(f"fc8_{name}", top).relu() for name in ATTRIBUTES}
        outputs = {f"fc9_{name}": dense(f"fc9_{name}", value) for name, value in heads.items()}
        merged = torch.cat([dense("fc8new", top).relu(), *heads.values()], 1)
        return {**outputs, "fc11_score": dense("fc11_score", dense("fc10_merge", merged).relu())}, max(
            largest
        )

    with torch.inference_mode():
        wanted, scale = compute(torch.float64)
        single, _ = compute(torch.float32)
        found = net(x)
    assert found.keys() == wanted.keys()
    # Each output is the small rest of sums of large values, so its error is a few bits of those, in whatever order the
    # sums are taken: torch's own float32 functions are as far from float64.
    apart = [max(float((one[name] - wanted[name]).abs().max()) for name in wanted) for one in (found, single)]
    assert apart[0] <= 2 * apart[1]
    assert apart[0] <= 2e-6 * scale

    path = tmp_path / "initModel.caffemodel"
    ir.save(net, path)
    image = np.random.default_rng(7).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    mean = np.random.default_rng(8).uniform(0, 255, (3, 256, 256)).astype(np.float32)
    how = ir.Preprocessing((227, 227), "crop", (256, 256), mean_image=mean)
    (row,) = ir.score([image], path, preprocessing=how)
    fed = torch.from_numpy((image.transpose(2, 0, 1) - mean)[None, :, 14:241, 14:241].astype(np.float32))
    with torch.inference_mode():
        score = net(fed)["fc11_score"]
    assert row.value == pytest.approx(float(score), rel=1e-4)
    assert row.meaning == "score from 0 to 1"
