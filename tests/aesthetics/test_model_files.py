"""The study's models as files: saved and loaded like every other net, and refused in one line where they do not fit."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.known import ScoreAt
from ilgnet_repro.runtime.safetensors_file import open_safetensors, write_safetensors

# Small or without their largest branch, so that a file is written in an instant.
MODELS = {
    "nima": ("nima", {"backbone": "mobilenet_v2"}),
    "tanet, AVA": ("tanet", {"data": "ava", "branches": ("aesthetics", "colour")}),
    "tanet, TAD66K": ("tanet", {"branches": ["colour"]}),
    "gsfl": ("gsfl", {"features": 40, "classes": 6, "groups": 2, "hidden": 16}),
    "gsfl, inference": ("gsfl", {"features": 40, "classes": 6, "groups": 1, "hidden": 16, "is_decomposed": False}),
    "attributes": ("attributes", {"data": "eva", "tasks": ("score", "quality"), "hidden": 8}),
}  # fmt: skip


def make(name, options):
    torch.manual_seed(3)
    return create(name, **options)


def inputs_of(model, rows=3, seed=1):
    shape = (40,) if model.name == "gsfl" else (3, 96, 64)
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS)
def test_a_model_is_saved_and_loaded(name, options, tmp_path):
    model = make(name, options)
    model.extra_metadata["training"] = '{"epochs": 5}'
    path = tmp_path / "model.safetensors"
    assert ir.save(model, path) == (path,)
    loaded = ir.load(path)
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.options == model.options
    assert (loaded.name, loaded.inputs, loaded.outputs, loaded.shapes) == (
        name, model.inputs, model.outputs, model.shapes,
    )  # fmt: skip
    assert loaded.about.score == model.about.score
    assert repr(loaded.about) == repr(model.about)
    assert loaded.extra_metadata == {"training": '{"epochs": 5}'}
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [one.requires_grad for one in loaded.parameters()] == [
        one.requires_grad for one in model.parameters()
    ]
    x = inputs_of(model)
    with torch.inference_mode():
        for key, value in model(x).items():
            torch.testing.assert_close(loaded(x)[key], value)
    again = tmp_path / "again.safetensors"
    ir.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_loaded_model_is_called_like_every_net(tmp_path):
    model = make("nima", {"backbone": "mobilenet_v2"})
    x = inputs_of(model)
    with torch.inference_mode():
        wanted = model(x)
        for found in (model(data=x), model({"data": x}), model(x.numpy())):
            assert found.keys() == {"distribution", "score"}
            assert torch.equal(found["score"], wanted["score"])
        assert model(x, blobs=["score"]).keys() == {"score"}
        assert torch.equal(model.as_tensor("score")(x), wanted["score"])
        assert model(x[:0])["distribution"].shape == (0, 10)
        assert torch.equal(copy.deepcopy(model)(x)["score"], wanted["score"])
        held = pickle.loads(pickle.dumps(model))  # noqa: S301 (of this test)
        assert torch.equal(held(x)["score"], wanted["score"])
    assert (
        model.inputs_for(["score"]) == ("data",)
        and model.image_input() == "data"
        and model.fixed_batch is None
    )


CALLS = {
    "no input": ((), {}, "model nima: input 'data' is missing; give it"),
    "another input": (
        (), {"date": 1}, "model nima: has no input 'date' (did you mean data?); it has 'data'",
    ),
    "given twice": ((1,), {"data": 1}, "input 'data' is given twice; give it once"),
    "two inputs": ((1, 2), {}, "model nima: 2 inputs by position; it takes 1 ('data')"),
    "another number of axes": (
        (torch.zeros(3, 64, 64),), {},
        "model nima: input 'data' takes Nx3xHxW, and is given 3x64x64; give it in that shape",
    ),
    "another number of channels": (
        (torch.zeros(2, 1, 64, 64),), {},
        "model nima: input 'data' takes Nx3xHxW, and is given 2x1x64x64; give it in that shape",
    ),
    "small images": (
        (torch.zeros(2, 3, 64, 31),), {}, "model nima: images are 64x31; give at least 32x32",
    ),
    "another output": (
        (torch.zeros(2, 3, 64, 64),), {"blobs": ["scores"]},
        "blob 'scores' is no output of 'nima' (did you mean score?); a model returns only its outputs: 'distribution', "
        "'score'",
    ),
    "no numbers": (("a.jpg",), {}, "input 'data' is a str; give a tensor or an array, such as net.prepare(images) returns"),
}  # fmt: skip


@pytest.fixture(scope="module")
def nima():
    return make("nima", {"backbone": "mobilenet_v2"})


@pytest.mark.parametrize(("given", "named", "message"), CALLS.values(), ids=CALLS)
def test_calls_are_checked(nima, given, named, message):
    with pytest.raises(IlgnetError) as caught:
        nima(*given, **named)
    assert str(caught.value) == message


def test_a_head_takes_features_and_no_images():
    model = make("gsfl", MODELS["gsfl"][1])
    with pytest.raises(IlgnetError, match=r"^model gsfl: input 'features' takes Nx40, and is given 2x41; "):
        model(torch.zeros(2, 41))
    with pytest.raises(IlgnetError) as caught:
        ir.score([np.zeros((40, 40, 3), np.uint8)], model, preprocessing=nima_preprocessing())
    assert str(caught.value) == (
        "model gsfl: takes features (40 per row), not images; give it what another net computes from them"
    )


def nima_preprocessing():
    return make("tanet", {"branches": ("colour",)}).about.preprocessing


# ---------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def colour_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "colour.safetensors"
    ir.save(make("tanet", {"branches": ("colour",)}), path)
    return path


OPTIONS = '{"name": "tanet", "options": %s}'
METADATA = {
    "no JSON": ({"model": "tanet"}, "model: not as this package writes it (Expecting value: line 1 column 1 (char 0))"),
    "no object": ({"model": "[]"}, "model: not as this package writes it ('list' object has no attribute 'keys')"),
    "no options": (
        {"model": '{"name": "tanet"}'}, "model: not as this package writes it (it states 'name', not 'name' and 'options')",
    ),
    "more than name and options": (
        {"model": '{"name": "tanet", "options": {}, "code": "x"}'},
        "model: not as this package writes it (it states 'name', 'options', 'code', not 'name' and 'options')",
    ),
    "a name that is no text": (
        {"model": '{"name": ["tanet"], "options": {}}'},
        "model: not as this package writes it (its name is not text, or its options are not an object)",
    ),
    "options in a list": (
        {"model": '{"name": "tanet", "options": []}'},
        "model: not as this package writes it (its name is not text, or its options are not an object)",
    ),
    "another model": (
        {"model": '{"name": "tannet", "options": {}}'},
        "model 'tannet' is unknown (did you mean tanet?); known are nima, tanet, gsfl, attributes",
    ),
    "a function's name": (
        {"model": '{"name": "os:system", "options": {}}'},
        "model 'os:system' is unknown; known are nima, tanet, gsfl, attributes",
    ),
    "another option": (
        {"model": OPTIONS % '{"size": 3}'}, "model tanet: option 'size' is unknown; it takes data, branches",
    ),
    "an option of another type": (
        {"model": OPTIONS % '{"data": 7}'}, "model tanet: data 7 must be a text",
    ),
    "an option of another value": (
        {"model": OPTIONS % '{"data": "eva"}'}, "model tanet: data 'eva' is unknown; choose from tad66k, ava",
    ),
    "a branch twice": (
        {"model": OPTIONS % '{"branches": ["colour", "colour"]}'},
        "model tanet: branches ['colour', 'colour'] states one twice; give each once",
    ),
    "a name as an option": (
        {"model": OPTIONS % '{"name": "nima"}'}, "model tanet: option 'name' is unknown; it takes data, branches",
    ),
    "larger than memory": (
        {"model": '{"name": "gsfl", "options": {"features": 1048577}}'},
        "model gsfl: features 1048577 must be at most 1048576",
    ),
    "not a number": (
        {"model": '{"name": "gsfl", "options": {"features": true}}'}, "model gsfl: features True must be an integer",
    ),
    "the score of another output": (
        {"about": '{"score": {"output": "prob", "index": 0, "meaning": "x"}}'},
        "about: the score is of 'prob', which the model tanet does not return",
    ),
    "the distribution of another output": (
        {"about": '{"score": {"output": "score", "index": 0, "meaning": "x", "distribution": "votes"}}'},
        "about: the score is of 'votes', which the model tanet does not return",
    ),
    "a distribution that is no text": (
        {"about": '{"score": {"output": "score", "index": 0, "meaning": "x", "distribution": 3}}'},
        "about: not as this package writes it; convert the weights again",
    ),
    "a deviation of 0": (
        {"preprocessing": json.dumps({
            "size": [224, 224], "path": "whole", "resize": None, "order": "RGB", "mean_value": [], "scale": 1.0,
            "has_mean_image": False, "deviation": [1, 0, 1],
        })},
        "preprocessing: deviation 0: give numbers of at least 1e-30",
    ),
}  # fmt: skip


def rewritten(source, target, metadata, tensors=None):
    file = open_safetensors(source)
    write_safetensors(target, tensors or file.tensors, {**file.metadata, **metadata})
    return target


@pytest.mark.parametrize(("metadata", "message"), METADATA.values(), ids=METADATA)
def test_damaged_metadata_are_refused(colour_file, tmp_path, metadata, message):
    path = rewritten(colour_file, tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(IlgnetError) as caught:
        ir.load(path)
    assert str(caught.value) == f"{path}: {message}"


TENSORS = {
    "one is missing": (
        lambda held: held.pop("head.2.bias"), "holds no tensor head.2.bias, which the model tanet needs; save it again",
    ),
    "one has another shape": (
        lambda held: held.update({"colour.2.bias": torch.zeros(11)}),
        "tensor colour.2.bias is 11, the model tanet needs 10; save it again",
    ),
    "one has another type": (
        lambda held: held.update({"colour.2.bias": torch.zeros(10, dtype=torch.float16)}),
        "tensor colour.2.bias is of float16, the model tanet needs float32; save it again",
    ),
    "one is unknown": (
        lambda held: held.update({"code": torch.zeros(1)}),
        "holds tensor code, which the model tanet does not have; is it another model's file?",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_refused(colour_file, tmp_path, change, message):
    held = dict(open_safetensors(colour_file).tensors)
    change(held)
    path = rewritten(colour_file, tmp_path / "damaged.safetensors", {}, held)
    with pytest.raises(IlgnetError) as caught:
        ir.load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_truncated_file_is_refused(colour_file, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(colour_file.read_bytes()[:-100])
    with pytest.raises(IlgnetError, match="is not a complete safetensors file"):
        ir.load(path)


def test_a_model_is_no_caffe_net(colour_file):
    with pytest.raises(IlgnetError) as caught:
        ir.load(colour_file, phase="TRAIN")
    assert str(caught.value) == (
        f"{colour_file}: is a model and no Caffe net, to which phase= does not apply; leave it out"
    )
    with pytest.raises(
        IlgnetError, match="holds a model that is not a Caffe net, so it cannot be used as one; give Caffe"
    ):
        ir.load_net("deploy.prototxt", colour_file)


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5", ".py", ".xml"])
def test_formats_of_caffe_nets_are_refused(nima, tmp_path, suffix):
    with pytest.raises(
        IlgnetError, match=r"^model nima: is not a Caffe net, so it has no \w+ file; use safetensors"
    ):
        ir.save(nima, tmp_path / f"nima{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [{"fold": True}, {"precision": "int8"}, {"outputs": ["score"]}], ids=str)
def test_options_of_caffe_nets_are_refused(nima, tmp_path, option):
    (name,) = option
    with pytest.raises(IlgnetError) as caught:
        ir.save(nima, tmp_path / "nima.safetensors", **option)
    assert str(caught.value) == (
        f"model nima: {name}= does not apply to a safetensors file of it; leave it out"
    )


# ---------------------------------------------------------------------- preprocessing and scores


def test_images_are_prepared_as_the_file_says(nima, tmp_path):
    """Resized to 256, the centre 224, divided by 255 and normalized with ImageNet's mean and deviation, in RGB."""
    image = np.random.default_rng(2).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    ir.save(nima, tmp_path / "nima.safetensors")
    found = ir.load(tmp_path / "nima.safetensors").prepare([image])
    centre = image[16:240, 16:240, ::-1].astype(np.float64) / 255
    wanted = (centre - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found.numpy()[0], wanted.transpose(2, 0, 1), atol=1e-5)


def test_stated_preprocessing_is_saved(nima, tmp_path):
    model = copy.deepcopy(nima)
    mean = np.random.default_rng(4).uniform(0, 255, (3, 240, 240)).astype(np.float32)
    how = ir.Preprocessing((224, 224), "crop", (240, 240), "BGR", mean_image=mean, deviation=(2.0, 3.0, 4.0))
    model.about = replace(model.about, preprocessing=how, score=ScoreAt("score", 0, "mean score"))
    ir.save(model, tmp_path / "model.safetensors")
    found = ir.load(tmp_path / "model.safetensors").about
    assert found.preprocessing.to_json() == how.to_json() and found.score == model.about.score
    np.testing.assert_array_equal(found.preprocessing.mean_image, mean)


def test_the_score_of_a_distribution_has_its_deviation(nima, tmp_path, capsys):
    images = np.random.default_rng(5).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    path = tmp_path / "nima.safetensors"
    ir.save(nima, path)
    rows = ir.score(list(images), path)
    assert len(rows) == 3
    for row in rows:
        shares, votes = np.array(row.outputs["distribution"]), np.arange(1, 11)
        assert row.value == pytest.approx(shares @ votes, rel=1e-5) and row.meaning == "mean score"
        assert row.deviation == pytest.approx(np.sqrt(shares @ (votes - shares @ votes) ** 2), rel=1e-5)
    cv2.imwrite(str(tmp_path / "a.png"), images[0])
    assert main(["score", str(tmp_path / "a.png"), "--weights", str(path)]) == 0
    assert capsys.readouterr().out == f"{rows[0].value:.6f} ± {rows[0].deviation:.6f}  {tmp_path / 'a.png'}\n"
    assert main(["score", str(tmp_path / "a.png"), "--weights", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["deviation"] == pytest.approx(rows[0].deviation) and found["value"] == pytest.approx(
        rows[0].value
    )


def test_a_score_without_a_distribution_has_no_deviation(colour_file):
    (row,) = ir.score([np.zeros((40, 60, 3), np.uint8)], colour_file)
    assert row.deviation is None and 0 < row.value < 1


COMMANDS = {
    "a fast net": (["score", "x.png", "--fast"], "--fast: model tanet is not a Caffe net, and torch computes it; omit it"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "message"), COMMANDS.values(), ids=COMMANDS)
def test_options_of_commands_are_refused(colour_file, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("x.png", np.zeros((40, 60, 3), np.uint8))
    assert main([*command, "--weights", str(colour_file)]) == 1
    assert message in capsys.readouterr().err
