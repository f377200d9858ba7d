"""Fields that are inf, -inf or nan (Caffe takes them, and 1e50 is inf in float32): every form runs and agrees.

Expected values come from NumPy's float32 arithmetic, operation by operation as Caffe's own loops do it.
"""

from __future__ import annotations

import ast
import math
import warnings

import numpy as np
import pytest
from one_layer import build, draw, run, run_onnx, run_source

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.layers.support.base import exact, literal

X, Y = draw(1, 2, 3, 4, 5), draw(2, 2, 3, 4, 5)
F = np.float32
VALUES = {"inf": "inf", "-inf": "-inf", "nan": "nan", "1e50": "1e50", "-1e50": "-1e50"}


def relu(x, slope):
    return np.maximum(x, 0) + slope * np.minimum(x, 0)


# type, parameters with V for the value, how many bottoms, the formula.
FIELDS = {
    "Power scale": ("Power", "power_param { scale: V shift: 1 }", 1, lambda v, x: x * v + 1),
    "Power shift": ("Power", "power_param { shift: V scale: 2 }", 1, lambda v, x: x * 2 + v),
    "Power power": ("Power", "power_param { power: V shift: 5 }", 1, lambda v, x: np.power(x + 5, v)),
    "Power all": ("Power", "power_param { power: 2 shift: V scale: V }", 1, lambda v, x: np.power(x * v + v, F(2))),
    "Exp scale": ("Exp", "exp_param { scale: V }", 1, lambda v, x: np.exp(x * v)),
    "Exp shift": ("Exp", "exp_param { shift: V base: 2 }", 1, lambda v, x: np.power(F(2), x + v)),
    "Log scale": ("Log", "log_param { scale: V }", 1, lambda v, x: np.log(x * v)),
    "Log shift": ("Log", "log_param { shift: V base: 2 }", 1, lambda v, x: np.log(x + v) / np.log(F(2))),
    "Reduction": ("Reduction", "reduction_param { coeff: V axis: 1 }", 1, lambda v, x: x.sum((1, 2, 3)) * v),
    "Eltwise first": ("Eltwise", "eltwise_param { coeff: V coeff: 1 }", 2, lambda v, x, y: v * x + y),
    "Eltwise second": ("Eltwise", "eltwise_param { coeff: 2 coeff: V }", 2, lambda v, x, y: 2 * x + v * y),
    "Threshold": ("Threshold", "threshold_param { threshold: V }", 1, lambda v, x: (x > v).astype(F)),
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("field", FIELDS)
def test_every_form_gives_the_formulas_values(field: str, value: str) -> None:
    type_, params, count, formula = FIELDS[field]
    arrays = [X, Y][:count]
    net = build(type_, [array.shape for array in arrays], params.replace("V", value))
    with np.errstate(all="ignore"):
        expected = formula(F(value), *arrays)
    assert not np.isfinite(expected).all() or field in ("Threshold", "Exp scale", "Exp shift", "Power power")
    for use in (run, run_onnx, run_source):
        np.testing.assert_allclose(use(net, arrays)[0], expected, rtol=1e-5, err_msg=use.__name__)


# Layers whose values at inf and nan are those of the library's function: all forms have to agree.
OTHERS = {
    "ReLU": ("ReLU", "relu_param { negative_slope: V }"),
    "ELU": ("ELU", "elu_param { alpha: V }"),
    "Swish": ("Swish", "swish_param { beta: V }"),
    "MVN": ("MVN", "mvn_param { eps: V }"),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("field", OTHERS)
def test_every_form_agrees(field: str, value: str) -> None:
    type_, params = OTHERS[field]
    net = build(type_, [X.shape], params.replace("V", value))
    expected = run(net, [X])[0]
    for use in (run_onnx, run_source):
        np.testing.assert_allclose(use(net, [X])[0], expected, rtol=1e-5, err_msg=use.__name__)


@pytest.mark.parametrize(
    ("low", "high"), [("-inf", "inf"), ("-1e30", "0.5"), ("-0.5", "inf"), ("inf", "inf")]
)
def test_clip_without_a_limit(low: str, high: str) -> None:
    net = build("Clip", [X.shape], f"clip_param {{ min: {low} max: {high} }}")
    for use in (run, run_onnx, run_source):
        np.testing.assert_array_equal(
            use(net, [X])[0], np.clip(X, F(float(low)), F(float(high))), err_msg=use.__name__
        )


REFUSED = [
    (
        "Clip",
        "clip_param { min: nan max: 1 }",
        "op (Clip): clip_param.min is nan; state a number, or inf for no limit",
    ),
    (
        "Clip",
        "clip_param { min: 0 max: nan }",
        "op (Clip): clip_param.max is nan; state a number, or inf for no limit",
    ),
    ("LRN", "lrn_param { alpha: inf }", "op (LRN): alpha inf must be finite"),
    ("LRN", "lrn_param { beta: -1e50 }", "op (LRN): beta -inf must be finite"),
    ("LRN", "lrn_param { k: nan }", "op (LRN): k nan must be finite"),
    ("Exp", "exp_param { base: inf }", "op (Exp): base inf must be over 0, or -1 for e"),
    ("Log", "log_param { base: nan }", "op (Log): base nan must be over 0, or -1 for e"),
]


@pytest.mark.parametrize(("type_", "params", "message"), REFUSED)
def test_invalid_parameters_are_refused(type_: str, params: str, message: str) -> None:
    with pytest.raises(LayerError) as caught:
        build(type_, [X.shape], params)
    assert str(caught.value) == message


# Values that reach the source only inside tuples or keywords.
SOURCES = {
    "PriorBox variance": (
        "PriorBox",
        ((1, 2, 3, 4), (1, 3, 9, 7)),
        "prior_box_param { min_size: 2 variance: inf }",
    ),
    "PriorBox offset": (
        "PriorBox",
        ((1, 2, 3, 4), (1, 3, 9, 7)),
        "prior_box_param { min_size: 2 offset: nan }",
    ),
    "PriorBox step": ("PriorBox", ((1, 2, 3, 4), (1, 3, 9, 7)), "prior_box_param { min_size: 2 step: 1e50 }"),
    "SmoothL1Loss": ("SmoothL1Loss", ((2, 3), (2, 3)), "smooth_l1_loss_param { sigma: inf }"),
    "ContrastiveLoss": ("ContrastiveLoss", ((2, 3), (2, 3), (2,)), "contrastive_loss_param { margin: inf }"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_the_written_source_runs_and_agrees(case: str) -> None:
    type_, shapes, params = SOURCES[case]
    net = build(type_, shapes, params)
    arrays = [draw(index, *shape) for index, shape in enumerate(shapes)]
    np.testing.assert_allclose(run_source(net, arrays)[0], run(net, arrays)[0], rtol=1e-5)


@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, math.nan, 0.1, (0.7, math.inf, 3), (math.nan,), [1.5, [-math.inf]], None, "MEAN"],
)
def test_a_value_is_written_as_a_separate_expression(value: object) -> None:
    text = exact(value)
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert names <= {"math"}
    np.testing.assert_equal(eval(text, {"math": math}), value)  # noqa: S307
    if isinstance(value, float):
        np.testing.assert_equal(eval(literal(value), {"math": math}), value)  # noqa: S307


def test_the_file_imports_what_it_names() -> None:
    net = build("Power", [X.shape], "power_param { scale: -inf shift: nan }")
    assert "import math" in build_source(net).text
    assert "in0 * -math.inf + math.nan" in build_source(net).text


def test_a_product_of_fields_beyond_float32_is_written_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [literal(value) for value in (1e39, -1e300, 0.1)] == ["math.inf", "-math.inf", "0.1"]
