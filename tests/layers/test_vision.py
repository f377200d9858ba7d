"""ROIPooling, PSROIPooling and Proposal against slow formulas, box by box and pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import slow_detection as slow
import torch
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import build, draw, dynamic_shapes, gradients, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError
from ilgnet_repro.layers.proposal import make_anchors, quicksort_order

USES = (run, run_onnx, run_source)


def regions(seed: int, count: int, height: float, width: float, images: int = 2) -> np.ndarray:
    """Regions whose corners may lie outside the image, and some of no size."""
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(-0.2, 1.3, (count, 2)) * width, axis=1)
    y = np.sort(random.uniform(-0.2, 1.3, (count, 2)) * height, axis=1)
    x[0], y[0] = x[0, 0], y[0, 0]
    image = random.integers(0, images, count)
    return np.stack([image, x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


SIZES = st.tuples(st.integers(1, 13), st.integers(1, 13))


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, SIZES, st.sampled_from([1.0, 0.25, 1 / 16, 0.3]), st.integers(0, 999))
def test_roi_pooling(size, pooled, scale, seed):
    x, rois = draw(seed, 2, 3, *size), regions(seed, 7, size[0] / scale, size[1] / scale)
    params = f"roi_pooling_param {{ pooled_h: {pooled[0]} pooled_w: {pooled[1]} spatial_scale: {scale} }}"
    net = build("ROIPooling", [x.shape, rois.shape], params)
    diff = draw(seed + 1, 7, 3, *pooled)
    top, slope = slow.roi_pooling(x, rois, pooled, scale, diff)
    for use in USES:
        np.testing.assert_array_equal(use(net, [x, rois])[0], top, err_msg=use.__name__)
    found, none = gradients(net, [x, rois], diff)
    assert found is not None and none is None
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, st.integers(1, 4), st.sampled_from([1.0, 0.25, 1 / 16, 0.3]), st.integers(0, 999))
def test_psroi_pooling(size, group, scale, seed):
    x, rois = draw(seed, 2, 2 * group**2, *size), regions(seed, 7, size[0] / scale, size[1] / scale)
    params = f"psroi_pooling_param {{ output_dim: 2 group_size: {group} spatial_scale: {scale} }}"
    net = build("PSROIPooling", [x.shape, rois.shape], params)
    diff = draw(seed + 1, 7, 2, group, group)
    top, slope = slow.psroi_pooling(x, rois, 2, group, scale, diff)
    for use in USES:
        np.testing.assert_allclose(use(net, [x, rois])[0], top, rtol=1e-4, atol=1e-5, err_msg=use.__name__)
    found, none = gradients(net, [x, rois], diff)
    assert found is not None and none is None
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


POOLINGS = {
    "ROIPooling": "roi_pooling_param { pooled_h: 2 pooled_w: 3 }",
    "PSROIPooling": "psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 1 }",
}


@pytest.mark.parametrize("type_", POOLINGS)
def test_any_number_of_images_and_regions(type_):
    net = build(type_, [(2, 8, 6, 7), (4, 5)], POOLINGS[type_])
    x, rois = draw(1, 3, 8, 6, 7), regions(2, 9, 6, 7, images=3)
    if type_ == "ROIPooling":
        expected, _ = slow.roi_pooling(x, rois, (2, 3), 1)
    else:
        expected, _ = slow.psroi_pooling(x, rois, 2, 2, 1)
    for use in USES:
        found = use(net, [x, rois])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)
    layer = net.layer("op")
    example = (torch.zeros(2, 8, 6, 7), torch.zeros(4, 5))
    free = tuple({0: torch.export.Dim(name, min=2)} for name in ("images", "regions"))
    exported = torch.export.export(layer, example, dynamic_shapes=dynamic_shapes(layer, free)).module()
    found = exported(torch.from_numpy(x), torch.from_numpy(rois))[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("type_", POOLINGS)
def test_a_region_of_an_unknown_image_is_refused(type_):
    net = build(type_, [(2, 8, 6, 7), (1, 5)], POOLINGS[type_])
    with pytest.raises(LayerError, match="a region's image number 2 is out of range; it must be from 0 to 1"):
        run(net, [draw(1, 2, 8, 6, 7), np.array([[2, 0, 0, 3, 3]], np.float32)])


def test_anchors_are_those_of_the_paper():
    # The table in the comments of Faster R-CNN's generate_anchors, counted there from 1: minus one.
    anchors = make_anchors(16, (0.5, 1, 2), (8, 16, 32))
    assert anchors == (
        (-84, -40, 99, 55),
        (-176, -88, 191, 103),
        (-360, -184, 375, 199),
        (-56, -56, 71, 71),
        (-120, -120, 135, 135),
        (-248, -248, 263, 263),
        (-36, -80, 51, 95),
        (-80, -168, 95, 183),
        (-168, -344, 183, 359),
    )


def network_outputs(seed, anchors, height=5, width=6):
    random = np.random.default_rng(seed)
    scores = random.permutation(2 * anchors * height * width).reshape(1, -1, height, width)
    return (scores / scores.size).astype(np.float32), draw(seed, 1, 4 * anchors, height, width) * np.float32(
        0.3
    )


FIELDS = "feat_stride: 8 base_size: 8 min_size: 4 ratio: 1 ratio: 2 scale: 2 scale: 4 scale: 5"
PROPOSALS = {
    "all": (FIELDS, (6000, 300), 0.7, 4),
    "few before": (f"{FIELDS} pre_nms_topn: 40", (40, 300), 0.7, 4),
    "few after": (f"{FIELDS} pre_nms_topn: 90 post_nms_topn: 7 nms_thresh: 0.4", (90, 7), 0.4, 4),
}


# The factors of each resize: image height, width and R-FCN's single scale, or PVANet's two.
INFOS = {
    "one scale": (40, 48, 1),
    "large scale": (40, 48, 3),
    "scales": (40, 48, 1, 1),
    "unequal": (40, 48, 3, 5),
}


@pytest.mark.parametrize("info", INFOS.values(), ids=INFOS)
@pytest.mark.parametrize(("fields", "top_n", "threshold", "least"), PROPOSALS.values(), ids=PROPOSALS)
def test_proposal(fields, top_n, threshold, least, info):
    scores, deltas = network_outputs(3, 6)
    info = np.array([info], np.float32)
    net = build(
        "Proposal", [scores.shape, deltas.shape, info.shape], f"proposal_param {{ {fields} }}", tops=2
    )
    anchors = make_anchors(8, (1, 2), (2, 4, 5))
    expected = slow.propose(
        *(scores, deltas, info[0], anchors),
        stride=8, top_n=top_n, threshold=threshold, min_size=least, keep_small=True,
    )  # fmt: skip
    for use in USES:
        if use is run_onnx and info.shape[1] == 4 and (np.diff(expected[1]) == 0).any():
            continue  # ONNX has no unstable sort: equal scores stay in the order of the cells
        for found, wanted in zip(use(net, [scores, deltas, info]), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=use.__name__)
    assert len(expected[0]) <= net.shapes["top0"][0]


def test_small_regions_keep_their_position_with_score_0():
    """Every region is smaller than `min_size`; the maximum number is kept (PVANet's recorded case has these fields)."""
    net = build("Proposal", [(1, 4, 2, 3), (1, 8, 2, 3), (1, 4)], "proposal_param { ratio: 1 scale: 1 scale: 1.5 "
                "min_size: 200 post_nms_topn: 5 }", tops=2)  # fmt: skip
    scores, deltas = network_outputs(3, 2, 2, 3)
    info = np.array([[32, 48, 1, 1]], np.float32)
    rois, kept = run(net, [scores, deltas, info])
    assert rois.shape == (5, 5) and kept.tolist() == [0] * 5


def test_order_of_equal_scores_is_that_of_the_sort():
    """In the order of PVANet's `sort_box` swaps; a stable sort would keep rows of equal scores in order."""
    random = np.random.default_rng(0)
    stable = 0
    for _ in range(60):
        scores = random.integers(-6, 9, random.integers(1, 60)).clip(0).astype(np.float32)
        count = int(random.integers(1, len(scores) + 1))
        entries = [(score, row) for row, score in enumerate(scores)]
        slow.unstable_sort(entries, count)
        order = quicksort_order(torch.from_numpy(scores), count)[:count].tolist()
        assert order == [row for _, row in entries][:count]
        stable += order == np.argsort(-scores, kind="stable")[:count].tolist()
    assert stable < 30


def test_proposals_at_another_size():
    net = build("Proposal", [(1, 12, 5, 6), (1, 24, 5, 6), (1, 3)], f"proposal_param {{ {FIELDS} }}")
    scores, deltas = network_outputs(4, 6, 7, 4)
    info = np.array([[56, 32, 1]], np.float32)
    (expected,) = run(net, [scores, deltas, info])
    (found,) = run_onnx(net, [scores, deltas, info], dynamic_size=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_regions_are_pooled():
    """As in Faster R-CNN's net: proposals, whose number is known only at run time, into ROIPooling."""
    from ilgnet_repro.caffe.prototxt import parse_net
    from ilgnet_repro.runtime.load import load_graph
    from ilgnet_repro.runtime.net import CaffeNet

    shapes = {"in0": (1, 12, 5, 6), "in1": (1, 24, 5, 6), "in2": (1, 3), "in3": (1, 2, 10, 12)}
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{'
        f" {' '.join(f'dim: {length}' for length in shape)} }} }} }}"
        for name, shape in shapes.items()
    )
    text += f"""layer {{ name: "proposal" type: "Proposal" proposal_param {{ {FIELDS} }}
        bottom: "in0" bottom: "in1" bottom: "in2" top: "rois" }}
    layer {{ name: "op" type: "ROIPooling" bottom: "in3" bottom: "rois" top: "top0"
        roi_pooling_param {{ pooled_h: 2 pooled_w: 3 spatial_scale: 0.25 }} }}"""
    net = CaffeNet(load_graph(parse_net(text)))
    scores, deltas = network_outputs(3, 6)
    arrays = [scores, deltas, np.array([[40, 48, 1]], np.float32), draw(5, 1, 2, 10, 12)]
    rois, _ = slow.propose(
        scores, deltas, arrays[2][0], make_anchors(8, (1, 2), (2, 4, 5)),
        stride=8, top_n=(6000, 300), threshold=0.7, min_size=4, keep_small=True,
    )  # fmt: skip
    expected, _ = slow.roi_pooling(arrays[3], rois, (2, 3), 0.25)
    for use in USES:
        np.testing.assert_allclose(use(net, arrays)[0], expected, rtol=1e-4, atol=1e-5, err_msg=use.__name__)


MAP, ROIS = (2, 8, 6, 7), (4, 5)
HEADS = [(1, 18, 5, 6), (1, 36, 5, 6), (1, 3)]
REFUSED = {
    "no size": ("ROIPooling", [MAP, ROIS], "", "op (ROIPooling): pooled_h 0 and pooled_w 0 must be over 0"),
    "regions": ("ROIPooling", [MAP, (4, 4)], POOLINGS["ROIPooling"], "regions [4, 4] must be R×5"),
    "map": ("ROIPooling", [(2, 8), ROIS], POOLINGS["ROIPooling"], "bottom [2, 8] must be N×C×H×W"),
    "no group": (
        "PSROIPooling",
        [MAP, ROIS],
        "",
        "output_dim, group_size and spatial_scale must all be stated",
    ),
    "channels": (
        *("PSROIPooling", [(2, 7, 6, 7), ROIS], POOLINGS["PSROIPooling"]),
        "bottom has 7 channels; output_dim × group_size² takes 8",
    ),
    "two images": ("Proposal", [(2, 18, 5, 6), *HEADS[1:]], "", "one image at a time"),
    "scores": ("Proposal", [(1, 17, 5, 6), *HEADS[1:]], "", "scores [1, 17, 5, 6] must have 18 channels"),
    "offsets": ("Proposal", [HEADS[0], (1, 36, 6, 5), (1, 3)], "", "offsets [1, 36, 6, 5] must have 36"),
    "info": ("Proposal", [*HEADS[:2], (1, 2)], "", "must hold an image's height, width and scale"),
    "stride": (
        "Proposal",
        HEADS,
        "proposal_param { feat_stride: 0 }",
        "feat_stride 0 must be an integer",
    ),
    "word": ("Proposal", HEADS, "proposal_param { scale: big }", "proposal_param.scale big is not a number"),
    "ratio": (
        "Proposal",
        HEADS,
        "proposal_param { ratio: 0 }",
        "ratio [0.0] and scale [8, 16, 32] must be over 0",
    ),
    "unknown": ("Proposal", HEADS, "proposal_param { depth: 3 }", "field proposal_param.depth"),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message):
    with pytest.raises(LayerError) as raised:
        build(type_, shapes, params)
    assert message in str(raised.value) and "\n" not in str(raised.value)
