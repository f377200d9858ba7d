"""ReLU with limits, of Synopsys' Caffe: rewritten as XLU, or refused by name."""

from __future__ import annotations

import pytest

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } } '
RELU = 'layer {{ name: "r" type: "ReLU" bottom: "x" top: "x" relu_param {{ {} }} }}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("relu6: true", "relu6: true"),
        ("relu6: false maximum: 4", "maximum: 4 relu6: false"),
        ("negative_slope: 0.25 minimum: -1 engine: CAFFE", "negative_slope: 0.25 minimum: -1"),
    ],
    ids=["relu6", "maximum", "minimum"],
)
def test_limits_become_those_of_xlu(text, expected):
    notes: list[str] = []
    net = upgrade_net(parse_net(INPUT + RELU.format(text)), notes)
    wanted = parse_net(f'layer {{ name: "r" type: "XLU" bottom: "x" top: "x" xlu_param {{ {expected} }} }}')
    assert net.layer[1] == wanted.layer[0]
    assert "layer r: ReLU with limits, of Synopsys' Caffe, became XLU" in notes
    assert not audit(parse_net(INPUT + RELU.format(text))).problems


def test_a_relu_without_limits_stays():
    net = upgrade_net(parse_net(INPUT + RELU.format("negative_slope: 0.5")))
    assert net.layer[1].type == "ReLU"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("relu6: 3", "relu6"),
        ("maximum: high", "maximum"),
        ("maximum: 6 input_scale: 0.5", "input_scale"),
        ("upper_limit: 6 maximum: 6", "maximum"),
    ],
    ids=["relu6", "maximum", "quantized", "two forks"],
)
def test_what_is_not_a_limit_is_refused_by_name(text, field):
    problems = audit(parse_net(INPUT + RELU.format(text))).problems
    assert len(problems) == 1
    assert f"field relu_param.{field} (line 1, column" in problems[0]
    assert "is unknown to Caffe and to this package; remove it" in problems[0]
