"""Warnings of a run, and how it describes its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_ava import TinySet

from ilgnet_repro import known
from ilgnet_repro.aesthetics import context
from ilgnet_repro.aesthetics import releases as manifest
from ilgnet_repro.aesthetics.context import (
    Weights,
    choose_mean,
    identify_weights,
    partition_warnings,
    weights_warnings,
)
from ilgnet_repro.aesthetics.labelled_images import ListedImages, StoredImages, open_images
from ilgnet_repro.aesthetics.protocols import PROTOCOLS, Mean, Preparation, find_protocol
from ilgnet_repro.aesthetics.releases import find_release
from ilgnet_repro.aesthetics.results import Source
from ilgnet_repro.errors import DataError, IlgnetError
from ilgnet_repro.export.save import save
from ilgnet_repro.known import KnownModel
from ilgnet_repro.runtime.load import load


def weights(release: str | None = None, random: bool = False) -> Weights:
    known = find_release(release) if release else None
    return Weights(Source("w.caffemodel", "ab" * 32, release), known, random)


class Listed(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


# Weights, the list that was read, the protocol: what each warning must hold, in order.
PARTITIONS = {
    "as it should be": ("ava1-weights", "ava1-val", "ava1", "full", ()),
    "another list": (
        "ava1-weights", "ava1-train", "ava1", "full",
        ("is the released ava1-train, not ava1-val", "contaminated: ava1-weights were trained on 235,529"),
    ),
    "an unknown list": (None, None, "ava1", "full", ("val.txt is not the released ava1-val (its list has SHA",)),
    "AVA1's weights on AVA2": ("ava1-weights", "ava2-val", "ava2", "full", ("23,768 of the 25,553 images",)),
    "unknown weights on AVA2": (None, "ava2-val", "ava2", "full", ()),
    "own images": (None, None, "own", "full", ()),
    "sorted by class": (None, "ava1-val", "ava1", "published", ("the first 5 images all have label 0",)),
}  # fmt: skip


@pytest.mark.parametrize("of, partition, dataset, protocol, expected", PARTITIONS.values(), ids=PARTITIONS)
def test_partition_warnings(of, partition, dataset, protocol, expected) -> None:
    known = find_release(partition) if partition else None
    images = Listed(title="val.txt", sha256="cd" * 32, release=known, labels=np.array([0] * 6 + [1] * 3))
    found = partition_warnings(images, dataset, weights(of), PROTOCOLS[protocol], 5)
    assert len(found) == len(expected)
    for warning, part in zip(found, expected, strict=True):
        assert part in warning
        assert "\n" not in warning


def test_a_run_that_wraps_gives_a_warning() -> None:
    images = Listed(title="val.txt", sha256="", release=None, labels=np.array([0, 1, 1]))
    found = partition_warnings(images, "own", weights(), PROTOCOLS["published"], 4)
    assert found == ["wrapped: 4 images are read of a list of 3, some more than once"]


UNKNOWN = {
    "released": (weights("ava2-weights"), "ava2", 0),
    "unknown": (weights(), "ava2", 1),
    "random, which is reported elsewhere": (weights(random=True), "ava1", 0),
    "own images": (weights(), "own", 0),
}


@pytest.mark.parametrize("known, dataset, count", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_weights(known: Weights, dataset: str, count: int) -> None:
    found = weights_warnings(known, dataset)
    assert len(found) == count
    assert all(
        "unknown weights: w.caffemodel is not one of the released files (SHA-256 abab" in text
        for text in found
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of released files."""
    monkeypatch.setenv("ILGNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_mean_of_the_weights(authors: Path, home: Path) -> None:
    full, whole = PROTOCOLS["full"], PROTOCOLS["resize"]
    with pytest.raises(IlgnetError, match="`ilgnet data get ava1-mean`, or give mean=FILE"):
        choose_mean("ava1", full, weights())
    # Weights trained on AVA1 need AVA1's mean, for any test list.
    with pytest.raises(IlgnetError, match="ava1-mean"):
        choose_mean("ava2", full, weights("ava1-weights"))
    path = home / find_release("ava1-mean").path
    path.parent.mkdir(parents=True)
    path.write_bytes((authors / "mean" / "AVA1_mean.binaryproto").read_bytes())
    mean, source, warnings = choose_mean("ava1", full, weights())
    assert (source.known_as, warnings) == ("ava1-mean", [])
    assert mean.image.shape == (3, 256, 256)
    assert choose_mean("ava1", whole, weights())[0].channels == pytest.approx(
        (91.00, 99.46, 107.85), abs=0.005
    )
    other = authors / "mean" / "AVA2_mean.binaryproto"
    _, source, warnings = choose_mean("ava1", full, weights(), other)
    assert source.known_as == "ava2-mean"
    assert warnings == [f"wrong mean file: {other} is the released ava2-mean; the weights go with ava1-mean"]


def test_mean_without_files(tmp_path: Path, home: Path) -> None:
    full, whole = PROTOCOLS["full"], PROTOCOLS["resize"]
    # The authors' other path needs only the channel means, which are known.
    assert choose_mean("ava2", whole, weights())[0].values == (90.05, 98.59, 107.51)
    mean, source, warnings = choose_mean("own", full, weights(), values=(1, 2, 3))
    assert (mean.values, source, warnings) == ((1, 2, 3), None, [])
    mean, source, warnings = choose_mean("ava1", full, weights(), values=(1, 2, 3))
    assert (mean.values, source) == ((1, 2, 3), None)
    assert warnings == ["wrong mean file: none, but the channel means that were given"]
    with pytest.raises(IlgnetError, match="no mean: give mean=FILE or mean_values="):
        choose_mean("own", full, weights())
    with pytest.raises(IlgnetError, match="give mean= or mean_values=, not both"):
        choose_mean("own", full, weights(), "x", (1, 2, 3))
    with pytest.raises(DataError, match="cannot be read"):
        choose_mean("own", full, weights(), tmp_path / "absent")


@pytest.mark.parametrize(
    "name, random", [("ILGNet with RANDOM weights, made by …", True), ("GoogleNet", False)]
)
def test_random_weights_are_reported(tmp_path: Path, name: str, random: bool) -> None:
    tiny = TinySet(tmp_path, 3, name=name)
    net = load(tiny.weights, tmp_path / "tiny.prototxt")
    known = identify_weights(tiny.weights, net)
    assert (known.random, known.release) == (random, None)
    assert known.source.sha256 == hashlib.sha256(tiny.weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name, random", [("ILGNet with RANDOM weights, made by …", True), ("GoogleNet", False)]
)
def test_converted_random_weights_are_reported_too(tmp_path: Path, name: str, random: bool) -> None:
    from ilgnet_repro.export.convert import convert

    tiny = TinySet(tmp_path, 3, name=name)
    convert(tiny.weights, tmp_path / "tiny.prototxt", out=tmp_path)
    path = tmp_path / "tiny.safetensors"
    known = identify_weights(path, load(path))
    assert (known.random, known.source.known_as) == (random, None)


def test_a_database_of_a_released_list_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TinySet(tmp_path, 7)
    database, rows = tiny.store(), tiny.list(files=False)
    assert ListedImages(rows).release is None
    assert StoredImages(database).order == "in the database's order"
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    release = manifest.Release("ava1-val", "partition", "val.txt", 1, digest)
    known = "ilgnet_repro.aesthetics.labelled_images.known_release"
    monkeypatch.setattr(known, lambda sha256: release if sha256 == digest else None)
    for images in (ListedImages(rows), StoredImages(database)):
        assert (images.release, images.sha256, images.order) == (release, digest, "as given")
        assert list(images.names) == tiny.names
        assert images.labels.tolist() == tiny.labels.tolist()


def test_released_lists_are_opened_by_name(authors: Path, home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(IlgnetError, match="the released list is not there; `ilgnet data get ava2-val`"):
        open_images("ava2", images="images")
    path = home / find_release("ava2-val").path
    path.parent.mkdir(parents=True)
    path.write_bytes((authors / "data" / "AVA2" / "val.txt").read_bytes())
    images = open_images("ava2", images="images")
    assert (len(images), images.release.name, int(images.labels.sum())) == (25_553, "ava2-val", 12_722)
    assert images.image(0) == f"images/{images.names[0]}"


CHOICES = {
    "nothing": ({}, "no images: give images=FOLDER, list_file=LIST or database=DB"),
    "both": ({"database": "db", "images": "images"}, "leave out list_file= and images="),
    "own without a list": ({"images": "images"}, "give the labels too, as list_file=LIST"),
    "no database": ({"database": "absent"}, "is not an LMDB"),
    "no list": ({"list_file": "absent.txt"}, "absent.txt: cannot be read"),
}


@pytest.mark.parametrize("options, message", CHOICES.values(), ids=CHOICES)
def test_images_that_cannot_be_opened(options: dict, message: str) -> None:
    with pytest.raises(IlgnetError, match=message):
        open_images("own", **options)


@pytest.mark.parametrize(
    "text, message", [("a.jpg 0\nb.jpg 2\n", "b.jpg has label 2; a two-class"), ("", "no rows")]
)
def test_lists_that_are_not_of_two_classes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_images("own", list_file=tmp_path / "val.txt")


def test_unknown_protocol_and_impossible_crop() -> None:
    with pytest.raises(IlgnetError, match="protocol 'half' is unknown; use published, full, resize, tencrop"):
        find_protocol("half")
    with pytest.raises(IlgnetError, match="images of 200 pixels cannot be cropped to 227"):
        Preparation(PROTOCOLS["full"], 227, Mean(), resize=200)


def test_versions_name_what_decodes_and_computes() -> None:
    assert set(context.versions()) >= {"ilgnet_repro", "torch", "numpy", "opencv", "python"}


CONVERTED = {  # options of save, whether the weights are changed before -> how the file is known
    "as it is": ({}, False, "converted from small-weights"),
    "folded": ({"fold": True}, False, "converted from small-weights (folded)"),
    "int8": ({"precision": "int8"}, False, "converted from small-weights (int8)"),
    "both": ({"fold": True, "precision": "float16"}, False, "converted from small-weights (folded, float16)"),
    "trained further": ({}, True, None),
}


@pytest.mark.parametrize(("options", "is_changed", "known_as"), CONVERTED.values(), ids=CONVERTED)
def test_converted_weights_are_recognized_by_their_source(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options,
    is_changed: bool,
    known_as: str | None,
) -> None:
    path = folder / "small.caffemodel"
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    model = KnownModel(
        "small-weights", "the small net", ("small.caffemodel",), size=size, digests=(f"sha256:{digest}",)
    )
    models = (model, *known.known_models())
    monkeypatch.setattr(known, "known_models", lambda: models)
    release = manifest.Release("small-weights", "weights", "small.caffemodel", size, digest)
    monkeypatch.setattr(context, "known_release", lambda sha256: release if sha256 == digest else None)
    net = load(path)
    if is_changed:
        with torch.no_grad():
            net.params["ip"][1].add_(0.5)
    saved = save(net, tmp_path / "x.safetensors", **options)[0]
    found = identify_weights(saved, load(saved))
    assert (found.release and found.release.name) == (None if known_as is None else "small-weights")
    assert found.source.known_as == known_as
