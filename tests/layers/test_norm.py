"""BatchNorm and MVN against slow formulas, and what they refuse."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import by_channel, check, draw, one_layer, statistics
from one_layer import gradients, layer_text, run

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

# The fields that identify NVIDIA's BatchNorm, and its number of blobs.
NVIDIAS = {
    "scale_bias": ("scale_bias: true", 5),
    "scale_filler": ("scale_filler { value: 1 }", 5),
    "bias_filler": ("bias_filler { value: 0 }", 5),
    "no_scale_bias": ("scale_bias: false", 3),
}


def nvidias_blobs(count: int, third: float) -> list[np.ndarray]:
    mean, variance, scale, bias = (draw(4, seed=seed) for seed in range(4))
    return [mean, variance**2 + 0.1, np.array([third], np.float32), scale, bias][:count]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("third", [0.0, 1.0, 2.5])
def test_the_third_of_nvidias_five_blobs_divides_nothing(shape, third):
    blobs = nvidias_blobs(5, third)
    mean, variance, _, scale, bias = (by_channel(blob, len(shape)) for blob in blobs)
    x = draw(*shape, seed=9)
    net = one_layer('type: "BatchNorm" batch_norm_param { scale_bias: true }', shape, blobs=blobs)
    check(net, x, (x - mean) / np.sqrt(variance + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    assert [blob.requires_grad for blob in net.params["op"]] == [False, False, False, True, True]


def test_the_third_of_nvidias_three_blobs_divides():
    blobs = nvidias_blobs(3, 2.5)
    x = draw(3, 4, 5, 2, seed=9)
    net = one_layer('type: "BatchNorm" batch_norm_param { scale_bias: false eps: 0 }', x.shape, blobs=blobs)
    mean, variance = (by_channel(blob / 2.5, 4) for blob in blobs[:2])
    check(net, x, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "eps"),
    [*((fields, 1e-5) for fields, _ in NVIDIAS.values()), ("", 1e-8)],
    ids=[*NVIDIAS, "bvlc"],
)
def test_nvidias_eps_is_at_least_1e_5(fields, eps):
    count = 5 if "true" in fields or "filler" in fields else 3
    variance = np.array([1e-7, 3e-6], np.float32)
    blobs = [
        np.zeros(2, np.float32),
        variance,
        np.ones(1, np.float32),
        np.ones(2, np.float32),
        np.zeros(2, np.float32),
    ]
    x = draw(3, 2, 4, 5)
    net = one_layer(
        f'type: "BatchNorm" batch_norm_param {{ eps: 1e-8 {fields} }}', x.shape, blobs=blobs[:count]
    )
    check(net, x, x / np.sqrt(by_channel(variance.astype(np.float64), 4) + eps), rtol=1e-3)
    batch = one_layer(f'type: "BatchNorm" batch_norm_param {{ eps: 1e-8 {fields} }}', x.shape, phase="TRAIN")
    small = x * np.float32(1e-3)
    mean, spread = (by_channel(values, 4) for values in statistics(small))
    check(batch, small, (small - mean) / np.sqrt(spread + eps), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stated", ["", "use_global_stats: true", "use_global_stats: false"])
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("fields", [fields for fields, _ in NVIDIAS.values()], ids=NVIDIAS)
def test_only_the_phase_decides_in_nvidias(fields, phase, stated):
    layer = one_layer(
        f'type: "BatchNorm" batch_norm_param {{ {fields} {stated} }}', (3, 4), phase=phase
    ).layer("op")
    assert layer.is_stored is (phase == "TEST")


@pytest.mark.parametrize("count", [3, 5])
def test_nvidias_first_two_passes_copy_the_batchs_statistics(count):
    blobs = nvidias_blobs(count, 2.5)
    fields = f"scale_bias: {str(count == 5).lower()} eps: 0.125 moving_average_fraction: 0.75"
    net = one_layer(
        f'type: "BatchNorm" batch_norm_param {{ {fields} }}', (3, 4, 5, 2), phase="TRAIN", blobs=blobs
    )
    mean = variance = None
    for number in range(4):
        x = draw(3, 4, 5, 2, seed=number)
        run(net, [x])
        new_mean, new_variance = statistics(x)
        new_variance = new_variance + 0.125  # what it stores holds eps
        old = 0.75 if number > 1 else 0.0
        mean = new_mean if mean is None else old * mean + (1 - old) * new_mean
        variance = new_variance if variance is None else old * variance + (1 - old) * new_variance
        found = [blob.detach().numpy() for blob in net.params["op"]]
        np.testing.assert_allclose(found[0], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[1], variance, rtol=1e-4)
        assert found[2].tolist() == [1.0]
    for value, kept in zip(found[3:], blobs[3:], strict=True):
        np.testing.assert_array_equal(value, kept)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        *(
            (
                fields,
                "BatchNorm of NVIDIA's Caffe, by its scale_bias, scale_filler or bias_filler: only the phase decides "
                "which statistics are used, eps is at least 1e-5"
                + (", the third of five blobs is not a divisor" if count == 5 else ""),
            )
            for fields, count in NVIDIAS.values()
        ),
        ("", ""),
    ],
    ids=[*NVIDIAS, "bvlc"],
)
def test_audit_names_the_fork_of_a_batch_norm(fields, note):
    text = layer_text("BatchNorm", [(3, 4)], f"batch_norm_param {{ {fields} }}")
    assert audit(parse_net(text)).layers[1].note == note


def test_fillers_make_five_blobs_too():
    body = 'type: "BatchNorm" batch_norm_param { scale_filler { type: "constant" value: 3 } }'
    blobs = one_layer(body, (2, 4, 5)).params["op"]
    assert [tuple(blob.shape) for blob in blobs] == [(4,), (4,), (1,), (4,), (4,)]
    assert blobs[3].tolist() == [3.0] * 4 and blobs[4].tolist() == [0.0] * 4


def test_batch_norm_of_one_axis_has_one_channel():
    x = draw(6)
    blobs = [np.array([v], np.float32) for v in (4.0, 8.0, 2.0)]
    check(one_layer('type: "BatchNorm"', (6,), blobs=blobs), x, (x - 2) / np.sqrt(4 + 1e-5), rtol=1e-4)
    check(
        one_layer('type: "BatchNorm"', (6,), phase="TRAIN", blobs=blobs),
        x,
        (x - x.mean()) / x.std(),
        rtol=1e-3,
    )


def test_training_updates_the_sums_as_in_caffe():
    x = draw(3, 2, 4, 5)
    net = one_layer(
        'type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.75 }', x.shape, phase="TRAIN"
    )
    mean, variance = statistics(x)
    count = 3 * 4 * 5
    run(net, [x])
    run(net, [x])
    sums = [blob.numpy() for blob in net.params["op"]]
    # twice: s = 0.75 s + new
    np.testing.assert_allclose(sums[2], [1.75])
    np.testing.assert_allclose(sums[0], 1.75 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sums[1], 1.75 * variance * count / (count - 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("phase", "stated", "moves"),
    [
        ("TRAIN", "", True),
        ("TRAIN", "use_global_stats: true", False),
        ("TEST", "use_global_stats: false", True),
        ("TEST", "", False),
    ],
    ids=["train", "train_stored", "test_batch", "test_stored"],
)
def test_a_pass_on_batch_statistics_updates_the_sums_in_either_phase(phase, stated, moves):
    given = [np.zeros(2, np.float32), np.zeros(2, np.float32), np.zeros(1, np.float32)]
    net = one_layer(f'type: "BatchNorm" batch_norm_param {{ {stated} }}', (3, 2, 4), phase=phase, blobs=given)
    run(net, [draw(3, 2, 4)])
    assert net.params["op"][2].item() == float(moves)
    assert [blob.tolist() for blob in given] == [[0, 0], [0, 0], [0]]  # the caller's arrays are not changed


def test_one_value_per_channel_trains_to_zero():
    net = one_layer('type: "BatchNorm"', (1, 3), phase="TRAIN")
    assert run(net, [draw(1, 3)])[0].tolist() == [[0.0] * 3]
    assert torch.isfinite(net.params["op"][1]).all()  # m / (m - 1) is not taken for m = 1


def test_opencv_computes_batch_norm_equally(tmp_path):
    body = 'name: "op" type: "BatchNorm" bottom: "a" top: "top" batch_norm_param { eps: 0.001 }'
    text = f'input: "a" input_shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} layer {{ {body} }}'
    blobs = [draw(3, seed=1), draw(3, seed=2) ** 2 + 0.5, np.array([2.0], np.float32)]
    write_caffemodel(tmp_path / "w.caffemodel", parse_net(text), {"op": blobs})
    other = cv2.dnn.readNetFromCaffe(
        bytearray(text.encode()), bytearray((tmp_path / "w.caffemodel").read_bytes())
    )
    x = draw(2, 3, 4, 5)
    other.setInput(x)
    net = one_layer('type: "BatchNorm" batch_norm_param { eps: 0.001 }', x.shape, blobs=blobs)
    np.testing.assert_allclose(run(net, [x])[0], other.forward(), rtol=1e-4, atol=1e-5)


@settings(max_examples=examples(40), deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    across=st.booleans(),
    variance=st.booleans(),
    eps=st.sampled_from([0.01, 0.5]),
)
def test_mvn_equals_its_formula(shape, across, variance, eps):
    x = draw(*shape)
    rows = x.astype(np.float64).reshape(shape[0], 1 if across or len(shape) == 1 else shape[1], -1)
    expected = rows - rows.mean(2, keepdims=True)
    if variance:
        expected = expected / (rows.std(2, keepdims=True) + eps)
    flags = f"across_channels: {str(across).lower()} normalize_variance: {str(variance).lower()} eps: {eps}"
    # Caffe's top has four axes, whatever the bottom has.
    wanted = expected.reshape(*shape, *[1] * (4 - len(shape)))
    net = one_layer(f'type: "MVN" mvn_param {{ {flags} }}', shape)
    assert net.shapes["top0"] == wanted.shape
    check(net, x, wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 5, 4), (3, 5, 4, 2)], ids=str)
@pytest.mark.parametrize("across", [False, True], ids=["each_channel", "across_channels"])
def test_mvn_gives_readers_four_axes_and_takes_their_gradient(shape, across):
    field = f"across_channels: {str(across).lower()} normalize_variance: false"
    net = one_layer(f'type: "MVN" mvn_param {{ {field} }}', shape)
    wide = (*shape, *[1] * (4 - len(shape)))
    diff = draw(*wide, seed=4)
    axes = (1, 2, 3) if across else (2, 3)
    wanted = diff - diff.mean(axes, keepdims=True)
    (found,) = gradients(net, [draw(*shape)], diff)
    np.testing.assert_allclose(found, wanted.reshape(shape), rtol=1e-4, atol=1e-6)


def test_mvn_of_two_axes_is_read_along_the_third():
    text = layer_text("MVN", [(3, 5)]) + (
        ' layer { name: "sum" type: "Reduction" bottom: "top0" top: "sum"'
        " reduction_param { axis: -2 operation: SUM } }"
    )
    net = CaffeNet(load_graph(parse_net(text)))
    assert net.shapes["sum"] == (3, 5)


def test_mvn_of_a_constant_plane_has_a_finite_gradient():
    leaf = torch.ones(2, 3, 4, 5, requires_grad=True)
    one_layer('type: "MVN"', (2, 3, 4, 5))(in0=leaf)["top0"].sum().backward()
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("MVN", (1, 2, 3, 4, 5), "has 5 axes; it takes 0 to 4"),
        ("BN", (3,), "has 1 axes; it takes 2 to 4"),
    ],
)
def test_other_ranks_are_refused(kind, shape, message):
    body = 'type: "BN" bn_param { frozen: true }' if kind == "BN" else f'type: "{kind}"'
    with pytest.raises(LayerError, match=re.escape(f"op ({kind}): bottom {list(shape)} {message}")):
        one_layer(body, shape)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('type: "BatchNorm"', "top0 = self.op(in0)"),
        ('type: "BatchNorm"', "self.op = nn.BatchNorm2d(3, momentum=0.001, affine=False)"),
        (
            'type: "BatchNorm" batch_norm_param { use_global_stats: true eps: 0.01 }',
            "top0 = F.batch_norm(in0, self.op_mean, self.op_variance, eps=0.01)",
        ),
        ('type: "LRN"', "top0 = lrn_across_channels(in0, 5, 1.0, 0.75, 1.0)"),
        ('type: "BN" bn_param { bn_mode: INFERENCE }', "top0 = in0 * self.op_scale + self.op_shift"),
    ],
    ids=["BatchNorm", "its module", "stored statistics", "LRN", "BN"],
)
def test_source_is_what_a_person_would_write(body, line):
    assert f"        {line}\n" in build_source(one_layer(body, (2, 3, 4, 5))).text


def test_mvn_of_a_scalar_has_four_axes():
    net = one_layer('type: "MVN"', ())
    check(net, np.full((), 3.5, np.float32), np.zeros((1, 1, 1, 1)))
