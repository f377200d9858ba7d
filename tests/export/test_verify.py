"""What `--verify` compares: finite values, the positions of all others, and what it reports as not compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ilgnet_repro.cli.main import main
from ilgnet_repro.compare.comparison import Comparison, _row
from ilgnet_repro.export.quantization_deviation import _Tally
from ilgnet_repro.export.verify import compare
from ilgnet_repro.runtime.difference import differ

NAN, INF = np.nan, np.inf
SAME, BEYOND = "at the same positions", "in its shape or in which of its values are finite"

# expected, found, equal, largest, what was not compared
CASES = [
    ("equal", [1, 2], [1, 2], True, 0.0, ()),
    ("within", [1, 1000], [1, 1000.05], True, 0.05, ()),
    ("over", [1, 2], [1, 2.01], False, 0.01, ()),
    ("NaN in the same place", [NAN, 2, 4], [NAN, 2, 4], True, 0.0, (f"b: 1 of 3 values are not finite, {SAME}",)),
    ("beside a NaN", [NAN, 2, 4], [NAN, 2, 5], False, 1.0, (f"b: 1 of 3 values are not finite, {SAME}",)),
    ("NaN in another place", [NAN, 2], [2, NAN], False, INF, ()),
    ("NaN found", [1, 2], [1, NAN], False, INF, ()),
    ("NaN lost", [1, NAN], [1, 2], False, INF, ()),
    ("NaN for an infinity", [INF, 2], [NAN, 2], False, INF, ()),
    ("the same infinities", [INF, -INF, 2], [INF, -INF, 2], True, 0.0, (f"b: 2 of 3 values are not finite, {SAME}",)),
    ("beside an infinity", [INF, 2], [INF, 3], False, 1.0, (f"b: 1 of 2 values are not finite, {SAME}",)),
    ("another sign", [INF, 2], [-INF, 2], False, INF, ()),
    ("all NaN", [NAN, NAN], [NAN, NAN], None, None, ("b: no value is finite",)),
    ("all infinite", [INF, -INF], [INF, -INF], None, None, ("b: no value is finite",)),
    ("no values", [], [], None, None, ("b: no values",)),
    ("another shape", [1, 2], [[1, 2]], False, INF, ()),
    ("a shape that broadcasts", [[1, 1]], [1], False, INF, ()),
    ("fewer rows", [], [1], False, INF, ()),
    ("absent", [1, 2], None, False, INF, ()),
    ("integers", [1, 2], np.array([1, 2], np.int64), True, 0.0, ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "found", "equal", "largest", "left_out"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_outputs(expected, found, equal, largest, left_out) -> None:
    given = {} if found is None else {"b": np.asarray(found)}
    check = compare(Path("x.onnx"), {"b": torch.tensor(expected, dtype=torch.float32)}, given, "")
    assert check.is_equal is equal and check.differs is (equal is False)
    assert check.largest == (None if largest is None else pytest.approx(largest, rel=2e-3))
    assert check.not_compared == left_out
    if largest == INF:
        assert check.how == BEYOND


@pytest.mark.parametrize(  # compare asks only for blobs that both sides have
    ("expected", "found", "equal", "left_out"),
    [(*c[1:4], c[5]) for c in CASES if c[2] is not None],
    ids=[c[0] for c in CASES if c[2] is not None],
)
def test_compare_agrees_only_with_what_it_compared(expected, found, equal, left_out) -> None:
    row = _row("b", np.array(expected, np.float32), np.asarray(found, np.float64), 1e-4)
    assert row.agrees is (equal is True) and row.differs is (equal is False)
    assert [row.not_compared] == [text.removeprefix("b: ") for text in left_out or ("",)]
    assert Comparison("a", "b", "", 1e-4, (row,)).agrees is (equal is True)


def test_the_worst_output_is_the_worst_relative_to_its_size() -> None:
    """A difference of 0.5 is small among values of 10,000, and 0.4 is large among values of 1."""
    expected = {"large": torch.tensor([1e4, 1.0]), "small": torch.tensor([1.0, 0.5])}
    found = {"large": np.array([1e4, 1.5]), "small": np.array([1.0, 0.9])}
    check = compare(Path("x.onnx"), expected, found, "")
    assert (check.blob, check.is_equal) == ("small", False)


def test_an_output_without_a_finite_value_is_reported() -> None:
    expected = {"nan": torch.tensor([NAN]), "b": torch.tensor([1.0])}
    check = compare(Path("x.onnx"), expected, {"nan": np.array([NAN]), "b": np.array([1.0])}, "")
    assert check.is_equal and check.not_compared == ("nan: no value is finite",)
    assert compare(Path("x.onnx"), {}, {}, "").not_compared == ("the net has no outputs",)


def test_the_mean_is_of_what_was_compared() -> None:
    apart = differ(np.array([NAN, 1.0, 2.0]), np.array([NAN, 2.0, 2.0]))
    assert (apart.mean, apart.scale, apart.compared) == (0.5, 2.0, 2)
    assert differ(np.array([NAN, 1.0]), np.array([0.0, 1.0])).mean == INF


@pytest.mark.parametrize(
    ("batches", "largest", "rows", "changed", "left_out"),
    [
        ([([[1.0, 2.0]], [[1.0, 2.5]]), ([[3.0, 1.0]], [[1.0, 3.0]])], 2.0, 2, 1, ""),
        ([([[NAN, NAN]], [[NAN, NAN]])], None, 1, 0, "no value is finite"),
        ([([[1.0, 2.0]], [[1.0, INF]])], INF, 1, 0, ""),
        ([([[1.0], [2.0]], [[1.0]])], INF, 2, 2, ""),  # the number of rows depends on values
        ([(1.5, 1.25)], 0.25, 1, 0, ""),  # a loss
        ([(np.zeros((0, 4)), np.zeros((0, 4)))], None, 0, 0, "no values"),
    ],
    ids=["two batches", "NaN", "overflow", "rows", "scalar", "empty"],
)
def test_the_deviation_of_reduced_precision_weights(batches, largest, rows, changed, left_out) -> None:
    tally = _Tally()
    for wanted, found in batches:
        tally.add(np.asarray(wanted, np.float32), np.asarray(found, np.float32))
    cost = tally.deviation("float16", "b", "")
    assert (cost.largest, cost.rows, cost.changed, cost.not_compared) == (largest, rows, changed, left_out)


NET = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param {{ num_output: 6
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "top" type: "{type}" bottom: "fc" top: "top" }}
"""


@pytest.fixture
def weights(tmp_path):
    """Write a small net with one weight changed; returns its file."""
    from ilgnet_repro.caffe.caffemodel import write_caffemodel
    from ilgnet_repro.caffe.prototxt import parse_net
    from ilgnet_repro.runtime.load import load_net

    def make(type_: str, value: float) -> Path:
        text = tmp_path / "net.prototxt"
        text.write_text(NET.format(type=type_))
        net = load_net(text, seed=3)
        blobs = {"fc": [blob.detach().numpy().copy() for blob in net.params["fc"]]}
        if not np.isfinite(value):
            blobs["fc"][0][0] = value
        write_caffemodel(tmp_path / "net.caffemodel", parse_net(text.read_text()), blobs)
        return tmp_path / "net.caffemodel"

    return make


@pytest.mark.parametrize(
    ("type_", "value", "equal", "said"),
    [
        ("Softmax", 0.0, True, None),
        ("Softmax", NAN, None, "top: no value is finite"),
        ("Log", 0.0, True, r"top: \d+ of 12 values are not finite, at the same positions"),
        ("ReLU", NAN, True, r"top: 2 of 12 values are not finite, at the same positions"),
    ],
    ids=["finite", "all NaN", "logarithms", "a column"],
)
def test_convert_says_what_it_did_not_compare(type_, value, equal, said, weights, capsys, tmp_path) -> None:
    given = ["convert", str(weights(type_, value)), "--to", "onnx,python", "--verify", "--out", str(tmp_path)]
    assert main([*given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    for check in report["verified"]:
        assert check["equal"] is equal and (check["largest"] is None) is (equal is None)
        assert bool(check["not_compared"]) is (said is not None)
        assert said is None or re.fullmatch(said, check["not_compared"][0])
    assert main(given) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert ("not compared" in out) is (said is not None) and "-1 " not in out


def test_nets_that_return_nan_do_not_agree(weights, capsys, tmp_path) -> None:
    path = weights("Softmax", NAN)
    assert main(["convert", str(path), "--to", "onnx", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["compare", str(path), str(tmp_path / "net.onnx"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert not found["agrees"] and found["first_mismatch"] is None
    assert main(["compare", str(path), str(tmp_path / "net.onnx")]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "1 of 2 blobs were not compared, such as top: no value is finite; give other inputs with --inputs"
        in out
    )


CAPTIONS = """
input: "cont" input_shape { dim: 4 dim: 2 }
input: "words" input_shape { dim: 4 dim: 2 }
layer { name: "embed" type: "Embed" bottom: "words" top: "embed"
  embed_param { input_dim: 9 num_output: 3 weight_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "lstm" type: "LSTM" bottom: "embed" bottom: "cont" top: "lstm"
  recurrent_param { num_output: 5 weight_filler { type: "uniform" min: -1 max: 1 } } }
"""


def test_every_format_gets_the_inputs_the_net_accepts(tmp_path, capsys) -> None:
    """The net's text determines its inputs, also in files that contain the text."""
    from ilgnet_repro.caffe.caffemodel import write_caffemodel
    from ilgnet_repro.caffe.prototxt import parse_net
    from ilgnet_repro.runtime.load import load_net

    (tmp_path / "net.prototxt").write_text(CAPTIONS)
    net = load_net(tmp_path / "net.prototxt", seed=3)
    blobs = {name: [blob.detach().numpy() for blob in own] for name, own in net.params.items()}
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, parse_net(CAPTIONS), blobs)
    assert (
        main(["convert", str(path), "--to", "safetensors,onnx,python", "--verify", "--out", str(tmp_path)])
        == 0
    )
    for first, second in (("onnx", "onnx"), ("onnx", "safetensors"), ("caffemodel", "onnx")):
        assert main(["compare", str(tmp_path / f"net.{first}"), str(tmp_path / f"net.{second}")]) == 0
    assert "index" not in capsys.readouterr().err
