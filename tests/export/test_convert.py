"""The converter: the prototxt found, complete files, unchanged outputs, and refusals that leave no file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import SHARED_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.find import match_built_in
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.zoo.catalogue import build
from ilgnet_repro.zoo.seeded import seeded_blobs

DATA = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(3))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_through_safetensors(folder) -> None:
    report = ir.convert(folder / "small.caffemodel", verify=True, sha256=True)
    assert report.prototxt.endswith("deploy.prototxt")
    assert report.source.sha256 == hashlib.sha256((folder / "small.caffemodel").read_bytes()).hexdigest()
    assert (report.parameters, report.outputs, report.is_verified) == (
        4 * 27 + 4 + 5 * 24 + 5,
        ("prob",),
        True,
    )
    original = ir.load_net(folder / "deploy.prototxt", folder / "small.caffemodel")
    net = ir.load(folder / "small.safetensors")
    assert torch.equal(net(data=DATA)["prob"], original(data=DATA)["prob"])
    assert net.about.source.sha256 == report.source.sha256
    assert net.about.preprocessing is None
    assert names(folder) == ["deploy.prototxt", "small.caffemodel", "small.safetensors"]


def test_the_same_input_gives_the_same_file(folder) -> None:
    ir.convert(folder / "small.caffemodel")
    first = (folder / "small.safetensors").read_bytes()
    ir.convert(folder / "small.caffemodel")
    assert (folder / "small.safetensors").read_bytes() == first


def test_preprocessing_is_stored_in_the_file(folder) -> None:
    mean = np.random.default_rng(1).uniform(0, 255, (3, 12, 12)).astype(np.float32)
    stated = Preprocessing(size=(9, 9), path="crop", resize=(12, 12), mean_image=mean, scale=0.5, order="RGB")
    ir.convert(folder / "small.caffemodel", preprocessing=stated)
    found = ir.load(folder / "small.safetensors").about.preprocessing
    assert found.to_json() == stated.to_json()
    np.testing.assert_array_equal(found.mean_image, mean)


def test_shared_parameters_are_stored_once_and_stay_shared(tmp_path) -> None:
    write_weights(tmp_path / "s.caffemodel", SHARED_TEXT)
    (tmp_path / "s.prototxt").write_text(SHARED_TEXT)
    ir.convert(tmp_path / "s.caffemodel", verify=True)
    net = ir.load(tmp_path / "s.safetensors")
    assert net.params["a"][0] is net.params["b"][0]


def test_converting_back_to_a_caffemodel_is_stable(folder, tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    prototxt = folder / "deploy.prototxt"
    ir.convert(folder / "small.caffemodel", prototxt, to=("caffemodel",), out=first, verify=True)
    ir.convert(first / "small.caffemodel", prototxt, to=("caffemodel",), out=second)
    assert (first / "small.caffemodel").read_bytes() == (second / "small.caffemodel").read_bytes()
    model = open_caffemodel(second / "small.caffemodel")
    original = open_caffemodel(folder / "small.caffemodel")
    for layer, expected in zip(model.layers, original.layers, strict=True):
        assert layer.name == expected.name
        for blob, wanted in zip(layer.blobs, expected.blobs, strict=True):
            np.testing.assert_array_equal(blob.array(), wanted.array())


def test_a_built_in_net_is_found_by_its_layers(tmp_path) -> None:
    text = build("squeezenet")
    shapes = {name: [s.shape for s in specs] for name, specs in plan_net(build_graph(text)).blobs.items()}
    write_caffemodel(tmp_path / "x.caffemodel", text, dict(seeded_blobs(text, shapes)))
    report = ir.convert(tmp_path / "x.caffemodel")
    assert report.prototxt == "built in (squeezenet)"
    assert match_built_in(open_caffemodel(tmp_path / "x.caffemodel")) == ["squeezenet"]


def test_a_sibling_of_the_same_name_comes_before_deploy(folder) -> None:
    (folder / "small.prototxt").write_text((folder / "deploy.prototxt").read_text())
    (folder / "deploy.prototxt").write_text("nonsense")
    assert ir.convert(folder / "small.caffemodel").prototxt.endswith("small.prototxt")


def test_any_safetensors_reader_shows_the_metadata(folder) -> None:
    from safetensors import safe_open

    ir.convert(folder / "small.caffemodel")
    with safe_open(folder / "small.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == ["conv.bias", "conv.weight", "ip.bias", "ip.weight"]
    assert parse_net(metadata["caffe.net"]).name == "small"
    assert json.loads(metadata["source"])["file"] == "small.caffemodel"


def damage_prototxt(folder: Path, old: str, new: str) -> None:
    path = folder / "deploy.prototxt"
    path.write_text(path.read_text().replace(old, new))


REFUSED = [
    ("unknown format", lambda f: None, {"to": ("mlmodel",)}, "format 'mlmodel' is unknown; use safetensors, "),
    (
        "no prototxt", lambda f: (f / "deploy.prototxt").unlink(), {},
        "{folder}/small.caffemodel: no prototxt beside it and no built-in net fits its layers; "
        "give the deploy prototxt as prototxt=",
    ),
    (
        "another net", lambda f: damage_prototxt(f, 'name: "ip"', 'name: "fc"'), {},
        "{folder}/small.caffemodel: holds no weights for fc (the file has ip, which the net lacks); ",
    ),
    (
        "another shape", lambda f: damage_prototxt(f, "num_output: 5", "num_output: 6"), {},
        "{folder}/small.caffemodel: layer ip, blob 0 is 5x24 in the file and 6x24 in the net; ",
    ),
    (
        "an unknown layer", lambda f: damage_prototxt(f, '"Softmax"', '"Sofmax"'), {},
        "prob (Sofmax): layer type is unknown (did you mean Softmax?); ",
    ),
    (
        "a field of no schema", lambda f: damage_prototxt(f, "kernel_size: 3 weight", "kernel_size: 3 foo: 1 weight"), {},
        "conv (Convolution): field convolution_param.foo (line 5, column 32) is unknown to Caffe and to this package; ",
    ),
    (
        "a truncated file",
        lambda f: (f / "small.caffemodel").write_bytes((f / "small.caffemodel").read_bytes()[:-40]), {},
        "small.caffemodel: ",
    ),
    (
        "no folder", lambda f: None, {"out": "{folder}/small.caffemodel"},
        "{folder}/small.caffemodel: cannot be made (File exists); give another as out=",
    ),
    (
        "onto itself", lambda f: None, {"to": ("caffemodel",)},
        "{folder}/small.caffemodel: would be written over itself; give another folder as out=",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "options", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_in_one_line_without_leaving_files(folder, damage, options, message) -> None:
    damage(folder)
    before = names(folder)
    if "out" in options:
        options = {"out": options["out"].format(folder=folder)}
    with pytest.raises(IlgnetError) as caught:
        ir.convert(folder / "small.caffemodel", **options)
    assert str(caught.value).startswith(message.format(folder=folder))
    assert "\n" not in str(caught.value)
    assert names(folder) == before


def test_an_ignored_field_is_accepted(folder) -> None:
    damage_prototxt(folder, "kernel_size: 3 weight", "kernel_size: 3 foo: 1 weight")
    ir.convert(folder / "small.caffemodel", ignore_fields=["convolution_param.foo"], verify=True)


def test_a_failed_verification_leaves_no_file(folder, monkeypatch) -> None:
    from ilgnet_repro.export import to_safetensors as export_safetensors

    def another(paths, saving):
        return lambda inputs: {"prob": torch.zeros(2, 5)}

    broken = dataclasses.replace(export_safetensors.FORMAT, reopen=another)
    monkeypatch.setattr(export_safetensors, "FORMAT", broken)
    before = names(folder)
    with pytest.raises(IlgnetError, match="differs from the original's by"):
        ir.convert(folder / "small.caffemodel", verify=True)
    assert names(folder) == before


LOAD_REFUSED = [
    ("cut short", lambda data: data[:-9], "is not a complete safetensors file"),
    (
        "a lying header length",
        lambda data: (1 << 60).to_bytes(8, "little") + data[8:],
        "is not a complete safetensors file",
    ),
    ("empty", lambda data: b"", "is not a complete safetensors file"),
    ("not ours", lambda data: b"\x08\0\0\0\0\0\0\0{}      ", "holds no Caffe net"),
    (
        "metadata damaged",
        lambda data: data.replace(b'"caffe.phase"', b'"caffe.phaze"'),
        "its metadata are not as",
    ),
    ("tensor renamed", lambda data: data.replace(b'"ip.bias"', b'"ip.bios"'), "holds no tensor ip.bias"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in LOAD_REFUSED], ids=[row[0] for row in LOAD_REFUSED]
)
def test_a_damaged_safetensors_file_is_refused(folder, damage, message) -> None:
    ir.convert(folder / "small.caffemodel")
    path = folder / "small.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IlgnetError) as caught:
        ir.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
