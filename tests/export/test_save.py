"""`ir.save`: after any change of a loaded net, each format stores its current state or refuses it by name."""

from __future__ import annotations

import copy
import os
import resource
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import SHARED_TEXT, SMALL_TEXT, write_weights
from torch import nn

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import GraphError, IlgnetError
from ilgnet_repro.export import formats
from ilgnet_repro.export.formats import find_format
from ilgnet_repro.export.saving import Options
from ilgnet_repro.export.to_python import load_module
from ilgnet_repro.runtime.modes import as_loaded
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.python_names import class_name

NORM_TEXT = """
name: "norm"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true
  filler { type: "uniform" min: 0.5 max: 1.5 } bias_filler { type: "constant" value: 0.3 } } }
layer { name: "drop" type: "Dropout" bottom: "bn" top: "bn" }
layer { name: "fc" type: "InnerProduct" bottom: "bn" top: "fc" inner_product_param {
  num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }
"""
PERMISSIVE_TEXT = """
name: "permissive"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
  inner_product_param { num_output: 4 bias_term: false weight_filler { type: "gaussian" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" share_mode: PERMISSIVE }
  inner_product_param { num_output: 3 bias_term: false } }
"""
LSTM_TEXT = """
name: "lstm"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 dim: 3 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 4 dim: 2 } } }
layer { name: "rnn" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 5
  weight_filler { type: "uniform" min: -0.3 max: 0.3 } bias_filler { type: "constant" value: 0.1 } } }
"""


def norm_net(**options: Any) -> CaffeNet:
    net = ir.load_net(parse_net(NORM_TEXT), seed=5, **options)
    with torch.no_grad():
        mean, variance, factor = net.layer("bn").blobs
        mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
        variance.copy_(torch.tensor([0.5, 1.5, 2.0, 0.8]))
        factor.fill_(2)
    return net


def drawn_net(text: str, **options: Any) -> CaffeNet:
    return ir.load_net(parse_net(text), seed=5, **options)


def stepped(net: CaffeNet) -> CaffeNet:
    """After one step of an optimizer, which writes parameters in place."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    sum(value.square().sum() for value in net(seeded(net)).values()).backward()
    optimizer.step()
    return net


def with_new_parameter() -> CaffeNet:
    net = norm_net()
    layer = net.layer("fc")
    layer.weight = nn.Parameter(layer.weight.detach() * 2 + 0.01)
    layer.bias.data += 0.5  # does not raise the version counter
    return net


def with_moved_statistics() -> CaffeNet:
    net = norm_net().train()
    for seed in range(3):
        net(seeded(net, seed))
    return net


def quantized(precision: str, folder: Path) -> CaffeNet:
    ir.save(norm_net(), folder / "reduced.safetensors", precision=precision)
    net: CaffeNet = ir.load(folder / "reduced.safetensors")
    return net


def seeded(net: CaffeNet, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(net.shapes[name], generator=generator) for name in net.inputs}
    return {name: (value > -1).float() if name == "cont" else value for name, value in drawn.items()}


LIVE: dict[str, tuple[Callable[[Path], CaffeNet], float]] = {
    "as loaded": (lambda folder: norm_net(), 0),
    "after a step": (lambda folder: stepped(norm_net()), 0),
    "a copy after a step": (lambda folder: copy.deepcopy(stepped(norm_net())), 0),
    "a new parameter": (lambda folder: with_new_parameter(), 0),
    "shared weights": (lambda folder: stepped(drawn_net(SHARED_TEXT)), 0),
    "shared in another shape": (lambda folder: stepped(drawn_net(PERMISSIVE_TEXT)), 0),
    "half": (lambda folder: norm_net().half(), 2e-2),
    "bfloat16": (lambda folder: norm_net().bfloat16(), 1e-1),
    "double": (lambda folder: norm_net().double(), 1e-5),
    "shared in another shape, half": (lambda folder: drawn_net(PERMISSIVE_TEXT).half(), 2e-2),
    "int8": (lambda folder: quantized("int8", folder), 0),
    "float16": (lambda folder: quantized("float16", folder), 0),
    "bfloat16 weights": (lambda folder: quantized("bfloat16", folder), 0),
    "int8, float": (lambda folder: quantized("int8", folder).float(), 0),
    "float16, float": (lambda folder: quantized("float16", folder).float(), 0),
    "float16, double": (lambda folder: quantized("float16", folder).double(), 1e-5),
    "int8, half": (lambda folder: quantized("int8", folder).half(), 2e-2),
    "train mode": (lambda folder: norm_net().train(), 0),
    "statistics moved": (lambda folder: with_moved_statistics(), 0),
    "carried state": (lambda folder: drawn_net(LSTM_TEXT, carry_state=True), 0),
    "one shape, another batch": (lambda folder: drawn_net(NORM_TEXT, input_shapes={"data": (4, 3, 9, 7)}), 0),
}  # fmt: skip
SUFFIXES = (".safetensors", ".caffemodel", ".caffemodel.h5", ".onnx", ".py")
EXACT = SUFFIXES[:3]  # what this package runs itself
# Exporting takes most of a second, so only some of the nets.
EXPORTED = (
    "after a step",
    "shared in another shape",
    "half",
    "int8",
    "float16, float",
    "statistics moved",
    "carried state",
)


def run_files(
    paths: tuple[Path, ...], net: CaffeNet, given: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    if paths[0].suffix == ".py":
        module = load_module(paths[0], paths[1], class_name(net.graph.name))
        found: dict[str, torch.Tensor] = module(*(given[name] for name in net.inputs_for(net.outputs)))
        return found
    found = ir.load(paths[0])(given)
    return found


def present(net: CaffeNet, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of a float32 copy of the net in the mode it was loaded in.

    With gradients every net is computed layer by layer, also one with computed blobs: equal weights give equal bits.
    """
    net = copy.deepcopy(net)
    dtype = net.computes_in[0]
    with torch.enable_grad(), as_loaded(net):
        found = net({name: value.to(dtype) for name, value in given.items()})
    return {name: blob.detach().float() for name, blob in found.items()}


def check_saved(net: CaffeNet, path: Path, tolerance: float, **options: Any) -> tuple[Path, ...]:
    given, was_training = seeded(net), net.training
    expected = present(net, given)
    before = [blob.clone() for blobs in net.params.values() for blob in blobs]
    paths = ir.save(net, path, **options)
    with torch.enable_grad():
        found = run_files(paths, net, given)
    assert sorted(found) == sorted(expected)
    exact = not options and path.name.endswith(EXACT)
    for name, values in expected.items():
        atol = tolerance or (0 if exact else 1e-5)
        torch.testing.assert_close(found[name].detach(), values, rtol=0 if exact else 1e-4, atol=atol)
    # The net itself is as it was.
    assert net.training is was_training
    after = [blob for blobs in net.params.values() for blob in blobs]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not list(path.parent.glob(".*"))
    return paths


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", LIVE)
def test_a_net_is_saved_in_its_current_state(tmp_path: Path, case: str, suffix: str) -> None:
    make, tolerance = LIVE[case]
    check_saved(make(tmp_path), tmp_path / f"x{suffix}", tolerance)


@pytest.mark.parametrize("case", EXPORTED)
def test_a_net_is_exported_in_its_current_state(tmp_path: Path, case: str) -> None:
    make, tolerance = LIVE[case]
    check_saved(make(tmp_path), tmp_path / "x.pt2", tolerance)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", ["after a step", "half", "int8", "statistics moved"])
def test_a_net_is_folded_in_its_current_state(tmp_path: Path, case: str, suffix: str) -> None:
    make, tolerance = LIVE[case]
    paths = check_saved(make(tmp_path), tmp_path / f"x{suffix}", tolerance, fold=True)
    if suffix in EXACT:
        assert list(ir.load(paths[0]).params) == ["conv", "fc"]


@pytest.mark.parametrize("suffix", [".safetensors", ".caffemodel", ".caffemodel.h5", ".py"])
def test_a_net_of_phase_train_stays_one(tmp_path: Path, suffix: str) -> None:
    net = norm_net(phase="TRAIN")
    paths = ir.save(net, tmp_path / f"x{suffix}")
    if suffix == ".py":
        return
    again = ir.load(paths[0], phase=None if suffix == ".safetensors" else "TRAIN")
    assert (again.graph.phase, again.training) == ("TRAIN", True)
    for name, blobs in net.params.items():
        for blob, other in zip(blobs, again.params[name], strict=True):
            assert torch.equal(blob, other)


def test_a_net_of_phase_train_is_not_exported_to_onnx(tmp_path: Path) -> None:
    with pytest.raises(
        IlgnetError, match=r"^drop \(Dropout\): cannot be written as ONNX: it draws random numbers"
    ):
        ir.save(norm_net(phase="TRAIN"), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_converted_to_float32_are_stored_as_float32(tmp_path: Path) -> None:
    net = quantized("float16", tmp_path).float()
    ir.save(net, tmp_path / "x.safetensors")
    weights = {name: net.params[name][0] for name in ("conv", "fc")}
    again = ir.load(tmp_path / "x.safetensors")
    assert all(torch.equal(again.params[name][0], weight) for name, weight in weights.items())
    values = sum(weight.numel() for weight in weights.values())
    whole, reduced = (os.path.getsize(tmp_path / f"{name}.safetensors") for name in ("x", "reduced"))
    assert whole - reduced == pytest.approx(2 * values, abs=16)  # the metadata's padding


# ------------------------------------------------------------------------------------ what is refused

CHANGED = {
    "a replaced layer": (
        lambda net: setattr(net.layers, "fc", nn.Linear(140, 5)),
        "fc (InnerProduct): is now a Linear, so the net cannot be saved",
    ),
    "a layer gone": (
        lambda net: delattr(net.layers, "fc"),
        "fc (InnerProduct): is missing from the net's layers; "
        "to pass its bottom on, assign torch.nn.Identity() to layers.fc",
    ),
    "a parameter of another shape": (
        lambda net: setattr(net.layer("fc"), "weight", nn.Parameter(torch.zeros(6, 140))),
        "fc (InnerProduct): weight is 6x140 now, not 5x140, so the net cannot be saved",
    ),
    "a layer too many": (
        lambda net: net.layers.add_module("extra", nn.Linear(2, 2)),
        "net 'norm': layers.extra belongs to no layer of the net and would not run; assign it to the name of a layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt2"])
@pytest.mark.parametrize("case", CHANGED)
def test_a_net_changed_beyond_caffe_is_refused(tmp_path: Path, case: str, suffix: str) -> None:
    change, message = CHANGED[case]
    net = norm_net()
    change(net)
    with pytest.raises(GraphError) as caught:
        ir.save(net, tmp_path / f"x{suffix}")
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "an unknown suffix": (
        "x.pth", {},
        "{folder}/x.pth: its suffix names no format; end it in .safetensors, .onnx, .pt2, .py, .caffemodel, "
        ".caffemodel.h5, .xml, .tflite, .mlpackage",
    ),
    "only a suffix": (
        ".onnx", {},
        "{folder}/.onnx: its suffix names no format; end it in .safetensors, .onnx, .pt2, .py, .caffemodel, "
        ".caffemodel.h5, .xml, .tflite, .mlpackage",
    ),
    "an option misspelt": (
        "x.onnx", {"dynamic_sise": True},
        "option 'dynamic_sise' is unknown (did you mean dynamic_size?); use outputs, inputs, batch, states, fold, "
        "precision, dynamic_size, with_preprocessing, input_order, fast_lrn, opset, arithmetic",
    ),
    "an option of another format": (
        "x.caffemodel", {"dynamic_size": True},
        "dynamic_size= is for onnx and pt2 files, not caffemodel; convert to that separately",
    ),
    "a precision that is none": (
        "x.onnx", {"precision": "int4"},
        "precision='int4': choose one of float32, float16, bfloat16, int8",
    ),
    "a folder that is not there": ("a/x.onnx", {}, "{folder}/a: is not a folder; create it first"),
    "a folder": ("f.onnx", {}, "{folder}/f.onnx: is a folder; give a file's name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_calls(tmp_path: Path, case: str) -> None:
    name, options, message = REFUSED[case]
    (tmp_path / "f.onnx").mkdir()
    with pytest.raises(IlgnetError) as caught:
        ir.save(norm_net(), tmp_path / name, **options)
    assert str(caught.value) == message.format(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["f.onnx"]


def test_an_option_that_no_format_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option has a format that takes it; one without any is still refused in one line."""
    for field in fields(Options):
        takers = [find_format(name) for name in formats.NAMES]
        assert field.name in formats.GENERAL or any(field.name in one.options for one in takers), field.name
    monkeypatch.setattr(formats, "NAMES", ())
    with pytest.raises(IlgnetError) as caught:
        formats.check_options([find_format("pt2")], Options(precision="int8"))
    assert str(caught.value) == "precision='int8': no format takes it; leave it out"


# ------------------------------------------------------------------------------- complete files, or none


@pytest.mark.parametrize("suffix", EXACT)
def test_saving_over_the_file_that_the_net_is_mapped_from(folder: Path, suffix: str) -> None:
    net = ir.load(folder / "small.caffemodel")
    if suffix != ".caffemodel":
        net = ir.load(ir.save(net, folder / f"small{suffix}")[0])
    path = folder / f"small{suffix}"
    stepped(net)
    given = seeded(net)
    expected, inode = net(given)["prob"].detach().clone(), path.stat().st_ino
    ir.save(net, path)
    assert path.stat().st_ino != inode
    assert torch.equal(net(given)["prob"], expected)
    assert torch.equal(ir.load(path)(given)["prob"], expected)
    ir.save(net, path)  # and once more, from weights whose file was replaced
    assert torch.equal(ir.load(path)(given)["prob"], expected)


WRITERS = {
    ".safetensors": "ilgnet_repro.export.to_safetensors.write_safetensors",
    ".caffemodel": "ilgnet_repro.export.to_caffe.write_caffemodel",
    ".caffemodel.h5": "ilgnet_repro.export.to_caffe.write_hdf5_model",
    ".onnx": "ilgnet_repro.export.to_onnx.write_onnx",
    ".py": "ilgnet_repro.export.to_python.write_safetensors",
    ".pt2": "torch.export.save",
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_full_disk_leaves_existing_files_unchanged(tmp_path: Path, suffix: str) -> None:
    net = norm_net()
    first = {path: path.read_bytes() for path in ir.save(net, tmp_path / f"x{suffix}")}
    stepped(net)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (700, limits[1])
    )  # what is written past it fails, half way through
    try:
        with pytest.raises(IlgnetError) as caught:
            ir.save(net, tmp_path / f"x{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/x") and "cannot be written" in message and "\n" not in message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_exception_in_a_writer_leaves_no_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WRITERS[suffix], fail)
    with pytest.raises(KeyboardInterrupt):
        ir.save(norm_net(), tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------- the prototxt beside a caffemodel


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5", ".CAFFEMODEL", ".CaffeModel.H5"])
def test_the_prototxt_beside_it(tmp_path: Path, suffix: str) -> None:
    paths = ir.save(norm_net(), tmp_path / f"x{suffix}")
    text = tmp_path / "x.prototxt"
    assert paths == (tmp_path / f"x{suffix}", text)
    assert ir.load(paths[0]).about.prototxt == str(text)
    # A text of the same net is not replaced.
    text.write_text("# mine\n" + NORM_TEXT)
    ir.save(stepped(norm_net()), tmp_path / f"x{suffix}")
    assert text.read_text() == "# mine\n" + NORM_TEXT
    # Another net's is not replaced, nor are the weights that go with it.
    text.write_text(SMALL_TEXT)
    before = (tmp_path / f"x{suffix}").read_bytes()
    with pytest.raises(IlgnetError) as caught:
        ir.save(norm_net(), tmp_path / f"x{suffix}")
    assert str(caught.value) == (
        f"{text}: already exists and holds another net than the one saved; give another name, or remove it"
    )
    assert (tmp_path / f"x{suffix}").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"x{suffix}", "x.prototxt"]


def test_the_main_file_takes_its_name_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    rename = os.replace

    def watched(source: Any, target: Any) -> None:
        if Path(target).parent == tmp_path:
            order.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    ir.save(norm_net(), tmp_path / "x.caffemodel")
    ir.save(norm_net(), tmp_path / "y.py")
    assert order == ["x.prototxt", "x.caffemodel", "y.weights.safetensors", "y.py"]


# ------------------------------------------------------------------------------------------ round trips

FED = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "rows" batch_size: 2 }
  transform_param { mean_value: 4 mean_value: 5 mean_value: 6 %s } }
layer { name: "quiet" type: "Silence" bottom: "label" }
"""
INPUT = SMALL_TEXT.strip().split("\n")[1]
TRIPS = {
    "as stated": (SMALL_TEXT, {}, (1, 3, 9, 7)),
    "a shape given": (SMALL_TEXT, {"data": (4, 3, 8, 7)}, (4, 3, 8, 7)),
    "a data layer": (SMALL_TEXT.replace(INPUT, FED % "crop_size: 8"), {}, (2, 3, 8, 8)),
    "a data layer, another batch": (
        SMALL_TEXT.replace(INPUT, FED % "crop_size: 8"), {"data": (5, 3, 8, 8)}, (5, 3, 8, 8)
    ),
    "a data layer without a size": (SMALL_TEXT.replace(INPUT, FED % ""), {"data": (4, 3, 8, 7)}, (4, 3, 8, 7)),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
@pytest.mark.parametrize("case", TRIPS)
def test_round_trip(tmp_path: Path, case: str, suffix: str) -> None:
    text, given, shape = TRIPS[case]
    height, width = shape[2:]
    own = SMALL_TEXT.replace("dim: 9 dim: 7", f"dim: {height} dim: {width}")
    original = write_weights(tmp_path / "small.caffemodel", own)
    (tmp_path / "small.prototxt").write_text(text)
    net = ir.load(tmp_path / "small.caffemodel", input_shapes=given)
    seen = []
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        ir.save(net, folder / "x.safetensors")
        net = ir.load(folder / "x.safetensors")
        assert net.shapes["data"] == shape
        ir.save(net, folder / f"x{suffix}")
        net = ir.load(folder / f"x{suffix}")
        assert net.shapes["data"] == shape
        for name, blobs in original.params.items():
            for blob, found in zip(blobs, net.params[name], strict=True):
                assert torch.equal(blob, found)
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert seen[2] == seen[1]
    assert seen[0].keys() == {"x.safetensors", f"x{suffix}", "x.prototxt"}


def test_a_data_layer_that_cannot_state_its_shape_is_reported(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.caffemodel", SMALL_TEXT)
    (tmp_path / "a.prototxt").write_text(SMALL_TEXT.replace(INPUT, FED % ""))
    options: dict[str, Any] = {"out": tmp_path / "o", "input_shapes": {"data": (4, 3, 9, 7)}}
    report = ir.convert(tmp_path / "a.caffemodel", to=["caffemodel", "hdf5"], **options)
    note = (
        "data (Data): its text does not state the shapes it was given, so an Input layer replaces it in the "
        "prototxt"
    )
    assert report.notes.count(note) == 1
    assert note not in ir.convert(tmp_path / "a.caffemodel", to="safetensors", **options).notes
    again = ir.load(tmp_path / "o" / "a.caffemodel")
    assert again.about.preprocessing.mean_value == (4.0, 5.0, 6.0)
    np.testing.assert_equal(again.shapes["label"], (4,))


def test_inputs_of_another_phase_keep_their_shapes(tmp_path: Path) -> None:
    other = INPUT.replace("dim: 1 dim: 3 dim: 9 dim: 7", "dim: 6 dim: 3 dim: 9 dim: 7")
    both = "".join(
        line[: line.rindex("}")] + f"include {{ phase: {phase} }} }}\n"
        for line, phase in ((INPUT, "TEST"), (other, "TRAIN"))
    )
    net = drawn_net(SMALL_TEXT.replace(INPUT, both), input_shapes={"data": (2, 3, 9, 7)})
    ir.save(net, tmp_path / "x.caffemodel")
    assert ir.load(tmp_path / "x.caffemodel").shapes["data"] == (2, 3, 9, 7)
    assert ir.load(tmp_path / "x.caffemodel", phase="TRAIN").shapes["data"] == (6, 3, 9, 7)
