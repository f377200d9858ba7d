"""Fields of forks: kept with path, text and position; written back under their names."""

from __future__ import annotations

import pytest

from ilgnet_repro.caffe.prototxt import format_message, parse_net, parse_solver
from ilgnet_repro.errors import ParseError

UNKNOWN_FIELDS = {
    "scalar": ("layer {\n  colour: 3\n}", [("colour", "3", 2, 3)]),
    "string as written": ("layer { a: 'x' \"y\" }", [("a", "'x' \"y\"", 1, 9)]),
    "negative": ("layer { a: - inf }", [("a", "-inf", 1, 9)]),
    "list": ("layer { a: [1, two] }", [("a", "1", 1, 9), ("a", "two", 1, 9)]),
    "nested": (
        "layer { new_param { a: 1\n b < c: true > } }",
        [("new_param.a", "1", 1, 21), ("new_param.b.c", "true", 2, 6)],
    ),
    "in a known message": (
        "layer { convolution_param { num_output: 5 weird: 2 } }",
        [("convolution_param.weird", "2", 1, 43)],
    ),
    "in a repeated message": (
        "layer { include { phase: TEST } include { fog: 1 } }",
        [("include[1].fog", "1", 1, 43)],
    ),
    "empty message": ("layer { a {} }", [("a", "{}", 1, 9)]),
    "empty list": ("layer { a: [] }", [("a", "[]", 1, 9)]),
    "list of messages": ("layer { a: [{b: 1}, {b: 2}] }", [("a.b", "1", 1, 14), ("a.b", "2", 1, 22)]),
    "group and colon": ("layer { a: { b: 1 } }", [("a.b", "1", 1, 14)]),
    "the name of our own field": ("layer { fork_field { path: 1 } }", [("fork_field.path", "1", 1, 22)]),
}


@pytest.mark.parametrize(("text", "expected"), UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS)
def test_kept(text, expected):
    net = parse_net(text)
    assert [(f.path, f.text, f.line, f.column) for f in net.layer[0].fork_field] == expected
    again = parse_net(format_message(net))
    assert [(f.path, f.text) for f in again.layer[0].fork_field] == [row[:2] for row in expected]
    assert format_message(again) == format_message(net)


def test_written_inside_the_known_message():
    text = (
        'layer {\n  name: "c"\n  convolution_param {\n    num_output: 5\n    weird: 2\n  }\n  other: 1\n}\n'
    )
    assert format_message(parse_net(text)) == text


def test_of_net_and_solver():
    net = parse_net('mirror_stage: true state { level: 1 fog: "x" }')
    assert [(f.path, f.text) for f in net.fork_field] == [("mirror_stage", "true"), ("state.fog", '"x"')]
    solver = parse_solver('base_lr: 0.1 ap_version: "11point"')
    assert [(f.path, f.text) for f in solver.fork_field] == [("ap_version", '"11point"')]


def test_type_of_a_v1_fork_is_kept():
    net = parse_net('layers { name: "b" type: BN bn_param { bn_mode: INFERENCE } }')
    assert [(f.path, f.text) for f in net.layers[0].fork_field] == [
        ("type", "BN"),
        ("bn_param.bn_mode", "INFERENCE"),
    ]
    assert not net.layers[0].HasField("type")


REFUSED = {
    "no colon": ("layer { a 3 }", "1:11: expected : after a, found 3; write a: VALUE"),
    "no value": ("layer { a: }", "1:12: expected a value for a, found }; write one"),
    "too many": ("layer { " + "a:1 " * 100_001 + "}", "more or longer unknown fields than any net has"),
    "too long a path": (
        "layer { " + ("a" * 250 + "{") * 5 + "b: 1" + "}" * 6,
        "more or longer unknown fields",
    ),
    "too deep": ("layer {" + "a{" * 200, "nested deeper than 100 brackets"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(text, message):
    with pytest.raises(ParseError) as caught:
        parse_net(text)
    assert message in str(caught.value)
