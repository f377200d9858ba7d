"""The forks' BN in each of its kinds: how the text determines the kind, their formulas, and refusals."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from layer_nets import by_channel, check, draw, one_layer, statistics
from one_layer import assert_all_uses, gradients, layer_text, run

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.load import load_graph, load_net
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.runtime.weights import fit_weights, take_weights

SLOPE = 'slope_filler { type: "constant" value: 1 } bias_filler { type: "constant" value: 0.001 }'
SCALE = "scale_filler { value: 1 } shift_filler { value: 0.5 }"


def bn(fields, rows=0):
    return f'type: "BN" bn_param {{ {fields} }} ' + "param { lr_mult: 1 } " * rows


@pytest.mark.parametrize(
    ("fields", "rows", "phase", "kind", "blobs"),
    [
        (SLOPE + " moving_average: true", 4, "TEST", "stored", 4),
        (SLOPE + " frozen: true momentum: 0.95", 4, "TRAIN", "stored", 4),
        (SLOPE, 0, "TEST", "stored", 4),
        ("frozen: true", 0, "TEST", "stored", 4),
        ("", 4, "TEST", "stored", 4),
        (SCALE + " moving_average: true", 0, "TEST", "stored", 4),
        (SLOPE + " moving_average: false", 2, "TRAIN", "batch", 2),
        (SCALE, 2, "TEST", "batch", 2),
        (SCALE + " bn_mode: LEARN", 0, "TRAIN", "batch", 2),
        ("", 2, "TEST", "batch", 2),
        (SCALE + " bn_mode: INFERENCE", 2, "TEST", "folded", 2),
        ("bn_mode: INFERENCE", 0, "TEST", "folded", 2),
    ],
    ids=[
        "ilgnet_v4",
        "pspnet",
        "slope",
        "frozen",
        "four_rows",
        "scale_average",
        "slope_batch",
        "segnet_learn",
        "segnet_mode",
        "two_rows",
        "segnet_inference",
        "bare_inference",
    ],
)
def test_the_fields_determine_the_bn_kind(fields, rows, phase, kind, blobs):
    net = one_layer(bn(fields, rows), (2, 3, 4, 5), phase=phase)
    assert net.layer("op").kind == kind
    assert len(net.params["op"]) == blobs


@pytest.mark.parametrize(
    ("fields", "rows", "message"),
    [
        ("", 0, "bn_param does not show which fork's BN this is; state slope_filler for 4 blobs"),
        ("eps: 0.001", 0, "bn_param does not show which fork's BN this is"),
        (
            SLOPE + " " + SCALE,
            0,
            "states both slope_filler (slope, bias, mean, variance) and scale_filler (scale,",
        ),
        ("frozen: true bn_mode: INFERENCE", 0, "states both frozen (slope, bias, mean, variance) and bn_"),
        (SLOPE + " moving_average: false", 0, "moving_average: false keeps no statistics for phase TEST"),
        (SLOPE + " fourth_blob: STD", 0, "bn_param.fourth_blob 'STD' must be VARIANCE or INVERSE_STD"),
        (SCALE + " fourth_blob: INVERSE_STD", 0, "bn_param.fourth_blob goes with four blobs"),
    ],
    ids=[
        "nothing",
        "eps_only",
        "both_forks",
        "frozen_and_mode",
        "no_average",
        "bad_flag",
        "flag_of_two",
    ],
)
def test_bn_refuses_what_is_ambiguous(fields, rows, message):
    with pytest.raises(LayerError, match=re.escape(f"op (BN): {message}")):
        one_layer(bn(fields, rows), (2, 3, 4, 5))


def four_blobs():
    slope, bias, mean, variance = (draw(1, 3, seed=seed) for seed in range(4))
    return slope, bias, mean, variance**2 + 0.2


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)], ids=["2d", "4d"])
@pytest.mark.parametrize("inverse", [False, True], ids=["variance", "inverse_std"])
def test_bn_with_stored_statistics(shape, inverse):
    slope, bias, mean, variance = four_blobs()
    fourth = (1 / np.sqrt(variance + 0.001)).astype(np.float32) if inverse else variance
    flag = "fourth_blob: INVERSE_STD" if inverse else ""
    x = draw(*shape, seed=9)
    net = one_layer(bn(f"{SLOPE} eps: 0.001 {flag}"), shape, blobs=[slope, bias, mean, fourth])
    by = [by_channel(values, x.ndim) for values in (slope, bias, mean, variance)]
    check(net, x, (x - by[2]) / np.sqrt(by[3] + 0.001) * by[0] + by[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inverse", [False, True], ids=["variance", "inverse_std"])
def test_bn_training_updates_the_stored_statistics(inverse):
    slope, bias, mean, variance = four_blobs()
    x = draw(2, 3, 4, 5)
    fields = f"{SLOPE} momentum: 0.75 {'fourth_blob: INVERSE_STD' if inverse else ''}"
    given_blobs = [blob.copy() for blob in (slope, bias, mean, variance)]
    net = one_layer(bn(fields), x.shape, phase="TRAIN", blobs=given_blobs)
    found = run(net, [x])[0]
    batch_mean, batch_variance = statistics(x)
    expected = (x - by_channel(batch_mean, 4)) / np.sqrt(by_channel(batch_variance, 4) + 1e-5)
    np.testing.assert_allclose(
        found, expected * by_channel(slope, 4) + by_channel(bias, 4), rtol=1e-4, atol=1e-5
    )
    new = 1 / np.sqrt(batch_variance + 1e-5) if inverse else batch_variance
    moved = [blob.detach().numpy() for blob in net.params["op"]]
    np.testing.assert_allclose(moved[2], 0.75 * mean + 0.25 * batch_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved[3], 0.75 * variance + 0.25 * new, rtol=1e-5)
    np.testing.assert_array_equal(moved[0], slope)


def test_frozen_bn_neither_learns_nor_updates_statistics():
    blobs = list(four_blobs())
    net = one_layer(bn(SLOPE + " frozen: true"), (2, 3, 4, 5), phase="TRAIN", blobs=[b.copy() for b in blobs])
    run(net, [draw(2, 3, 4, 5)])
    for blob, was in zip(net.params["op"], blobs, strict=True):
        assert not blob.requires_grad
        np.testing.assert_array_equal(blob.numpy(), was)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("mode", ["LEARN", "INFERENCE"])
def test_segnets_two_blobs(mode, shape):
    scale, shift = draw(1, 3, 1, 1, seed=1), draw(1, 3, 1, 1, seed=2)
    x = draw(*shape)
    net = one_layer(bn(f"{SCALE} bn_mode: {mode}"), x.shape, blobs=[scale, shift])
    wide = x.reshape(*shape, *[1] * (4 - len(shape)))  # SegNet's top has four axes
    mean, variance = (by_channel(values, 4) for values in statistics(wide))
    normed = (wide - mean) / np.sqrt(variance + 1e-9) if mode == "LEARN" else wide
    assert net.shapes["top0"] == wide.shape
    check(net, x, normed * scale + shift, rtol=1e-4, atol=1e-5)


def test_negative_variances_give_a_warning():
    slope, bias, mean, variance = four_blobs()
    variance[0, 1] = -0.1
    with pytest.warns(
        UserWarning, match=r"op \(BN\): its fourth blob holds negative values.*read as VARIANCE"
    ):
        one_layer(bn(SLOPE), (2, 3, 4, 5), blobs=[slope, bias, mean, variance])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_layer(bn(SLOPE), (2, 3, 4, 5), blobs=list(four_blobs()))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 3, 1, 1)], ids=str)
def test_bn_loads_files_of_any_fork_but_not_of_another_size(shape, tmp_path):
    layer = f'layer {{ name: "op" bottom: "a" top: "top" {bn(SLOPE)} }}'
    text = (
        'layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } } '
        + layer
    )
    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, parse_net(text), {"op": [blob.reshape(shape) for blob in four_blobs()]})
    graph = load_graph(parse_net(text))
    specs = plan_net(graph).blobs
    net = CaffeNet(graph, take_weights(specs, open_caffemodel(path).layers))
    np.testing.assert_array_equal(net.params["op"][2].numpy(), four_blobs()[2])

    write_caffemodel(path, parse_net(text), {"op": [blob.reshape(shape) for blob in four_blobs()[:2]]})
    assert fit_weights(specs, open_caffemodel(path).layers).misshapen == (
        "layer op has 2 blobs in the file and 4 in the net",
    )
    write_caffemodel(path, parse_net(text), {"op": [blob.reshape(-1)[:2] for blob in four_blobs()]})
    assert "layer op, blob 0" in fit_weights(specs, open_caffemodel(path).layers).misshapen[0]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_the_authors_second_net_loads(phase, authors):
    graph = load_graph(authors / "ILGNet_v4.prototxt", phase=phase)
    specs = plan_net(graph).blobs
    normed = [specs[node.name] for node in graph if node.type == "BN"]
    assert [len(blobs) for blobs in normed] == [4] * 5


def bn_file(tmp_path, count):
    text = layer_text("BN", [(2, 3, 4, 5)], "bn_param { eps: 0.001 }")
    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, parse_net(text), {"op": list(four_blobs()[:count])})
    return parse_net(text), path


@pytest.mark.parametrize(("count", "kind"), [(4, "stored"), (2, "batch")])
def test_if_the_text_is_ambiguous_the_files_blobs_determine_the_kind(count, kind, tmp_path):
    text, path = bn_file(tmp_path, count)
    net = load_net(text, path)
    assert (net.layer("op").kind, net.layer("op").eps) == (kind, pytest.approx(0.001))
    assert audit(text, open_caffemodel(path)).problems == ()
    slope, bias, mean, variance = (by_channel(blob, 4) for blob in four_blobs())
    x = draw(2, 3, 4, 5)
    if kind == "batch":
        mean, variance = (by_channel(values, 4) for values in statistics(x))
    check(net, x, (x - mean) / np.sqrt(variance + 0.001) * slope + bias, rtol=1e-4, atol=1e-5)


def test_another_number_of_blobs_decides_nothing(tmp_path):
    text, path = bn_file(tmp_path, 3)
    with pytest.raises(LayerError, match="bn_param does not show which fork's BN this is"):
        load_net(text, path)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_through_stored_statistics(frozen):
    slope, bias, mean, variance = four_blobs()
    x, diff = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=7)
    net = one_layer(
        bn(SLOPE + f" frozen: {str(frozen).lower()}"), x.shape, blobs=[slope, bias, mean, variance]
    )
    (found,) = gradients(net, [x], diff)
    by = [by_channel(values, 4).astype(np.float64) for values in (slope, mean, variance)]
    deviation = np.sqrt(by[2] + 1e-5)
    unit, scaled = (x - by[1]) / deviation, diff * by[0]
    if not frozen:  # the fork's one backward pass, that of batch statistics
        axes = {"axis": (0, 2, 3), "keepdims": True}
        scaled = scaled - scaled.mean(**axes) - unit * (scaled * unit).mean(**axes)
    np.testing.assert_allclose(found, scaled / deviation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [SCALE, "", "bn_mode: LEARN"], ids=["scale", "none", "learn"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)], ids=["2d", "4d"])
def test_three_tops_are_the_batchs_mean_and_biased_variance(fields, shape):
    net = one_layer(bn(fields), shape, tops=3)
    x = draw(*shape)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    scale, shift = (by_channel(blob.detach().numpy(), len(shape)) for blob in net.params["op"])
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    unit = (x - mean) / np.sqrt(variance + 1e-9) * scale + shift
    expected = [
        unit.reshape(*shape, *[1] * (4 - len(shape))),
        *(v.reshape(1, 3, 1, 1) for v in (mean, variance)),
    ]
    assert_all_uses(net, [x], expected)


@pytest.mark.parametrize(
    ("fields", "tops"), [(SLOPE, 3), ("bn_mode: INFERENCE", 3), (SCALE, 2)], ids=["stored", "folded", "two"]
)
def test_other_numbers_of_tops_are_refused(fields, tops):
    message = (
        f"op (BN): has {tops} tops; it takes 1, or 3 (mean and variance) where it uses the batch's statistics"
    )
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(bn(fields), (2, 3, 4, 5), tops=tops)
