"""The protocols on sets with AVA's counts: denominators, every probability, interruptions, bad images."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from killing import kill_midway
from tiny_ava import CROP, SIDE, TinySet

from ilgnet_repro.aesthetics.journal import Journal
from ilgnet_repro.aesthetics.labelled_images import open_images
from ilgnet_repro.aesthetics.protocol_run import run_protocol, scorer
from ilgnet_repro.aesthetics.protocols import PROTOCOLS, Mean, Preparation
from ilgnet_repro.aesthetics.releases import find_release
from ilgnet_repro.aesthetics.results import RunResult
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError, IlgnetError
from ilgnet_repro.reading.preprocessing import load_image, preprocess
from ilgnet_repro.runtime.load import load, load_net

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ava(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinySet]:
    """Sets of the released val lists' counts: AVA1's sorted by class, AVA2's mixed; stored as LMDBs."""
    sets = {}
    for name, sort in (("ava1", True), ("ava2", False)):
        low, high = find_release(f"{name}-val").classes
        sets[name] = TinySet(tmp_path_factory.mktemp(name), low + high, high / (low + high), sort)
        sets[name].store()
    return sets


def read_run(folder: Path) -> RunResult:
    return RunResult.read(folder / "run.json")


def comparable(first: RunResult, second: RunResult) -> bool:
    """Equal except for their time and output folder."""
    mine, other = first.to_dict(), second.to_dict()
    for values in (mine, other):
        values["elapsed"] = values["command"] = None
    return mine == other


# Denominators and batches: 2,500, 2,400, 20,000, 25,553 (533 batches, the last of 17).
COUNTS = {
    "ava1 published": ("ava1", "published", 2_500, 50, 50),
    "ava2 published": ("ava2", "published", 2_400, 50, 48),
    "ava1 full": ("ava1", "full", 20_000, 400, 50),
    "ava2 full": ("ava2", "full", 25_553, 533, 17),
}


@pytest.mark.parametrize("dataset, protocol, count, batches, last", COUNTS.values(), ids=COUNTS)
def test_counts_and_every_probability(
    ava: dict[str, TinySet], tmp_path: Path, capsys: pytest.CaptureFixture, dataset: str, protocol: str,
    count: int, batches: int, last: int,
) -> None:  # fmt: skip
    tiny = ava[dataset]
    arguments = [
        "test",
        dataset,
        "--lmdb",
        str(tiny.folder / "lmdb"),
        "--protocol",
        protocol,
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, *tiny.arguments("--json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    run = read_run(tmp_path)
    assert (run.count, len(run.batches), run.batches[-1].size) == (count, batches, last)
    expected, labels = tiny.probability()[:count], tiny.labels[:count]
    assert run.images.names.tolist() == tiny.names[:count]
    assert (run.images.labels == labels).all()
    np.testing.assert_allclose(run.images.probability, expected, atol=2e-6)
    right = np.where(labels == 1, expected > 0.5, expected < 0.5)
    # A probability within rounding of one half may fall either way; there is none in these sets.
    assert np.abs(expected - 0.5).min() > 2e-6
    assert printed["protocol_accuracy"]["correct"] == run.correct == right.sum()
    assert printed["protocol_accuracy"]["count"] == count
    size = {"ava1": 50, "ava2": 48}[dataset]
    assert [b.correct for b in run.batches] == [right[k : k + size].sum() for k in range(0, count, size)]
    assert any("wrong partition" in warning for warning in run.warnings)
    assert any("one class" in warning for warning in run.warnings) == (
        dataset == "ava1" and protocol == "published"
    )


def test_killed_and_resumed(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path, 4_000)
    tiny.store()
    command = [sys.executable, "-m", "ilgnet_repro.cli.main", "test", "own", "--lmdb", str(tiny.folder / "lmdb"),
               *tiny.arguments("--resume"), "--out"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder, journal = tmp_path / "killed", tmp_path / "killed" / "journal.csv"
    kill_midway(
        [*command, folder],
        is_midway=lambda: journal.is_file() and journal.stat().st_size >= 30_000,
        start_over=lambda: shutil.rmtree(folder),
        cwd=ROOT,
        env=environment,
    )
    assert not (folder / "run.json").exists()
    assert journal.stat().st_size >= 30_000
    subprocess.run([*command, str(folder)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert main([*command[3:-1], "--out", str(tmp_path / "whole")]) == 0
    assert comparable(read_run(folder), read_run(tmp_path / "whole"))
    assert (folder / "pictures.csv").read_bytes() == (tmp_path / "whole" / "pictures.csv").read_bytes()
    assert not journal.exists()


@pytest.fixture
def small(tmp_path: Path) -> TinySet:
    """Thirteen image files, with their list."""
    tiny = TinySet(tmp_path, 13)
    tiny.list()
    return tiny


def run_small(small: TinySet, protocol: str = "full", batches: int | None = None, **options):
    net = load(small.weights, small.folder / "tiny.prototxt")
    images = open_images("own", images=small.folder / "images", list_file=small.folder / "val.txt")
    preparation = Preparation(PROTOCOLS[protocol], CROP, Mean(small.mean))
    return run_protocol(scorer(net), images, preparation, 4, batches=batches, **options)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_wraps(small: TinySet, workers: int) -> None:
    found = run_small(small, "published", batches=5, workers=workers)
    rows = np.arange(20) % 13
    expected = small.probability(rows)
    right = np.where(small.labels[rows] == 1, expected > 0.5, expected < 0.5)
    assert [(b.size, b.correct) for b in found.batches] == [
        (4, right[k : k + 4].sum()) for k in range(0, 20, 4)
    ]
    of_label = np.where(small.labels[rows] == 1, expected, 1 - expected)
    losses = -np.log(of_label).reshape(5, 4).mean(axis=1)
    np.testing.assert_allclose([b.loss for b in found.batches], losses, rtol=1e-5)
    assert found.images.names.tolist() == small.names  # each once, though seven were read twice


@pytest.mark.parametrize("batches", [None, 5], ids=["full", "published"])
@pytest.mark.parametrize("bad", [(), (0, 6, 12)], ids=["all good", "three bad"])
def test_a_journal_truncated_anywhere_gives_the_same_result(
    small: TinySet, batches: int | None, bad: tuple[int, ...]
) -> None:
    for row in bad:
        (small.folder / "images" / small.names[row]).write_bytes(b"no image")
    path = small.folder / "journal"
    with Journal(path, "key") as journal:
        whole = run_small(small, batches=batches, journal=journal)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 14
    for kept in range(1, len(lines) + 1):
        path.write_bytes(b"".join(lines[:kept]) + b"half a li")
        with Journal(path, "key") as journal:
            again = run_small(small, batches=batches, journal=journal)
        assert (again.images, again.batches) == (whole.images, whole.batches)
        assert again.bad == whole.bad  # with the reasons
        assert path.read_bytes().splitlines() == [line.rstrip() for line in lines]


def test_bad_images_are_skipped_and_reported(small: TinySet) -> None:
    images = small.folder / "images"
    (images / small.names[1]).unlink()
    (images / small.names[5]).write_bytes((images / small.names[5]).read_bytes()[:40])
    found = run_small(small)
    good = [row for row in range(13) if row not in (1, 5)]
    assert found.images.names.tolist() == [small.names[row] for row in good]
    np.testing.assert_allclose(found.images.probability, small.probability(np.array(good)), atol=2e-6)
    assert [batch.size for batch in found.batches] == [4, 4, 3]
    assert [name for name, _ in found.bad] == [small.names[1], small.names[5]]
    assert all(name in reason for name, reason in found.bad)
    # The next image takes the place of one left out, as when convert_imageset builds the database.
    found = run_small(small, batches=6)
    rows = (good * 3)[:24]
    right = np.where(small.labels[rows] == 1, (p := small.probability(np.array(rows))) > 0.5, p < 0.5)
    assert [b.correct for b in found.batches] == [right[k : k + 4].sum() for k in range(0, 24, 4)]


def test_one_good_image_fills_every_batch(small: TinySet) -> None:
    for name in small.names[1:]:
        (small.folder / "images" / name).unlink()
    found = run_small(small, batches=3)
    assert [batch.size for batch in found.batches] == [4, 4, 4]
    assert found.images.names.tolist() == small.names[:1]
    assert len(found.bad) == 12


@pytest.mark.parametrize("batches", [None, 2], ids=["full", "published"])
def test_no_good_image(small: TinySet, batches: int | None) -> None:
    for name in small.names:
        (small.folder / "images" / name).unlink()
    with pytest.raises(DataError, match=rf"val\.txt: none of its 13 images can be read: .*{small.names[0]}"):
        run_small(small, batches=batches)


def test_strict_stops_at_the_first(small: TinySet) -> None:
    (small.folder / "images" / small.names[7]).write_bytes(b"")
    with pytest.raises(DataError, match=small.names[7]):
        run_small(small, strict=True)


def test_ten_crops(small: TinySet) -> None:
    found = run_small(small, "tencrop")
    rest, middle = SIDE - CROP, (SIDE - CROP) // 2
    places = [(0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)]
    expected = np.mean(
        [small.of_window(*place, flip=flip) for flip in (False, True) for place in places], axis=0
    )
    np.testing.assert_allclose(found.images.probability, expected, atol=2e-6)
    assert np.abs(expected - small.probability()).max() > 1e-3


def test_the_authors_other_path(small: TinySet) -> None:
    found = run_small(small, "resize")
    paths = [small.folder / "images" / name for name in small.names]
    means = small.mean.astype(np.float64).mean(axis=(1, 2))
    inputs = np.stack([preprocess(load_image(path), (CROP, CROP), means) for path in paths])
    np.testing.assert_allclose(found.images.probability, small.of_input(inputs), atol=2e-6)


def test_images_of_other_sizes_are_resized_as_for_a_database(small: TinySet) -> None:
    path = small.folder / "images" / small.names[0]
    large = np.random.default_rng(1).integers(0, 256, (31, 20, 3), dtype=np.uint8)
    cv2.imwrite(str(path), large)
    small.images = small.images.copy()
    small.images[0] = cv2.resize(large, (SIDE, SIDE)).transpose(2, 0, 1)
    np.testing.assert_allclose(run_small(small).images.probability, small.probability(), atol=2e-6)


def test_mean_scores_reach_the_rows(small: TinySet) -> None:
    found = run_small(small, mean_score=lambda name: 5.5 if name == small.names[2] else math.nan)
    assert found.images.mean_score is not None
    assert np.flatnonzero(~np.isnan(found.images.mean_score)).tolist() == [2]


class NetOf:
    """Called like a CaffeNet, and returns the given probabilities for every image."""

    inputs, outputs, fixed_batch = ("data",), ("prob",), None

    def __init__(self, *values: float) -> None:
        self.values = values

    def inputs_for(self, wanted):
        return self.inputs

    def __call__(self, inputs, blobs=None):
        return {"prob": inputs["data"].new_tensor([self.values]).repeat(len(inputs["data"]), 1)}


def test_any_object_called_like_a_net_is_accepted(small: TinySet) -> None:
    images = open_images("own", images=small.folder / "images", list_file=small.folder / "val.txt")
    preparation = Preparation(PROTOCOLS["full"], CROP, Mean(small.mean))
    found = run_protocol(scorer(NetOf(0.25, 0.75)), images, preparation, 4)
    assert (found.images.probability == 0.75).all()
    with pytest.raises(IlgnetError, match="'prob' does not hold two probabilities per image"):
        run_protocol(scorer(NetOf(1.5, 0.75)), images, preparation, 4)
    with pytest.raises(IlgnetError, match="must be 1 or more"):
        run_protocol(scorer(NetOf(0.5, 0.5)), images, preparation, 0)


def test_a_scorer_gives_the_phases_numbers_and_leaves_the_mode() -> None:
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 7 dim: 6 } } }
    layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
    layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "ip"
      inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
    layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
    layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
    """
    data = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3, 7, 6), np.float32))
    net = load_net(parse_net(text), phase="TEST", seed=3)
    with torch.no_grad():
        for blob, value in zip(net.params["bn"], (0.1, 0.9, 1.0), strict=True):
            blob.fill_(value)
    wanted, before = scorer(net)(data), [blob.clone() for blob in net.params["bn"]]
    torch.testing.assert_close(scorer(net.train())(data), wanted)
    assert all(module.training for module in net.modules())
    for blob, value in zip(net.params["bn"], before, strict=True):
        assert torch.equal(blob, value)  # no statistics moved
