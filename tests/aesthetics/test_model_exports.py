"""The study's models as ONNX and pt2: the outputs and metadata of their safetensors files, open batches, refusals."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import ilgnet_repro as ir
from ilgnet_repro.about import About
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.aesthetics.synthetic_scores import write_scored_set
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.consumers import Job, run_consumer
from ilgnet_repro.export.model_onnx import plan_model
from ilgnet_repro.runtime.model import Model
from ilgnet_repro.runtime.pt2_file import METADATA_FILE
from ilgnet_repro.runtime.safetensors_file import read_metadata

slow = pytest.mark.skipif(
    not os.environ.get("SLOW_MODELS"), reason="tracing takes seconds a model; `make models`"
)
SIDE = 64
# Name, options, and how far the outputs of its files may be apart: another order of float32 sums.
QUICK = {
    "gsfl": ("gsfl", {"features": 40, "classes": 6, "groups": 2, "hidden": 16}, 1e-6),
}  # fmt: skip
SLOW = {
    "tanet, colour, AVA": ("tanet", {"data": "ava", "branches": ["colour"]}, 1e-5),
    "gsfl, inference": (
        "gsfl", {"features": 40, "classes": 6, "groups": 1, "hidden": 16, "is_decomposed": False}, 1e-6,
    ),
    "attributes, EVA": ("attributes", {"data": "eva", "tasks": ("score", "quality"), "hidden": 8}, 1e-5),
    "tanet, colour": ("tanet", {"branches": ["colour"]}, 1e-6),
    "nima, MobileNet v1": ("nima", {"backbone": "mobilenet_v1"}, 1e-5),
    "nima, MobileNet v2": ("nima", {"backbone": "mobilenet_v2"}, 1e-5),
    "nima, VGG-16": ("nima", {"backbone": "vgg16"}, 1e-5),
    "nima, Inception v2": ("nima", {"backbone": "inception_v2"}, 1e-5),
    "tanet, TAD66K": ("tanet", {}, 1e-5),
    "tanet, AVA": ("tanet", {"data": "ava"}, 1e-5),
    "attributes, AADB": ("attributes", {}, 1e-5),
}  # fmt: skip
MODELS = [pytest.param(*case, id=name) for name, case in QUICK.items()]
MODELS += [pytest.param(*case, id=name, marks=slow) for name, case in SLOW.items()]


def make(name, options, side=SIDE):
    torch.manual_seed(3)
    model = create(name, **options)
    how = model.about.preprocessing
    if how is not None:
        how = replace(how, size=(side, side), resize=(side + 8, side + 8))
        model.about = replace(model.about, preprocessing=how)
    model.extra_metadata["training"] = '{"epochs": 5}'
    # Statistics that are not those of a new BatchNorm.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def inputs_of(model, rows, seed=1):
    return torch.randn(rows, *model.row, generator=torch.Generator().manual_seed(seed))


def metadata_of(path):
    if path.suffix == ".safetensors":
        return read_metadata(path)
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(METADATA_FILE)]
        return json.loads(archive.read(name))


@pytest.mark.parametrize(("name", "options", "tolerance"), MODELS)
def test_every_form_has_the_same_outputs_and_metadata(name, options, tolerance, tmp_path) -> None:
    model = make(name, options)
    paths = [tmp_path / f"model.{suffix}" for suffix in ("safetensors", "onnx", "pt2")]
    for path in paths:
        assert ir.save(model, path) == (path,)
    files = [ir.load(path) for path in paths]
    stated = metadata_of(paths[0])
    assert stated["training"] == '{"epochs": 5}' and json.loads(stated["model"])["name"] == name
    for path, file in zip(paths[1:], files[1:], strict=True):
        assert metadata_of(path) == stated
        assert (file.inputs, set(file.outputs)) == (model.inputs, set(model.outputs))
        assert repr(file.about) == repr(model.about) and file.fixed_batch is None
        assert file.shapes[model.input_name] == model.shapes[model.input_name]
    for rows in (1, 5):
        x = inputs_of(model, rows)
        with torch.inference_mode():
            wanted = model(x)
            for file in files:
                found = file(x)
                assert found.keys() == wanted.keys()
                for key, value in wanted.items():
                    np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=key)
    if not os.environ.get("SLOW_MODELS"):
        return  # `--verify` below lets OpenVINO run one
    arrays = {model.input_name: inputs_of(model, 5).numpy()}
    (ran,) = run_consumer("openvino", [Job(paths[1], arrays, list(wanted))])
    assert not ran.failed
    for key, value in wanted.items():
        np.testing.assert_allclose(ran.outputs[key], value, rtol=0, atol=tolerance, err_msg=key)


@pytest.fixture(scope="module")
def colour_file(tmp_path_factory):
    """TANet's colour branch with two outputs: its file traces in an instant."""
    path = tmp_path_factory.mktemp("exports") / "colour.safetensors"
    ir.save(make("tanet", {"data": "ava", "branches": ["colour"]}), path)
    return path


def test_the_command_converts_verifies_and_compares(colour_file, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["convert", str(colour_file), "--to", "onnx,pt2", "--out", str(out), "--verify"]
    command.append("onnxruntime,openvino" if os.environ.get("SLOW_MODELS") else "onnxruntime")
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["format"] for one in report["written"]] == ["onnx", "pt2"]
    assert [one["equal"] for one in report["verified"]] == [True] * (
        4 if os.environ.get("SLOW_MODELS") else 3
    )
    assert report["net"] == "tanet" and report["outputs"] == ["distribution", "score"]
    assert sorted(path.name for path in out.iterdir()) == ["colour.onnx", "colour.pt2"]
    for name in ("colour.onnx", "colour.pt2"):
        assert main(["compare", str(colour_file), str(out / name)]) == 0
    capsys.readouterr()
    # Again: what this program wrote may be replaced.
    assert main(command[:-2]) == 0
    assert "model tanet" in capsys.readouterr().out


def test_every_form_scores_the_same(colour_file, tmp_path, capsys) -> None:
    ir.convert(colour_file, to=("onnx", "pt2"), out=tmp_path)
    images = np.random.default_rng(5).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    wanted = ir.score(list(images), colour_file)
    cv2.imwrite(str(tmp_path / "a.png"), images[0])
    for name in ("colour.onnx", "colour.pt2"):
        for row, other in zip(ir.score(list(images), tmp_path / name), wanted, strict=True):
            assert (row.value, row.deviation) == pytest.approx((other.value, other.deviation), abs=1e-5)
            assert row.meaning == "mean score"
        assert main(["score", str(tmp_path / "a.png"), "--weights", str(tmp_path / name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(wanted[0].value, abs=1e-5)


def test_a_batch_may_be_fixed(colour_file, tmp_path) -> None:
    model = ir.load(colour_file)
    for suffix in ("onnx", "pt2"):
        ir.save(model, tmp_path / f"two.{suffix}", batch=2)
        file = ir.load(tmp_path / f"two.{suffix}")
        assert file.fixed_batch == 2
        with pytest.raises(IlgnetError, match="takes 2x3x64x64, and is given 3x3x64x64"):
            file(inputs_of(model, 3))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_an_onnx_file_may_prepare_the_images(colour_file, tmp_path, order) -> None:
    report = ir.convert(
        colour_file,
        to="onnx",
        out=tmp_path,
        verify=True,
        with_preprocessing=True,
        input_order=order,
        opset=15,
    )
    assert report.is_verified
    images = np.random.default_rng(6).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)  # BGR
    given = images if order == "BGR" else images[..., ::-1]
    found = ir.load(tmp_path / "colour.onnx")(torch.from_numpy(np.ascontiguousarray(given)))
    model = ir.load(colour_file)
    with torch.inference_mode():
        wanted = model(model.prepare(list(images)))
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-5)


def test_a_model_on_a_device_or_in_half_precision_is_written_in_float32(tmp_path) -> None:
    model = make("gsfl", {"features": 40, "classes": 6, "groups": 2, "hidden": 16}).half()
    ir.save(model, tmp_path / "half.onnx")
    assert model.classifier.weight.dtype == torch.float16
    x = inputs_of(model, 3)
    found = ir.load(tmp_path / "half.onnx")(x)["logits"]
    with torch.inference_mode():
        np.testing.assert_allclose(found, model.float()(x)["logits"], atol=1e-6)


def test_only_what_inference_needs_is_written(tmp_path) -> None:
    model = make("gsfl", {"features": 40, "classes": 6, "groups": 2, "hidden": 16})
    held = plan_model(model).weights
    assert sorted(held) == [
        "classifier.bias", "classifier.weight", "discriminative.1.bias", "discriminative.1.weight",
        "discriminative.3.bias", "discriminative.3.weight",
    ]  # fmt: skip
    assert model.is_decomposed and not model.training


def test_a_model_in_training_mode_is_written_for_inference_and_stays_so(tmp_path) -> None:
    model = make("tanet", {"branches": ["colour"]}).train()
    ir.save(model, tmp_path / "model.pt2")
    assert all(module.training for module in model.modules())
    x = inputs_of(model, 2)
    with torch.inference_mode():
        found = ir.load(tmp_path / "model.pt2")(x)["score"]
        np.testing.assert_allclose(found, model.eval()(x)["score"], atol=1e-6)


class Sorting(Model):
    """What has no form in ONNX here."""

    name = "sorting"

    def __init__(self) -> None:
        super().__init__(About(), (5,), {"sorted": 5})
        self.dense = nn.Linear(5, 5)

    def forward(self, x):
        return {"sorted": self.dense(x).sort(1).values}


class Deciding(Sorting):
    """What torch.export cannot trace."""

    def forward(self, x):
        return {"sorted": self.dense(x) if float(x.sum()) > 0 else x}


REFUSED = {
    "an operator": (
        Sorting, "onnx", {},
        "model sorting: cannot be written as ONNX: it calls aten.sort.default, which has no ONNX form here; use to='pt2' or "
        "to='safetensors'",
    ),
    "values that decide": (
        Deciding, "pt2", {}, "model sorting: cannot be exported by torch.export (Could not guard on data-dependent ",
    ),
    "another format": (
        Sorting, "caffemodel", {},
        "model sorting: is not a Caffe net, so it has no caffemodel file; use safetensors, onnx, pt2",
    ),
    "quantized weights": (
        Sorting, "onnx", {"precision": "int8"},
        "model sorting: precision= does not apply to a onnx file of it; leave it out",
    ),
    "an opset of a pt2 file": (
        Sorting, "pt2", {"opset": 15}, "model sorting: opset= does not apply to a pt2 file of it; leave it out",
    ),
    "preprocessing that is not known": (
        Sorting, "onnx", {"with_preprocessing": True},
        "net 'sorting': its preprocessing is unknown; state it as preprocessing=",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "suffix", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_written(kind, suffix, options, message, tmp_path) -> None:
    with pytest.raises(IlgnetError) as caught:
        ir.save(kind(), tmp_path / f"model.{suffix}", **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


COMMANDS = {
    "a format of Caffe nets": (
        ["--to", "onnx,python"], "model tanet: is not a Caffe net, so it has no python file; use safetensors, onnx, pt2",
    ),
    "a prototxt": (["--to", "onnx", "--prototxt", "x.prototxt"], "is a model and no Caffe net, to which --prototxt"),
    "folding": (["--to", "onnx", "--fold"], "model tanet: --fold does not apply to a onnx file of it; leave it out"),
    "over itself": (["--to", "safetensors"], "would be written over itself; give another folder as --out"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_options_of_the_command_are_refused(
    colour_file, tmp_path, monkeypatch, capsys, arguments, message
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.prototxt").write_text("name: 'x'")
    out = [] if "safetensors" in arguments else ["--out", "out"]
    before = sorted(path.name for path in colour_file.parent.iterdir())
    assert main(["convert", str(colour_file), *arguments, *out]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in colour_file.parent.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_a_fast_model_is_refused_in_one_line() -> None:
    with pytest.raises(IlgnetError) as caught:
        ir.fast(make("tanet", {"branches": ["colour"]}))
    assert str(caught.value) == (
        "model tanet: is not a Caffe net, so it cannot be made fast; save it as .onnx, which ONNX Runtime computes"
    )


def test_a_trained_files_scores_are_those_of_the_test(tmp_path, capsys) -> None:
    """`ilgnet train --model`, then `ir.score` and `ilgnet score` of the images give what `ilgnet test --model` predicts."""
    write_scored_set("tad66k", tmp_path / "set", {"train": 6, "val": 2, "test": 3}, side=40, seed=4)
    given = ["--model", "tanet", "--data", "tad66k", "--folder", str(tmp_path / "set")]
    given += ["--pictures", str(tmp_path / "set" / "images")]
    command = [
        "train",
        *given,
        "--option",
        "branches=colour",
        "--size",
        "32",
        "--epochs",
        "1",
        "--batch-size",
        "4",
    ]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    weights = tmp_path / "run" / "tanet.safetensors"
    assert main(["test", *given, "--weights", str(weights), "--out", str(tmp_path / "test")]) == 0
    rows = [row.split(",") for row in (tmp_path / "test" / "predictions.csv").read_text().splitlines()[1:]]
    images = [next((tmp_path / "set" / "images").rglob(f"{row[0]}*")) for row in rows]
    # The model gives a tenth of TAD66K's score.
    wanted = [float(row[1]) / 10 for row in rows]
    scored = [row.value for row in ir.score(images, weights)]
    assert scored == pytest.approx(wanted, abs=1e-5)
    capsys.readouterr()
    assert main(["score", *map(str, images), "--weights", str(weights), "--jsonl"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["value"] for row in printed] == pytest.approx(wanted, abs=1e-5)
