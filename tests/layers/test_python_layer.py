"""Layers of type Python: registered by name, never imported; the reader of param_str."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import assert_all_uses, build, draw, gradients, run

from ilgnet_repro.errors import LayerError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.layers.proposal import ProposalLayer
from ilgnet_repro.layers.python_layer import PythonLayer, register_python_layer
from ilgnet_repro.layers.support.base import BlobSpec
from ilgnet_repro.layers.support.param_str import parse_param_str


@register_python_layer("test_layers", "Swap")
class Swap(PythonLayer):
    """Returns its two bottoms in reverse order, the first of them scaled."""

    bottom_count = (2, 2)
    top_count = (2, 2)

    def setup(self):
        self.factor = self.settings.get("factor", 1)
        if self.factor == 0:
            raise self.error("factor must not be 0")

    def reshape(self, bottoms):
        return bottoms[::-1]

    def forward(self, a, b):
        return b * self.factor, a


def python_param(module: str = "test_layers", layer: str = "Swap", param_str: str = "") -> str:
    return f'python_param {{ module: "{module}" layer: "{layer}" param_str: "{param_str}" }}'


def test_a_registered_class_runs_and_learns():
    a, b = draw(1, 2, 3), draw(2, 4, 5)
    net = build("Python", [a.shape, b.shape], python_param(param_str="'factor': 2.5"), tops=2)
    assert net.shapes["top0"] == (4, 5) and isinstance(net.layer("op"), Swap)
    first, second = run(net, [a, b])
    np.testing.assert_array_equal(first, b * np.float32(2.5))
    np.testing.assert_array_equal(second, a)
    diffs = draw(3, 4, 5), draw(4, 2, 3)
    slopes = gradients(net, [a, b], *diffs)
    for slope, wanted in zip(slopes, (diffs[1], diffs[0] * np.float32(2.5)), strict=True):
        assert slope is not None
        np.testing.assert_allclose(slope, wanted, rtol=1e-6)


@register_python_layer("test_layers", "Gains")
class Gains(PythonLayer):
    """Multiplies each column by a learned number, and defines its export."""

    no_onnx = no_source = ""

    def blob_specs(self, bottoms):
        return [BlobSpec("gain", bottoms[0][1:])]

    def forward(self, x):
        return (x * self.blob("gain"),)

    def onnx(self, graph, x):
        return [graph.node("Mul", [x, graph.parameter("gain")])]

    def source(self, code, x):
        return [f"{x} * {code.parameter('gain', self.blob('gain'))}"]


def test_a_registered_class_has_weights_and_exports():
    x, gain = draw(5, 2, 3), draw(6, 3)
    net = build("Python", [x.shape], python_param(layer="Gains"))
    with torch.no_grad():
        net.params["op"][0].copy_(torch.from_numpy(gain))
    assert_all_uses(net, [x], [x * gain])
    assert net.layer("op").plan((4, 7)).blobs == [BlobSpec("gain", (7,))]


def test_the_proposal_layer_is_registered():
    shapes = [(1, 18, 5, 6), (1, 36, 5, 6), (1, 3)]
    params = python_param("rpn.proposal_layer", "ProposalLayer", "'feat_stride': 16")
    layer = build("Python", shapes, params).layer("op")
    assert isinstance(layer, ProposalLayer)
    assert (
        len(layer.proposal_settings.anchors),
        layer.proposal_settings.feat_stride,
        layer.proposal_settings.top_n,
    ) == (9, 16, (6000, 300))


def test_a_later_class_replaces_the_names():
    @register_python_layer("test_layers", "Twice")
    class First(PythonLayer):
        def forward(self, x):
            return (x,)

    @register_python_layer("test_layers", "Twice")
    class Second(PythonLayer):
        def forward(self, x):
            return (2 * x,)

    net = build("Python", [(2, 3)], python_param(layer="Twice"))
    np.testing.assert_array_equal(run(net, [np.ones((2, 3), np.float32)])[0], np.full((2, 3), 2))


def test_a_missing_method_is_reported():
    net = build("Python", [(2, 3), (4, 5)], python_param(), tops=2)
    with pytest.raises(
        LayerError, match="cannot be written as ONNX: its class was written without the method onnx"
    ):
        build_onnx(net)
    with pytest.raises(LayerError, match="cannot be written as Python: its class was written without"):
        build_source(net)


TWO = [(2, 3), (4, 5)]
HEADS = [(1, 18, 5, 6), (1, 36, 5, 6), (1, 3)]
REFUSED = {
    "unknown class": (
        *(TWO, python_param("os", "system"), 1),
        "op (Python): class 'system' of module 'os' is not registered; write it in torch and register it",
    ),
    "nameless": (TWO, "", 1, "class '' of module '' is not registered"),
    "its own refusal": (TWO, python_param(param_str="factor: 0"), 2, "op (Python): factor must not be 0"),
    "bottoms": ([(2, 3)], python_param(), 2, "has 1 bottoms; it takes 2"),
    "param_str": (
        TWO,
        python_param(param_str="factor 0"),
        2,
        "op (Python): param_str: 'factor 0' is not a dict; write key: value",
    ),
    "alias": (
        TWO,
        python_param(param_str="{factor: &x 2, other: *x}"),
        2,
        "op (Python): param_str: line 1, column 23: alias *x is not supported; write its value again",
    ),
    "no stride": (
        *(HEADS, python_param("rpn.proposal_layer", "ProposalLayer"), 1),
        "param_str: feat_stride must be an integer over 0, as in 'feat_stride': 16",
    ),
    "scales": (
        *(HEADS, python_param("rpn.proposal_layer", "ProposalLayer", "feat_stride: 16, scales: [0]"), 1),
        "param_str: scales must be a list of numbers over 0, not [0]",
    ),
    "unknown setting": (
        *(HEADS, python_param("rpn.proposal_layer", "ProposalLayer", "feat_stride: 16, colour: red"), 1),
        "param_str: colour is unknown; known are feat_stride, scales, ratios",
    ),
}


@pytest.mark.parametrize(("shapes", "params", "tops", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(shapes, params, tops, message):
    with pytest.raises(LayerError) as raised:
        build("Python", shapes, params, tops)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_only_its_subclasses_are_registered():
    with pytest.raises(LayerError, match="is not a subclass of PythonLayer; derive it from that"):
        register_python_layer("test_layers", "Module")(torch.nn.Module)  # type: ignore[arg-type]


READ = {
    "nothing": ("", {}),
    "quoted key": ("'feat_stride': 16", {"feat_stride": 16}),
    "several in a row": ("'a': 1, \"b\": -2.5, c: 1e-3", {"a": 1, "b": -2.5, "c": 0.001}),
    "several lines": ("a: 1\nb: two words\n", {"a": 1, "b": "two words"}),
    "braces": ("{'a': 1, 'b': {0}}".replace("{0}", "'x: y'"), {"a": 1, "b": "x: y"}),
    "lists": ("scales: [8, 16, 32]\nnames: ['a', b, ]", {"scales": [8, 16, 32], "names": ["a", "b"]}),
    "empty list": ("a: []", {"a": []}),
    "words": ("a: True, b: no, c: None, d: on", {"a": True, "b": False, "c": None, "d": True}),
    "comment": ("a: 1 # the stride\n# b: 2", {"a": 1}),
    "nothing is evaluated": ("a: 2**3, b: f(x)", {"a": "2**3", "b": "f(x)"}),
    "only a comment": ("# a: 1", {}),
    "no value": ("a:", {"a": None}),
    "nested": ("a: {b: 1, c: [2, [3]]}", {"a": {"b": 1, "c": [2, [3]]}}),
    "downward list": ("a:\n  - 1\n  - 2\nb: 3", {"a": [1, 2], "b": 3}),
    "tuple": ("a: !!python/tuple [1, [2, 3]]", {"a": (1, [2, 3])}),
    "downward tuple": ("a: !!python/tuple\n- 4\n- !!python/tuple [5]", {"a": (4, (5,))}),
    "exponents": ("[1E3, .5e2, -1.e-1, 1e+2, e3, '1e3']", [1000.0, 50.0, -0.1, 100.0, "e3", "1e3"]),
    "integers": ("[-3, +4, 0x1F, 1_000]", [-3, 4, 31, 1000]),
    "words that are text": ("[nonesuch, None of them, y]", ["nonesuch", "None of them", "y"]),
    "an anchor that nobody reads": ("a: &x 1", {"a": 1}),
}


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ)
def test_param_str(text, expected):
    if isinstance(expected, list):
        text, expected = f"a: {text}", {"a": expected}
    found = parse_param_str(text)
    assert found == expected
    assert repr(found) == repr(expected)  # 1 is not 1.0, nor a list a tuple


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
UNREAD = {
    "no key": (": 1", "line 1, column 1: while parsing a block mapping, expected <block end>, but found ':'"),
    "no dict": ("[8, 16]", "'[8, 16]' is not a dict; write key: value"),
    "no space": ("a:1", "'a:1' is not a dict; write key: value"),
    "a number as key": ("1: 2", "the key '1' is not a string; write key: value"),
    "a list as key": ("? [1]\n: 2", "line 1, column 3: while constructing a mapping, found unhashable key"),
    "open list": ("a: 1\nb: [1, 2", "line 2, column 9: while parsing a flow sequence, expected ',' or ']'"),
    "open quote": ("a: 'b", "line 1, column 6: while scanning a quoted scalar, found unexpected end of stream"),
    "open brace": ("{a: 1", "line 1, column 6: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'"),
    "much after": ("{a: 1} b", "line 1, column 8: expected '<document start>', but found '<scalar>'; write key: value"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document in the stream, but found another"),
    "NUL": ("a: '\0'", "character 5 is 0x0; write key: value"),
    "alias": ("a: &x [1]\nb: *x", "line 2, column 4: alias *x is not supported; write its value again"),
    "a billion laughs": (LAUGHS, "line 2, column 8: alias *a is not supported; write its value again"),
    "merged alias": ("a: &x {b: 1}\nc:\n  <<: *x", "line 3, column 7: alias *x is not supported; write its value again"),
    "object": (
        "a: !!python/object/apply:os.system ['x']",
        "line 1, column 4: tag !!python/object/apply:os.system is not supported; "
        "write numbers, text, lists and !!python/tuple [1, 2]",
    ),
    "name": ("a: !!python/name:os.system ''", "line 1, column 4: tag !!python/name:os.system is not supported; write"),
    "own tag": ("a: !mean [1]", "line 1, column 4: tag !mean is not supported; write numbers, text, lists"),
    "a tuple of nothing": ("a: !!python/tuple 3", "line 1, column 4: expected a sequence node, but found scalar"),
    "Python's tuple": ("{a: (1, 2)}", "line 1, column 5: '(1' starts a tuple; write [1, 2] or !!python/tuple [1, 2]"),
    "tag and text": ("a: !!int x", "line 1, column 4: 'x' cannot be read as !!int; write another value"),
    "no truth": ("a: !!bool maybe", "line 1, column 4: 'maybe' cannot be read as !!bool; write another value"),
    "no date": ("a: 2026-13-45", "line 1, column 4: '2026-13-45' cannot be read as !!timestamp; write another value"),
    "digits": (f"a: {'9' * 5_000}", f"line 1, column 4: '{'9' * 20}' cannot be read as !!int; write another value"),
    "depth": (f"a: {'[' * 5_000}", "lists or dicts are nested too deeply; write fewer levels"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), UNREAD.values(), ids=UNREAD)
def test_unreadable_param_str(text, message):
    with pytest.raises(ValueError) as raised:
        parse_param_str(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.sampled_from([*"ab1.-[]{},:'\"# \n!&*?|>%(\t\0", "!!int ", "!!bool ", "<<: ", "!!python/"])
    ).map("".join)
)
def test_any_text_is_read_or_refused(text):
    try:
        found = parse_param_str(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(key, str) for key in found)
