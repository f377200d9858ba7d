"""Include and exclude rules: which layers a state includes, as in Caffe's FilterNet."""

import pytest

from ilgnet_repro.caffe.phase_rules import is_included, net_state
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import GraphError

CASES = [
    ("no rule", "", "TEST", 0, (), True),
    ("include this phase", "include { phase: TEST }", "TEST", 0, (), True),
    ("include another phase", "include { phase: TRAIN }", "TEST", 0, (), False),
    ("any of two includes", "include { phase: TRAIN } include { phase: TEST }", "TEST", 0, (), True),
    ("exclude this phase", "exclude { phase: TEST }", "TEST", 0, (), False),
    ("exclude another phase", "exclude { phase: TRAIN }", "TEST", 0, (), True),
    ("any of two excludes", "exclude { phase: TRAIN } exclude { min_level: 1 }", "TEST", 2, (), False),
    ("least level reached", "include { min_level: 2 }", "TEST", 2, (), True),
    ("least level missed", "include { min_level: 2 }", "TEST", 1, (), False),
    ("greatest level kept", "include { max_level: 2 }", "TEST", 2, (), True),
    ("greatest level passed", "include { max_level: 2 }", "TEST", 3, (), False),
    ("level below zero", "include { max_level: -1 }", "TEST", -1, (), True),
    ("stage held", 'include { stage: "a" }', "TEST", 0, ("a", "b"), True),
    ("stage lacking", 'include { stage: "a" }', "TEST", 0, ("b",), False),
    ("both stages wanted", 'include { stage: "a" stage: "b" }', "TEST", 0, ("a",), False),
    ("unwanted stage absent", 'include { not_stage: "a" }', "TEST", 0, ("b",), True),
    ("unwanted stage held", 'include { not_stage: "a" }', "TEST", 0, ("a",), False),
    ("all conditions of a rule", 'include { phase: TEST min_level: 1 stage: "a" }', "TEST", 1, ("a",), True),
    ("one condition fails", 'include { phase: TEST min_level: 1 stage: "a" }', "TRAIN", 1, ("a",), False),
]


@pytest.mark.parametrize(
    ("rules", "phase", "level", "stages", "expected"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_rules(rules, phase, level, stages, expected) -> None:
    layer = parse_net(f'layer {{ name: "x" type: "ReLU" {rules} }}').layer[0]
    assert is_included(layer, net_state(phase, level, stages)) is expected


@pytest.mark.parametrize(
    ("text", "phase", "message"),
    [
        pytest.param(
            "include { phase: TEST } exclude { phase: TRAIN }", "TEST",
            "x (ReLU): has both include and exclude rules; Caffe takes only one kind", id="both kinds",
        ),
        pytest.param("", "DEPLOY", "phase 'DEPLOY' is unknown; use TRAIN or TEST", id="unknown phase"),
    ],
)  # fmt: skip
def test_refused(text, phase, message) -> None:
    layer = parse_net(f'layer {{ name: "x" type: "ReLU" {text} }}').layer[0]
    with pytest.raises(GraphError) as caught:
        is_included(layer, net_state(phase))
    assert str(caught.value) == message
