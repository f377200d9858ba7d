"""RNN and LSTM in files: a sequence in two pieces, its streams alone, and Caffe's recorded numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from golden_cases import read_case, tolerance
from small_nets import net_of

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.to_python import load_module
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.python_names import class_name

CASES = ("LSTM-basic", "LSTM-static", "RNN-basic")
SUFFIXES = (".onnx", ".pt2", ".py", ".safetensors", ".caffemodel")


def recorded(name: str, folder: Path, steps: int) -> CaffeNet:
    """A recorded net for so many steps."""
    case = read_case(name)
    net = case.net(folder)
    shapes = {"x": (steps, 2, 5), "cont": (steps, 2)}
    return CaffeNet(
        net.plan.at(shapes), {key: [b.detach().numpy() for b in blobs] for key, blobs in net.params.items()}
    )


def opened(path: Path, net: CaffeNet):
    """A written file as a function from inputs by name to outputs by name."""
    if path.suffix == ".py":
        module = load_module(path, path.with_name(f"{path.stem}.weights.safetensors"), class_name(net.name))
        return lambda given: module(**given)
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda given: module(**given)
    return ir.load(
        path, **({"prototxt": path.with_suffix(".prototxt")} if path.suffix == ".caffemodel" else {})
    )


def initial(net: CaffeNet) -> dict[str, torch.Tensor]:
    states = ("h", "c") if net.graph.node("op").type == "LSTM" else ("h",)
    return {f"op_{state}_0": torch.zeros(1, 2, 3) for state in states}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(name, suffix) for name in CASES for suffix in SUFFIXES if suffix != ".pt2" or name == "LSTM-static"],
)
def test_a_sequence_in_two_pieces_is_the_sequence(name, suffix, tmp_path) -> None:
    case, net = read_case(name), recorded(name, tmp_path, steps=2)
    path = tmp_path / f"net{suffix}"
    ir.save(net, path, states=True)
    run = opened(path, net)
    states, found = initial(net), []
    for piece in (slice(0, 2), slice(2, 4)):
        given = {
            key: torch.from_numpy(value[piece] if key in ("x", "cont") else value)
            for key, value in case.inputs.items()
        }
        made = run({**given, **states})
        assert set(made) == {"o", *(key.replace("_0", "_T") for key in states)}
        found.append(np.asarray(torch.as_tensor(made["o"]).detach()))
        states = {key: torch.as_tensor(made[key.replace("_0", "_T")]).detach() for key in states}
    np.testing.assert_allclose(np.concatenate(found), case.outputs["o"], **tolerance(name))


@pytest.mark.parametrize(
    ("name", "states", "suffix"),
    [
        *((name, states, ".onnx") for name in CASES for states in (False, True)),
        ("LSTM-static", True, ".pt2"),
        ("RNN-basic", False, ".pt2"),
    ],
)
def test_the_streams_are_open(name, states, suffix, tmp_path) -> None:
    case, net = read_case(name), recorded(name, tmp_path, steps=4)
    path = tmp_path / f"net{suffix}"
    ir.save(net, path, states=states)
    run = opened(path, net)
    for count in (1, 2, 5):  # some of the recorded streams, and some twice
        order = [index % 2 for index in range(count)]
        given = {
            key: torch.from_numpy(
                np.ascontiguousarray(value[:, order] if key in ("x", "cont") else value[order])
            )
            for key, value in case.inputs.items()
        }
        given |= {key: torch.zeros(1, count, 3) for key in initial(net)} if states else {}
        found = np.asarray(torch.as_tensor(run(given)["o"]).detach())
        np.testing.assert_allclose(found, case.outputs["o"][:, order], **tolerance(name))


def test_onnx_names_steps_and_streams(tmp_path) -> None:
    ir.save(recorded("LSTM-static", tmp_path, steps=4), tmp_path / "net.onnx", states=True)
    graph = onnx.load(tmp_path / "net.onnx").graph
    dims = {
        entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        for entry in (*graph.input, *graph.output)
    }
    assert dims == {
        "x": ["T", "N", 5], "cont": ["T", "N"], "s": ["N", 4], "op_h_0": [1, "N", 3], "op_c_0": [1, "N", 3],
        "o": ["T", "N", 3], "op_h_T": [1, "N", 3], "op_c_T": [1, "N", 3],
    }  # fmt: skip


def test_the_batch_is_the_streams(tmp_path) -> None:
    ir.save(recorded("LSTM-static", tmp_path, steps=4), tmp_path / "net.caffemodel", batch=3, states=True)
    shapes = ir.load(tmp_path / "net.caffemodel", prototxt=tmp_path / "net.prototxt").shapes
    assert {name: shapes[name] for name in ("x", "cont", "s", "op_h_0", "o")} == {
        "x": (4, 3, 5), "cont": (4, 3), "s": (3, 4), "op_h_0": (1, 3, 3), "o": (4, 3, 3),
    }  # fmt: skip


def test_a_pt2_file_says_that_the_steps_are_fixed(tmp_path, capsys) -> None:
    ir.save(recorded("RNN-basic", tmp_path, steps=4), tmp_path / "net.caffemodel")
    given = ["convert", str(tmp_path / "net.caffemodel"), "--to", "pt2,onnx", "--states", "--verify"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pt2: the number of steps is fixed (cont 4, x 4)" in shown
    assert "starts each pass from zeros" not in shown


FORK = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 1 dim: 5 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 4 } } }
layer { name: "l" type: "Lstm" bottom: "x" bottom: "cont" top: "o" lstm_param { num_output: 3 } }
"""
PLAIN = """
name: "plain"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 5 } } }
layer { name: "r" type: "ReLU" bottom: "x" top: "r" }
"""
REFUSED = {
    "a fork's": (FORK, "l (Lstm): Caffe cannot take its state as an input; omit states=True"),
    "none": (
        PLAIN, "net 'plain' has no RNN or LSTM layer, whose states could be inputs and outputs; omit states=True",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_states_that_are_none_are_refused(text, message, tmp_path) -> None:
    with pytest.raises(IlgnetError) as error:
        ir.save(net_of(text), tmp_path / "net.onnx", states=True)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_inputs_of_a_file_are_given_by_position_too(tmp_path) -> None:
    case, net = read_case("RNN-basic"), recorded("RNN-basic", tmp_path, steps=4)
    ir.save(net, tmp_path / "net.onnx")
    run = ir.load(tmp_path / "net.onnx")
    x, cont = (torch.from_numpy(case.inputs[name]) for name in ("x", "cont"))
    for found in (run(x, cont), run(x=x, cont=cont), run({"x": x, "cont": cont})):
        np.testing.assert_allclose(np.asarray(found["o"]), case.outputs["o"], **tolerance("RNN-basic"))
    with pytest.raises(IlgnetError, match=r"3 inputs by position; it takes 2 \('x', 'cont'\)"):
        run(x, cont, x)
