"""Nodes from layers: unique values for in-place tops, Caffe's order of outputs, and layers that form no valid net."""

import dataclasses

import pytest

from ilgnet_repro.caffe.graph import Value
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import GraphError, IlgnetError
from ilgnet_repro.runtime.load import load_net

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'


def layer(name: str, type_: str, bottoms: str = "", tops: str = "") -> str:
    blobs = [f'bottom: "{blob}"' for blob in bottoms.split()] + [f'top: "{blob}"' for blob in tops.split()]
    return f'layer {{ name: "{name}" type: "{type_}" {" ".join(blobs)} }}\n'


def graph(*layers: str, phase: str = "TEST"):
    return build_graph(parse_net(INPUT + "".join(layers)), phase)


def test_in_place_tops_are_unique_and_the_last_writer_has_the_plain_name() -> None:
    made = graph(
        layer("ip", "InnerProduct", "x", "a"), layer("relu", "ReLU", "a", "a"), layer("drop", "Dropout", "a", "a"),
        layer("out", "Power", "a", "b"),
    )  # fmt: skip
    assert [(node.bottoms, node.tops) for node in made] == [
        ((), (("x", "in"),)), ((("x", "in"),), (("a", "ip"),)), ((("a", "ip"),), (("a", "relu"),)),
        ((("a", "relu"),), (("a", "drop"),)), ((("a", "drop"),), (("b", "out"),)),
    ]  # fmt: skip
    assert list(made.names.values()) == ["x", "a@ip", "a@relu", "a", "b"]
    assert made.value("a") == Value("a", "drop") and made.value("a@ip") == Value("a", "ip")
    assert made.node("relu").top_names == ("a",)


def test_a_reader_between_two_writers_reads_the_first() -> None:
    made = graph(layer("p", "Power", "x", "a"), layer("q", "Power", "a", "b"), layer("r", "ReLU", "a", "a"))
    assert made.node("q").bottoms == (Value("a", "p"),)
    assert made.consumers(Value("a", "p")) == (made.node("q"), made.node("r"))


OUTPUTS = [
    ("one", [layer("p", "Power", "x", "out")], ("out",)),
    ("in order of bytes, not of layers", [layer("s", "Slice", "x", "b a Z")], ("Z", "a", "b")),
    (
        "an unread top of several",
        [layer("s", "Slice", "x", "a b"), layer("p", "Power", "a", "c")],
        ("b", "c"),
    ),
    ("in place last", [layer("p", "Power", "x", "a"), layer("r", "ReLU", "a", "a")], ("a",)),
    ("silenced", [layer("s", "Slice", "x", "a b"), layer("q", "Silence", "b", "")], ("a",)),
    ("a loss without a top is no output", [layer("s", "EuclideanLoss", "x x", "")], ()),
]


@pytest.mark.parametrize(
    ("layers", "expected"), [row[1:] for row in OUTPUTS], ids=[row[0] for row in OUTPUTS]
)
def test_outputs(layers, expected) -> None:
    assert graph(*layers).outputs == expected


def test_repeated_layer_names_stay_distinct() -> None:
    made = graph(layer("r", "ReLU", "x", "a"), layer("r", "ReLU", "a", "b"))
    assert [node.name for node in made] == ["in", "r", "r#2"]


def test_nodes_and_graphs_are_frozen() -> None:
    made = graph(layer("r", "ReLU", "x", "a"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.nodes[0].name = "other"


REFUSED = [
    (
        "missing bottom", [layer("r", "ReLU", "y", "a")],
        "r (ReLU): bottom 'y' is written by no layer of this phase; check the name and the include rules, or, if its data "
        "layer was cut off, give its shape (input_shapes={'y': (N, C, H, W)})",
    ),
    (
        "written later", [layer("p", "ReLU", "b", "a"), layer("q", "ReLU", "x", "b")],
        "p (ReLU): bottom 'b' is first written later, by q (ReLU); put that layer before this one, or break the cycle",
    ),
    (
        "cycle", [layer("p", "ReLU", "b", "a"), layer("q", "ReLU", "a", "b")],
        "p (ReLU): bottom 'b' is first written later, by q (ReLU); put that layer before this one, or break the cycle",
    ),
    (
        "in place without a writer", [layer("p", "ReLU", "a", "a")],
        "p (ReLU): bottom 'a' is written only by this layer itself; an in-place layer needs a writer before it",
    ),
    (
        "two writers", [layer("p", "ReLU", "x", "a"), layer("q", "ReLU", "x", "a")],
        "q (ReLU): top 'a' is already written by another layer; give it another name, or name it as bottom too "
        "to write in place",
    ),
    ("twice in one layer", [layer("s", "Slice", "x", "a a")], "s (Slice): top 'a' is written twice by one layer"),
    ("no type", [layer("s", "", "x", "a")], 's: has no type; write type: "..."'),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(layers, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        graph(*layers)
    assert str(caught.value) == message


def test_an_empty_phase_is_refused() -> None:
    text = 'name: "n" layer { name: "x" type: "Input" include { phase: TEST %s } }'
    with pytest.raises(GraphError) as caught:
        build_graph(parse_net(text % ""), "TRAIN")
    assert str(caught.value) == "net 'n' has no layer in phase TRAIN; it has 1 in TEST: choose phase='TEST'"
    with pytest.raises(GraphError) as caught:
        build_graph(parse_net(text % 'stage: "s"'), "TRAIN")
    assert (
        str(caught.value)
        == "net 'n' has no layer in phase TRAIN; check include rules, phase, level and stages"
    )


def test_the_graph_distinguishes_values_from_blobs() -> None:
    """``replaced`` names the value that an in-place layer overwrites, also where a blob's own name has an ``@``."""
    graph = build_graph(
        parse_net("""
            layer { name: "in" type: "Input" top: "x" top: "a@b" }
            layer { name: "r" type: "ReLU" bottom: "x" top: "x" }
            layer { name: "p" type: "Power" bottom: "x" top: "y" }
            layer { name: "s" type: "Sigmoid" bottom: "y" top: "y" }
            layer { name: "q" type: "Power" bottom: "a@b" top: "y@q" }
        """)
    )
    assert graph.names == {
        ("x", "in"): "x", ("a@b", "in"): "a@b", ("x", "r"): "x@r", ("y", "p"): "y@p", ("y", "s"): "y",
        ("y@q", "q"): "y@q",
    }  # fmt: skip
    assert graph.input_value("x") == Value("x", "in") and graph.value("x") == graph.value("x@r") == Value(
        "x", "r"
    )
    assert graph.replaced == {"y@p"}


DENSE = 'inner_product_param { num_output: 2 weight_filler { type: "xavier" } }'
MADE_LAYERS = {
    "the Input layer of net-level inputs": (
        'input: "x" input_dim: 4 input_dim: 3 input_dim: 1 input_dim: 1 '
        f'layer {{ name: "input" type: "InnerProduct" bottom: "x" top: "y" {DENSE} }}',
        {},
        ["input'", "input"],
    ),
    "the Input layer of a DummyData's fed top": (
        'layer { name: "d" type: "DummyData" top: "x" top: "z" dummy_data_param { shape { dim: 4 dim: 3 } } } '
        f'layer {{ name: "d_input" type: "InnerProduct" bottom: "x" top: "y" {DENSE} }}',
        {"x": (5, 3)},
        ["d_input'", "d", "d_input"],
    ),
}


@pytest.mark.parametrize(("text", "shapes", "names"), MADE_LAYERS.values(), ids=MADE_LAYERS)
def test_a_generated_layer_takes_no_name_of_the_net(text: str, shapes: dict, names: list[str]) -> None:
    """Weights are found by name, so the net's own layer keeps it."""
    net = load_net(parse_net(text), input_shapes=shapes)
    assert [node.name for node in net.graph] == names
    assert [tuple(blob.shape) for blob in net.params[names[-1]]] == [(2, 3), (2,)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_module_is_named_like_its_layer_where_that_is_valid(order: int) -> None:
    names = ["a_b", "a.b", "a/b", "_", "", "a.b#2"][::order]
    net = load_net(
        parse_net(INPUT + "".join(layer(name, "ReLU", "x", f"t{i}") for i, name in enumerate(names)))
    )
    keys = {module.node.name: key for key, module in net.layers.named_children()}
    assert {name: key for name, key in keys.items() if name == key} == {
        "in": "in",
        "a_b": "a_b",
        "a/b": "a/b",
        "_": "_",
    }
    assert keys["a.b"] == "a_b_" and keys[""] == "__" and keys["a.b#2"] == "a_b#2"
