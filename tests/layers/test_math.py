"""Eltwise, Axpy, Scale, Bias, Reduction, Power, Exp and Log against slow formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients

from ilgnet_repro.errors import LayerError

PROPERTY = settings(max_examples=examples(60), deadline=None)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
COEFFICIENTS = st.sampled_from([1.0, -1.0, 0.5, -0.25, 2.0, 0.0])


@PROPERTY
@given(
    shape=SHAPES,
    count=st.integers(2, 4),
    operation=st.sampled_from(["PROD", "SUM", "MAX"]),
    with_coeff=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_eltwise(shape, count, operation, with_coeff, seed, data) -> None:
    # Small integers, so that there are ties and products with zeros.
    arrays = [np.random.default_rng(seed + i).integers(-2, 3, shape).astype(np.float32) for i in range(count)]
    coeff = [data.draw(COEFFICIENTS) for _ in arrays] if with_coeff and operation == "SUM" else [1.0] * count
    text = " ".join(f"coeff: {c}" for c in coeff) if with_coeff and operation == "SUM" else ""
    diff = draw(seed, *shape)
    top = np.empty(shape, np.float32)
    back = [np.zeros(shape, np.float32) for _ in arrays]
    for place in np.ndindex(*shape):
        values = [float(array[place]) for array in arrays]
        if operation == "SUM":
            top[place] = sum(c * v for c, v in zip(coeff, values, strict=True))
            for gradient, c in zip(back, coeff, strict=True):
                gradient[place] = c * diff[place]
        elif operation == "PROD":
            top[place] = np.prod(values)
            for i, gradient in enumerate(back):
                gradient[place] = diff[place] * np.prod(values[:i] + values[i + 1 :])
        else:
            # Caffe keeps the second of the first two unless the first is greater, then any greater value.
            winner = 0 if values[0] > values[1] else 1
            for i in range(2, count):
                winner = i if values[i] > values[winner] else winner
            top[place] = values[winner]
            back[winner][place] = diff[place]
    net = build("Eltwise", [shape] * count, f"eltwise_param {{ operation: {operation} {text} }}")
    assert_all_uses(net, arrays, [top])
    for found, expected in zip(gradients(net, arrays, diff), back, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "coeff"), [("", 1), ("coeff: 0.625", 0.625), ("operation: SUM coeff: -2", -2)]
)
def test_eltwise_of_one_bottom(text, coeff) -> None:
    x, diff = draw(1, 2, 3, 4, 5), draw(2, 2, 3, 4, 5)
    net = build("Eltwise", [x.shape], f"eltwise_param {{ {text} }}")
    assert_all_uses(net, [x], [coeff * x])
    np.testing.assert_allclose(gradients(net, [x], diff)[0], coeff * diff, rtol=1e-6)
    assert (
        net.layer("op").note == "a sum of one bottom: FlowNet's Caffe scales it by coeff, BVLC's refuses it"
    )


@pytest.mark.parametrize(
    ("text", "base", "scale", "shift"),
    [("", np.e, 1, 0), ("base: 2 scale: 0.5 shift: 3", 2, 0.5, 3), ("shift: -1.5 scale: -2", np.e, -2, -1.5)],
)
def test_exp_max(text, base, scale, shift) -> None:
    x, diff = draw(1, 2, 3, 4, 5), draw(2, 2, 3, 4, 5)
    top = np.empty(x.shape)
    for n, y, z in np.ndindex(2, 4, 5):
        values = [float(v) for v in x[n, :, y, z]]
        top[n, :, y, z] = [base ** (scale * (v - max(values))) * base**shift for v in values]
    net = build("ExpMax", [x.shape], f"expmax_param {{ {text} }}")
    assert_all_uses(net, [x], [top])
    np.testing.assert_allclose(
        gradients(net, [x], diff)[0], top * diff * scale * np.log(base), rtol=1e-4, atol=1e-6
    )


def test_neg_square() -> None:
    x = draw(1, 2, 3, 4, 5)
    net = build("NegSquare", [x.shape])
    assert_all_uses(net, [x], [np.array([-(float(v) ** 2) for v in x.ravel()]).reshape(x.shape)])
    assert not net(in0=torch.from_numpy(x).requires_grad_())["top0"].requires_grad


@pytest.mark.parametrize("stable", ["true", "false"])
def test_the_gradient_of_a_product_is_finite_at_zero_in_both_modes(stable) -> None:
    net = build("Eltwise", [(3,)] * 2, f"eltwise_param {{ operation: PROD stable_prod_grad: {stable} }}")
    x, y = np.array([0, 2, 3], np.float32), np.array([5, 0, 7], np.float32)
    found = gradients(net, [x, y], np.ones(3, np.float32))
    np.testing.assert_array_equal(found, [y, x])


@pytest.mark.parametrize(
    ("factors", "shape"),
    [((2, 3), (2, 3, 4, 5)), ((2, 3, 1, 1), (2, 3, 4, 5)), ((2, 3), (2, 3)), ((2, 3, 1), (2, 3, 4))],
    ids=["N×C", "N×C×1×1", "no places", "one axis of places"],
)
def test_axpy(factors, shape) -> None:
    a, x, y, diff = draw(1, *factors), draw(2, *shape), draw(3, *shape), draw(4, *shape)
    net = build("Axpy", [factors, shape, shape])
    top, back = np.empty(shape), np.zeros((2, 3))
    for place in np.ndindex(*shape):
        factor = a.reshape(2, 3)[place[:2]]
        top[place] = factor * x[place] + y[place]
        back[place[:2]] += diff[place] * x[place]
    assert_all_uses(net, [a, x, y], [top])
    np.testing.assert_allclose(
        gradients(net, [a, x, y], diff)[0], back.reshape(factors), rtol=1e-4, atol=1e-5
    )


@PROPERTY
@given(
    shape=SHAPES,
    learned=st.booleans(),
    with_bias=st.booleans(),
    type_=st.sampled_from(["Scale", "Bias"]),
    to_end=st.booleans(),
    data=st.data(),
)
def test_scale_and_bias(shape, learned, with_bias, type_, to_end, data) -> None:
    rank = len(shape)
    axis = data.draw(st.integers(0, rank - 1))
    count = data.draw(st.integers(0, rank - axis))
    end = rank if to_end else axis + count
    blob_shape = shape[axis:end]
    stated = -1 if to_end else count
    text = f"axis: {data.draw(st.sampled_from([axis, axis - rank]))} num_axes: {stated}"
    text += ' filler { type: "uniform" min: -1 max: 1 }' if learned and blob_shape else ""
    if type_ == "Scale" and with_bias:
        text += " bias_term: true" + (' bias_filler { type: "uniform" min: 2 max: 3 }' if blob_shape else "")
    x, second = draw(1, *shape), draw(2, *blob_shape)
    arrays = [x] if learned else [x, second]
    net = build(type_, [array.shape for array in arrays], f"{type_.lower()}_param {{ {text} }}")
    blobs = [blob.detach().numpy() for blob in net.params.get("op", [])]
    assert [blob.shape for blob in blobs] == [blob_shape] * (learned + (type_ == "Scale" and with_bias))
    given_ = blobs[0] if learned else second
    expected = np.empty(shape)
    for place in np.ndindex(*shape):
        part = place[axis:end] if blob_shape else ()
        if type_ == "Bias":
            expected[place] = x[place] + given_[part]
        else:
            expected[place] = x[place] * given_[part] + (blobs[-1][part] if with_bias else 0)
    assert_all_uses(net, arrays, [expected])


def test_a_scale_without_filler_starts_at_one_and_a_bias_at_zero() -> None:
    scale = build("Scale", [(2, 3)], "scale_param { bias_term: true }").params["op"]
    assert [blob.tolist() for blob in scale] == [[1, 1, 1], [0, 0, 0]]
    assert build("Bias", [(2, 3)]).params["op"][0].tolist() == [0, 0, 0]


@PROPERTY
@given(
    shape=SHAPES,
    operation=st.sampled_from(["SUM", "ASUM", "SUMSQ", "MEAN"]),
    coeff=st.sampled_from([1, -2.5, 0.1]),
    data=st.data(),
)
def test_reduction(shape, operation, coeff, data) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    stated = data.draw(st.sampled_from([axis, axis - len(shape)]))
    x = draw(1, *shape)
    x.flat[0] = 0  # where ASUM has no slope and Caffe's is 0
    top, back = np.zeros(shape[:axis]), np.empty(shape)
    diff = draw(2, *shape[:axis])
    factor = 1 / np.prod(shape[axis:]) if operation == "MEAN" else 1
    for place in np.ndindex(*shape):
        v = float(x[place])
        term, slope = {"ASUM": (abs(v), np.sign(v)), "SUMSQ": (v * v, 2 * v)}.get(
            operation, (v * factor, factor)
        )
        top[place[:axis]] += coeff * term
        back[place] = coeff * slope * diff[place[:axis]]
    params = f"reduction_param {{ operation: {operation} axis: {stated} coeff: {coeff} }}"
    net = build("Reduction", [shape], params)
    assert_all_uses(net, [x], [top])
    np.testing.assert_allclose(gradients(net, [x], diff)[0], back, rtol=1e-4, atol=1e-5)


EACH = {
    "Power cube": ("Power", "power: 3 scale: -0.5 shift: 0.7", lambda x: (0.7 - 0.5 * x) ** 3),
    "Power negative": ("Power", "power: -1 shift: 9", lambda x: 1 / (9 + x)),
    "Power 0": ("Power", "power: 0 scale: 3 shift: 1", lambda x: 1.0),
    "Power identity": ("Power", "", lambda x: x),
    "Exp e": ("Exp", "scale: 0.1 shift: -0.3", lambda x: np.e ** (0.1 * x - 0.3)),
    "Exp 3": ("Exp", "base: 3", lambda x: 3**x),
    "Log e": ("Log", "base: -1 shift: 9", lambda x: np.log(9 + x)),
    "Log 10": ("Log", "base: 10 scale: 2 shift: 9", lambda x: np.log(9 + 2 * x) / np.log(10)),
}


@pytest.mark.parametrize(("type_", "params", "formula"), EACH.values(), ids=EACH)
def test_elementwise(type_, params, formula) -> None:
    x = draw(1, 2, 3, 4)
    net = build(type_, [x.shape], f"{type_.lower()}_param {{ {params} }}")
    expected = np.array([formula(float(value)) for value in x.flat]).reshape(x.shape)
    assert_all_uses(net, [x], [expected])
    step = 1e-6
    slope = [(formula(float(v) + step) - formula(float(v) - step)) / (2 * step) for v in x.flat]
    (found,) = gradients(net, [x], np.ones_like(x))
    np.testing.assert_allclose(found.flatten(), slope, rtol=1e-3, atol=1e-5)


def test_the_power_0_is_1_for_every_value_and_gives_no_gradient() -> None:
    x = np.array([0, np.inf, -np.inf, -3], np.float32)
    net = build("Power", [(4,)], "power_param { power: 0 }")
    assert_all_uses(net, [x], [np.ones(4)])
    np.testing.assert_array_equal(gradients(net, [x], np.ones(4, np.float32))[0], np.zeros(4))


def test_numbers_are_written_as_they_were_in_the_prototxt() -> None:
    from ilgnet_repro.export.source_writer import build_source

    text = build_source(build("Power", [(2, 3)], "power_param { scale: 0.1 shift: -0.3 power: 0.7 }")).text
    assert "top0 = (in0 * 0.1 - 0.3) ** 0.7" in text
    text = build_source(build("Eltwise", [(2,)] * 3, "eltwise_param { coeff: -1 coeff: 0.3 coeff: -2 }")).text
    assert "top0 = -in0 + 0.3 * in1 - 2.0 * in2" in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("type_", ["Power", "Exp", "Log", "Reduction", "Scale", "Bias"])
def test_precision_is_kept(type_, dtype) -> None:
    net = build(type_, [(2, 3)]).to(dtype)
    assert net(in0=torch.ones(2, 3, dtype=dtype))["top0"].dtype == dtype


X = (2, 6, 5, 7)
REFUSED = {
    "Eltwise shapes": (
        "Eltwise",
        [X, (2, 6, 5, 1)],
        "",
        r"\[2, 6, 5, 7\] and \[2, 6, 5, 1\] differ in shape",
    ),
    "Eltwise MAX of one bottom": (
        "Eltwise",
        [X],
        "eltwise_param { operation: MAX }",
        r"has 1 bottoms; it takes 2 or more \(FlowNet's takes 1 for a SUM that is not in place\)",
    ),
    "ExpMax field": (
        "ExpMax",
        [X],
        "expmax_param { power: 2 }",
        r"field expmax_param.power \(line 2, column 76\) is unknown to Caffe and to this package",
    ),
    "ExpMax base": ("ExpMax", [X], "expmax_param { base: 0 }", "base 0 must be over 0, or -1 for e"),
    "ExpMax scale": ("ExpMax", [X], "expmax_param { scale: A }", "expmax_param.scale A must be a number"),
    "ExpMax axes": ("ExpMax", [(6,)], "", "a bottom of 1 axes is not supported; it takes 2 to 4"),
    "NegSquare field": ("NegSquare", [X], "negsquare_param { a: 1 }", "field negsquare_param.a"),
    "Eltwise coeff of PROD": (
        "Eltwise",
        [X, X],
        "eltwise_param { operation: PROD coeff: 1 coeff: 2 }",
        "coeff goes with operation SUM only, not PROD",
    ),
    "Eltwise coeff count": (
        "Eltwise",
        [X, X],
        "eltwise_param { coeff: 2 }",
        "coeff is stated 1 times for 2 bottoms",
    ),
    "Axpy shapes": ("Axpy", [(2, 6), X, (2, 6, 5, 1)], "", "second and third bottoms .* differ in shape"),
    "Axpy factors": ("Axpy", [(2, 5), X, X], "", r"first bottom \[2, 5\] must hold one factor per channel"),
    "Axpy places": (
        "Axpy",
        [(2, 6, 5, 7), X, X],
        "",
        r"first bottom \[2, 6, 5, 7\] must hold one factor per channel",
    ),
    "Scale axis": ("Scale", [X], "scale_param { axis: 4 }", "axis 4 is outside a blob of 4 axes"),
    "Scale num_axes": ("Scale", [X], "scale_param { num_axes: -2 }", "num_axes -2 must be at least 0"),
    "Scale past the end": (
        "Scale",
        [X],
        "scale_param { axis: 2 num_axes: 3 }",
        "axis 2 and num_axes 3 exceed 4 axes",
    ),
    "Scale second bottom": (
        "Scale",
        [X, (5,)],
        "",
        r"second bottom \[5\] does not match \[2, 6, 5, 7\] from axis 1 on",
    ),
    "Scale long second bottom": (
        "Scale",
        [(2, 6), (6, 5)],
        "",
        r"\[6, 5\] does not match \[2, 6\] from axis 1 on",
    ),
    "Bias past the end": (
        "Bias",
        [X],
        "bias_param { axis: -1 num_axes: 2 }",
        "axis 3 and num_axes 2 exceed 4 axes",
    ),
    "Reduction axis": (
        "Reduction",
        [X],
        "reduction_param { axis: -5 }",
        "axis -5 is outside a blob of 4 axes",
    ),
    "Exp base": ("Exp", [X], "exp_param { base: 0 }", "base 0 must be over 0, or -1 for e"),
    "Log base": ("Log", [X], "log_param { base: -2 }", "base -2 must be over 0, or -1 for e"),
    "Log base 1": ("Log", [X], "log_param { base: 1 }", "base 1 has no logarithms"),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(type_, shapes, params, message) -> None:
    with pytest.raises(LayerError, match=message) as caught:
        build(type_, shapes, params)
    assert str(caught.value).startswith(f"op ({type_}): ") and "\n" not in str(caught.value)
