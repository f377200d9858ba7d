"""The forks' Normalize in each of its kinds: how text and file determine the kind, formulas, gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layer_nets import by_channel, check, draw, one_layer
from one_layer import assert_all_uses, gradients, layer_text, run

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError, WeightsError
from ilgnet_repro.runtime.load import load_net


def wide(values: np.ndarray) -> np.ndarray:
    """As num x channels x height x width."""
    return values.reshape(*values.shape, *[1] * (4 - values.ndim))


@pytest.mark.parametrize("across", [True, False], ids=["across_spatial", "each_position"])
@pytest.mark.parametrize("shared", [True, False], ids=["one_scale", "a_scale_per_channel"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)], ids=["2d", "4d"])
def test_ssds_equals_its_formula(shape, across, shared):
    x = draw(*shape).astype(np.float64)
    scale = np.float32(2.5).reshape(()) if shared else draw(3, seed=4)
    axes = tuple(range(1, len(shape))) if across else 1
    length = np.sqrt((x**2).sum(axes, keepdims=True) + 1e-10)
    fields = f"across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()}"
    net = one_layer(f'type: "Normalize" norm_param {{ {fields} }}', shape, blobs=[scale])
    by = scale if shared else by_channel(scale, x.ndim)
    check(net, x.astype(np.float32), x / length * by)
    # SSD's gradient has the scale before the sum, where the exact one has it inside.
    diff = draw(*shape, seed=6).astype(np.float64)
    wanted = by * (diff - x * (x * diff).sum(axes, keepdims=True) / length**2) / length
    (found,) = gradients(net, [x.astype(np.float32)], diff.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    of_scale = (x / length * diff).sum(None if shared else tuple(axis for axis in range(x.ndim) if axis != 1))
    np.testing.assert_allclose(net.params["op"][0].grad.numpy(), of_scale, rtol=1e-4, atol=1e-5)


SHAPES = [(3, 5), (3, 5, 4), (3, 5, 4, 2)]


@pytest.mark.parametrize("tops", [1, 2])
@pytest.mark.parametrize("kind", ["L1", "L2"])
@pytest.mark.parametrize("bp_norm", [False, True], ids=["norm_stops", "norm_learns"])
@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d", "4d"])
def test_happynears_equals_its_formula(shape, bp_norm, kind, tops):
    x = draw(*shape)
    x[1, :, ...] = 0  # a row of zeros stays one
    fields = f'normalize_param {{ normalize_type: "{kind}" bp_norm: {str(bp_norm).lower()} }}'
    net = one_layer(f'type: "Normalize" {fields}', shape, tops=tops)
    powers = np.abs(x) if kind == "L1" else x.astype(np.float64) ** 2
    norm = powers.sum(1, keepdims=True) + 1e-6
    norm = norm if kind == "L1" else np.sqrt(norm)
    assert net.params == {}
    assert_all_uses(net, [x], [wide(x / norm), wide(norm)][:tops])

    diffs = [draw(*wide(x).shape, seed=3), draw(*wide(norm).shape, seed=4)][:tops]
    slope = np.sign(x) if kind == "L1" else x / norm  # of the norm
    dy = diffs[0].reshape(x.shape)
    wanted = (dy - slope * (dy * x / norm).sum(1, keepdims=True)) / norm
    if tops == 2 and bp_norm:
        wanted = wanted + slope * diffs[1].reshape(norm.shape)
    outputs = net(in0=(leaf := torch.from_numpy(x).requires_grad_()))
    learning = [
        (top, torch.from_numpy(d))
        for top, d in zip(outputs.values(), diffs, strict=True)
        if top.requires_grad
    ]
    torch.autograd.backward([top for top, _ in learning], [diff for _, diff in learning])
    assert len(learning) == (2 if tops == 2 and bp_norm else 1)
    np.testing.assert_allclose(leaf.grad.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d", "4d"])
def test_yjxiongs_divides_by_the_norm_of_the_whole_item(shape):
    x = draw(*shape)
    length = np.sqrt((x.reshape(3, -1) ** 2).sum(1)).reshape(3, *[1] * (len(shape) - 1))
    net = one_layer('type: "Normalize" normalize_param { across_spatial: true }', shape)
    check(net, x, wide(x / length))


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 1, 1)], ids=["2d", "3d", "4d"])
def test_forks_agree_on_one_position(shape):
    x = draw(*shape)
    net = one_layer('type: "Normalize"', shape)
    assert net.params == {} and net.shapes["top0"] == (3, 5, 1, 1)
    check(net, x, wide(x / np.sqrt((x**2).sum(1, keepdims=True))), rtol=1e-4)


TEXT = layer_text("Normalize", [(2, 3, 4, 5)], "%s") + (
    ' layer { name: "ip" type: "InnerProduct" bottom: "top0" top: "ip" inner_product_param { num_output: 2 } }'
)


def weights(tmp_path, *, scale: bool):
    """A file that holds the dense layer, and with ``scale`` SSD's blob."""
    blobs = {"ip": [draw(2, 60), draw(2)]}
    if scale:
        blobs["op"] = [np.float32(3.0).reshape(())]
    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, parse_net(TEXT % ""), blobs)
    return path


def test_a_blob_in_the_file_shows_ssds(tmp_path):
    path = weights(tmp_path, scale=True)
    net = load_net(parse_net(TEXT % ""), path)
    x = draw(2, 3, 4, 5)
    found = net(in0=torch.from_numpy(x), blobs=["top0"])["top0"].detach().numpy()
    length = np.sqrt((x.reshape(2, -1) ** 2).sum(1)).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(found, 3 * x / length, rtol=1e-5)
    report = audit(parse_net(TEXT % ""), open_caffemodel(path))
    assert report.problems == () and report.layers[1].note == "Normalize of SSD's Caffe: with a learned scale"


IN_DOUBT = (
    "op (Normalize): two forks have layers of this name without fields and blobs, which differ on a bottom of 2x3x4x5; "
    "state normalize_param { across_spatial: false } for the length at each position (happynear) or true for that of "
    "the whole item (yjxiong); a scale in the weights file would show SSD's"
)


@pytest.mark.parametrize("with_file", [False, True], ids=["no_file", "no_blob"])
def test_refused_if_ambiguous(with_file, tmp_path):
    path = weights(tmp_path, scale=False) if with_file else None
    with pytest.raises(LayerError) as caught:
        load_net(parse_net(TEXT % ""), path)
    assert str(caught.value) == IN_DOUBT
    assert audit(parse_net(TEXT % ""), open_caffemodel(path) if path else None).problems[0] == IN_DOUBT


@pytest.mark.parametrize(
    ("stated", "axes"),
    [
        ("normalize_param { across_spatial: false }", 1),
        ("normalize_param { }", 1),
        ("normalize_param { across_spatial: true }", (1, 2, 3)),
    ],
    ids=["each_position", "bare_message", "whole_item"],
)
def test_what_is_stated_decides(stated, axes, tmp_path):
    net = load_net(parse_net(TEXT % stated), weights(tmp_path, scale=False))
    x = draw(2, 3, 4, 5)
    found = net(in0=torch.from_numpy(x), blobs=["top0"])["top0"].detach().numpy()
    np.testing.assert_allclose(found, x / np.sqrt((x**2).sum(axes, keepdims=True)), rtol=1e-4)


def test_ssds_needs_its_blob(tmp_path):
    with pytest.raises(WeightsError, match="holds no weights for op; use the prototxt"):
        load_net(parse_net(TEXT % "norm_param { }"), weights(tmp_path, scale=False))


REFUSED = {
    "both messages": (
        "norm_param { } normalize_param { }",
        1,
        "shows both SSD's layer (norm_param) and happynear's (normalize_param or a second top); keep one",
    ),
    "a norm of SSD's": (
        "norm_param { }",
        2,
        "shows both SSD's layer (norm_param) and happynear's (normalize_param or a second top); keep one",
    ),
    "type": (
        'normalize_param { normalize_type: "L3" }',
        1,
        "normalize_param.normalize_type 'L3' must be L1 or L2",
    ),
    "flag": ("normalize_param { bp_norm: 2 }", 1, "normalize_param.bp_norm '2' must be true or false"),
    "whole item of sums": (
        'normalize_param { across_spatial: true normalize_type: "L1" }',
        1,
        "normalize_param.across_spatial: true goes with one top and normalize_type L2",
    ),
    "whole item with its norm": (
        "normalize_param { across_spatial: true }",
        2,
        "normalize_param.across_spatial: true goes with one top and normalize_type L2",
    ),
}


@pytest.mark.parametrize(("fields", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(fields, tops, message):
    with pytest.raises(LayerError) as caught:
        one_layer(f'type: "Normalize" {fields}', (2, 3, 4, 5), tops=tops)
    assert str(caught.value) == f"op (Normalize): {message}"


@pytest.mark.parametrize("fields", ["", "norm_param { }", "normalize_param { }"])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5, 6)], ids=str)
def test_other_ranks_are_refused(fields, shape):
    with pytest.raises(LayerError) as caught:
        one_layer(f'type: "Normalize" {fields}', shape)
    assert str(caught.value) == f"op (Normalize): bottom {list(shape)} has {len(shape)} axes; it takes 2 to 4"


def test_an_item_of_zeros_stays_zero():
    assert (
        run(one_layer('type: "Normalize"', (2, 3)), [np.zeros((2, 3), np.float32)])[0].tolist()
        == [[[[0.0]]] * 3] * 2
    )
