"""Drawn inputs: the layers that read them determine their values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.runtime.seeded_inputs import draw_inputs


def net_of(inputs: dict[str, tuple[int, ...]], layers: str, phase: str = "TRAIN") -> CaffeNet:
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        f"{' '.join(f'dim: {size}' for size in shape)} }} }} }}\n"
        for name, shape in inputs.items()
    )
    return CaffeNet(build_graph(upgrade_net(parse_net(text + layers), []), phase), seed=1)


def layer(kind: str, bottoms: str, tops: str = "out", param: str = "", name: str = "") -> str:
    words = [f'bottom: "{bottom}"' for bottom in bottoms.split()] + [f'top: "{top}"' for top in tops.split()]
    return f'layer {{ name: "{name or kind}" type: "{kind}" {" ".join(words)} {param} }}\n'


def whole(count: int):
    def check(x: np.ndarray) -> bool:
        return bool((x == np.floor(x)).all() and x.min() >= 0 and x.max() < count and len(np.unique(x)) > 1)

    return check


def between(low: float, high: float):
    return lambda x: bool(low <= x.min() and x.max() <= high and x.std() > 0)


def begins_with(first: float):
    return lambda x: bool((x[0] == first).all() and set(np.unique(x)) == {0, 1})


def regions(images: int, height: float, width: float):
    def check(x: np.ndarray) -> bool:
        number, left, top, right, bottom = x.reshape(-1, 5).T
        inside = (
            (left >= 0) & (left < right) & (right < width) & (top >= 0) & (top < bottom) & (bottom < height)
        )
        return bool(inside.all() and set(number) == set(range(images)))

    return check


# name, inputs, layers, the input looked at, what it must be
CASES = [
    ("Embed", {"x": (3, 7)}, layer("Embed", "x", param="embed_param { num_output: 4 input_dim: 6 }"), "x", whole(6)),
    ("Embed after Reshape and Split", {"x": (2, 21)},
     layer("Reshape", "x", "r", "reshape_param { shape { dim: 7 dim: 6 } }") + layer("Split", "r", "s t")
     + layer("Embed", "t", "out", "embed_param { num_output: 4 input_dim: 6 }")
     + layer("Silence", "s", ""), "x", whole(6)),
    ("BatchReindex", {"x": (4, 3), "i": (9,)}, layer("BatchReindex", "x i"), "i", whole(4)),
    ("Filter", {"x": (8, 3), "i": (8, 1)}, layer("Filter", "x i"), "i", begins_with(1)),
    ("labels", {"x": (9, 5), "l": (9,)}, layer("SoftmaxWithLoss", "x l"), "l", whole(5)),
    ("labels on an axis", {"x": (2, 5, 3, 4), "l": (2, 5, 3)},
     layer("SoftmaxWithLoss", "x l", param="softmax_param { axis: 3 }"), "l", whole(4)),
    ("labels of two readers", {"x": (9, 5), "y": (9, 3), "l": (9,)},
     layer("SoftmaxWithLoss", "x l", "a") + layer("Accuracy", "y l", "b"), "l", whole(3)),
    ("probabilities", {"x": (9, 5), "l": (9,)}, layer("MultinomialLogisticLoss", "x l"), "x", between(0.05, 1)),
    ("hinge", {"x": (9, 5, 2), "l": (9,)}, layer("HingeLoss", "x l"), "l", whole(10)),
    ("targets", {"x": (9, 5), "l": (9, 5)}, layer("SigmoidCrossEntropyLoss", "x l"), "l", between(0, 1)),
    ("pairs", {"x": (9, 5), "y": (9, 5), "l": (9,)}, layer("ContrastiveLoss", "x y l"), "l", whole(2)),
    ("box weights", {"x": (9, 4), "y": (9, 4), "w": (9, 4)}, layer("SmoothL1Loss", "x y w"), "w", between(0, 1)),
    ("marks", {"x": (6, 5, 3), "c": (6, 5)}, layer("LSTM", "x c", param="recurrent_param { num_output: 4 }"),
     "c", begins_with(0)),
    ("ROIPooling", {"x": (2, 3, 5, 8), "r": (7, 5)}, layer("ROIPooling", "x r",
     param="roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.25 }"), "r", regions(2, 20, 32)),
    ("PSROIPooling", {"x": (3, 8, 5, 9), "r": (7, 5, 1, 1)}, layer("PSROIPooling", "x r",
     param="psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.5 }"), "r", regions(3, 10, 18)),
    ("Upsample", {"x": (2, 3, 2, 4), "m": (2, 3, 2, 4)}, layer("Upsample", "x m", param="upsample_param { scale: 2 }"),
     "m", lambda x: whole(32)(x) and all(len(set(plane)) == 8 for plane in x.reshape(6, 8))),
    ("Log", {"x": (2, 3, 4, 5)}, layer("Log", "x", param="log_param { scale: -2 shift: 1 }"), "x",
     lambda x: bool((1 - 2 * x > 0).all())),
    ("square root", {"x": (2, 3, 4, 5)}, layer("Power", "x", param="power_param { power: 0.5 shift: 3 }"), "x",
     lambda x: bool((x + 3 > 0).all())),
    ("inverse", {"x": (2, 3)}, layer("Power", "x", param="power_param { power: -1 }"), "x", between(0.1, 10)),
    ("square", {"x": (2, 3, 4, 5)}, layer("Power", "x", param="power_param { power: 2 }"), "x", between(-120, 135)),
    ("Exp", {"x": (2, 3, 4, 5)}, layer("Exp", "x"), "x", between(-4, 4)),
    ("pixels", {"x": (2, 3, 4, 5)}, layer("ReLU", "x"), "x", lambda x: between(-120, 135)(x) and np.ptp(x) > 150),
    ("features", {"x": (8, 9)}, layer("ReLU", "x"), "x", between(-5, 5)),
    ("one axis", {"x": (40,)}, layer("ReLU", "x"), "x", between(-5, 5)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "layers", "name", "check"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_drawn_input_holds_values_that_its_readers_accept(inputs, layers, name, check) -> None:
    net = net_of(inputs, layers)
    drawn = seeded_inputs(net)
    assert check(drawn[name].numpy()), drawn[name]
    for value in net(drawn).values():
        assert bool(value.isfinite().all())


def test_image_sizes_fit_the_proposals() -> None:
    net = net_of(
        {"s": (1, 18, 3, 5), "d": (1, 36, 3, 5), "im_info": (1, 3)},
        layer("Proposal", "s d im_info", param="proposal_param { feat_stride: 16 min_size: 4 }"),
        "TEST",
    )
    drawn = seeded_inputs(net)
    assert drawn["im_info"].tolist() == [[48, 80, 1]]
    assert between(0, 1)(drawn["s"].numpy())
    regions_found = net(drawn)["out"]
    assert len(regions_found) > 1 and bool(regions_found.isfinite().all())


def test_default_boxes_are_valid_boxes() -> None:
    param = "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.4 } keep_top_k: 9 }"
    net = net_of(
        {"l": (1, 40), "c": (1, 30), "p": (1, 2, 40)}, layer("DetectionOutput", "l c p", param=param)
    )
    boxes, variances = seeded_inputs(net)["p"][0].reshape(2, 10, 4)
    assert bool((boxes[:, :2] < boxes[:, 2:]).all()) and bool((boxes >= 0).all() and (boxes <= 1).all())
    assert bool((variances == torch.tensor([0.1, 0.1, 0.2, 0.2])).all())


def test_a_seed_draws_the_same_values_again() -> None:
    net = net_of({"x": (2, 3, 4, 5), "l": (2,)}, layer("HingeLoss", "x l"))
    plan = plan_net(net.graph)
    first, again, other = (draw_inputs(plan, net.graph, ["x", "l"], seed) for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x"], other["x"])
