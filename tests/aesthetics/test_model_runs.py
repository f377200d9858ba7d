"""Training and testing models of scores: batches, images, targets, resumed runs, refusals, and the two commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from killing import PATIENCE, kill_midway

from ilgnet_repro.aesthetics.datasets import locate_images, read_dataset, with_validation
from ilgnet_repro.aesthetics.datasets.splits import Dataset, Rows
from ilgnet_repro.aesthetics.model_results import (
    OURS,
    PAGE,
    PUBLISHED,
    find_published,
    read_ours,
    results_page,
)
from ilgnet_repro.aesthetics.model_runs.batches import Inputs, check_batches, epoch_batches
from ilgnet_repro.aesthetics.model_runs.finish import save_trained
from ilgnet_repro.aesthetics.model_runs.recipes import RECIPES, Recipe, make_optimizer, set_epoch
from ilgnet_repro.aesthetics.model_runs.state import STATE
from ilgnet_repro.aesthetics.model_runs.tasks import Task, make_task, read_options, task_on
from ilgnet_repro.aesthetics.model_runs.train import LOG, SPLIT, ModelTrainer, Settings
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.aesthetics.models.backbones import DEVIATION, MEAN
from ilgnet_repro.aesthetics.models.nima import Nima
from ilgnet_repro.aesthetics.synthetic_scores import write_scored_set
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError, DivergedError, FormatError, IlgnetError, SolverError
from ilgnet_repro.files import file_sha256
from ilgnet_repro.runtime.safetensors_file import open_safetensors, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SLOW = pytest.mark.skipif(not os.environ.get("SLOW_MODELS"), reason="takes minutes: `make models`")


def tiny_features(folder: Path, seed: int = 0) -> Path:
    """Features of six classes that share a component in pairs, as `ilgnet features` writes them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((6, 20)) + 2 * random.standard_normal((3, 20)).repeat(2, axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 30), ("val", 12), ("test", 18)):
        labels = np.arange(count) % 6
        values = centres[labels] + 0.1 * random.standard_normal((count, 20))
        np.savez(
            folder / f"{split}.npz", fc7=values.astype(np.float32), label=labels,
            key=np.array([f"{row:08d}_{split}{row}.jpg" for row in range(count)]),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tad(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tad") / "set"
    return write_scored_set("tad66k", folder, {"train": 14, "val": 5, "test": 6}, side=40, seed=2)


# ---------------------------------------------------------------------- batches and images


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 4, [3]), (9, 4, [3, 3, 3])]
)
def test_an_epoch_reads_every_row_once_in_batches_of_like_size(count, batch, sizes) -> None:
    found = epoch_batches(count, batch, seed=3, epoch=1)
    assert [len(one) for one in found] == sizes
    assert sorted(np.concatenate(found)) == list(range(count))
    again = epoch_batches(count, batch, seed=3, epoch=1)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
    if count > 3:
        assert not np.array_equal(np.concatenate(found), np.concatenate(epoch_batches(count, batch, 3, 2)))


BATCHES = {
    "one row": (
        (5, 1, 1),
        "5 training rows in batches of at most 1: the smallest has 1 rows, and 2 are needed; change --batch-size",
    ),
    "two processes": (
        (9, 4, 2),
        "9 training rows in batches of at most 4: the smallest has 3 rows, and 2 are needed in each of 2 processes; "
        "change --batch-size",
    ),
}


@pytest.mark.parametrize(("given", "message"), BATCHES.values(), ids=BATCHES)
def test_batches_that_are_too_small_are_refused(given, message) -> None:
    check_batches(8, 4, 2)
    with pytest.raises(DataError) as caught:
        check_batches(*given)
    assert str(caught.value) == message


def test_images_are_cropped_and_mirrored_by_seed_epoch_and_row(tmp_path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 40, 3), np.uint8)
    for row in range(3):
        cv2.imwrite(str(tmp_path / f"{row}.png"), image)
    rows = Rows(("0.png", "1.png", "2.png"), {"score": np.zeros(3, np.float32)})
    inputs = Inputs(rows, [tmp_path / name for name in rows.images], size=32, resize=40)
    whole = ((image[..., ::-1] / 255 - MEAN) / DEVIATION).transpose(2, 0, 1).astype(np.float32)
    seen = set()
    for epoch in range(6):
        (x,) = inputs.training([np.array([2, 0])], seed=7, epoch=epoch)
        for row, found in zip((2, 0), x.numpy(), strict=True):
            draws = np.random.default_rng([7, epoch, row])
            top, left = draws.integers(9, size=2)
            mirrored = bool(draws.integers(2))
            seen.add(mirrored)
            wanted = whole[:, top : top + 32, left : left + 32]
            np.testing.assert_allclose(found, wanted[..., ::-1] if mirrored else wanted, atol=1e-5)
    assert seen == {False, True}
    (x,) = inputs.testing([np.array([1])])
    np.testing.assert_allclose(x[0].numpy(), whole[:, 4:36, 4:36], atol=1e-5)
    threads = Inputs(rows, inputs.paths, size=32, resize=40, workers=3)
    batches = [np.array([2, 0]), np.array([1])]
    for one, other in zip(inputs.training(batches, 7, 1), threads.training(batches, 7, 1), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------- recipes


def test_rates_belong_to_the_parts_of_the_model() -> None:
    with torch.device("meta"):
        model = create("nima", backbone="mobilenet_v2")
    recipe = RECIPES["nima"].with_rate(1e-4)
    optimizer = make_optimizer(model, recipe)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert rates[id(model.dense.weight)] == pytest.approx(1e-3)
    assert rates[id(next(model.backbone.parameters()))] == pytest.approx(1e-4)
    assert len(rates) == sum(1 for _ in model.parameters())
    for epoch, factor in ((9, 1.0), (10, 0.95), (25, 0.95**2)):
        set_epoch(optimizer, recipe, epoch)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [1e-3 * factor, 1e-4 * factor]
        )


def test_frozen_parameters_are_not_trained() -> None:
    with torch.device("meta"):
        model = create("tanet")
    trained = {
        id(one) for group in make_optimizer(model, RECIPES["tanet"]).param_groups for one in group["params"]
    }
    assert not trained & {id(one) for one in model.places.parameters()}
    assert id(model.theme.dense.weight) in trained


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(SolverError) as caught:
        make_optimizer(torch.nn.Linear(2, 1), Recipe("adagrad", {"": 1.0}, 2, 1))
    assert str(caught.value) == "optimizer 'adagrad' is unknown; use adam or sgd"


# ---------------------------------------------------------------------- tasks


def dataset(name: str, scale: tuple[float, float] = (0.0, 1.0), **targets: np.ndarray) -> Dataset:
    count = len(next(iter(targets.values())))
    rows = Rows(tuple(f"{number}.jpg" for number in range(count)), targets)
    return Dataset(name, {"train": rows, "test": rows}, scale)


SCORES = np.array([1.0, 4.0, 10.0], np.float32)


def test_targets_are_each_rows_own_on_the_models_scale() -> None:
    data = dataset("tad66k", (1.0, 10.0), score=SCORES)
    task = make_task("tanet", data, {})
    target = task.targets(data.split("train"), np.array([2, 0]))
    assert target["score"].tolist() == [[1.0], [pytest.approx(0.1)]]
    assert task.predictions({"score": torch.tensor([[0.5], [0.25]])})["score"].tolist() == [5.0, 2.5]


TASKS = {
    "TANet on TAD66K": ("tanet", ("tad66k", (1.0, 10.0)), {}, {"data": "tad66k"}, 10.0),
    "TANet on FLICKR-AES": ("tanet", ("flickr-aes", (0.0, 1.0)), {}, {"data": "tad66k"}, 1.0),
    "TANet on AVA": ("tanet", ("ava", (1.0, 10.0)), {}, {"data": "ava"}, 1.0),
    "TANet on AVA's scores": ("tanet", ("ava", (1.0, 10.0)), {"data": "tad66k"}, {"data": "tad66k"}, 10.0),
    "attributes": ("attributes", ("eva", (0.0, 10.0)), {}, {"data": "eva"}, 1.0),
}


@pytest.mark.parametrize(("model", "data", "given", "options", "factor"), TASKS.values(), ids=TASKS)
def test_options_are_completed_from_the_data(model, data, given, options, factor) -> None:
    task = make_task(model, dataset(*data, score=SCORES), given)
    assert (task.options, task.factor) == (options, factor)


def test_a_model_is_tested_on_another_scale() -> None:
    task = Task("tanet", {"data": "tad66k"}, "tad66k", 10.0)
    assert task_on(task, dataset("flickr-aes", score=SCORES)).factor == 1.0
    assert task_on(task, dataset("tad66k", (1.0, 10.0), score=SCORES)) == task


OPTIONS = {
    "integer": ("gsfl", ["groups=4"], {"groups": 4}),
    "truth": ("gsfl", ["is_decomposed=false"], {"is_decomposed": False}),
    "list": ("tanet", ["branches=aesthetics,theme"], {"branches": ("aesthetics", "theme")}),
    "list of one": ("tanet", ["branches=colour"], {"branches": ("colour",)}),
    "text": ("nima", ["backbone=vgg16"], {"backbone": "vgg16"}),
}


@pytest.mark.parametrize(("model", "texts", "found"), OPTIONS.values(), ids=OPTIONS)
def test_options_as_they_are_typed(model, texts, found) -> None:
    assert read_options(model, texts) == found


FEATURES = Dataset(
    "features",
    {"train": Rows(("a", "b"), {"label": np.array([0, 1])}, inputs=np.zeros((2, 3), np.float32))},
)
TASKS_REFUSED = {
    "unknown model": (
        lambda: make_task("tanets", dataset("ava", score=SCORES), {}),
        "model 'tanets' is unknown (did you mean tanet?); choose one of nima, tanet, gsfl, attributes",
    ),
    "NIMA without distributions": (
        lambda: make_task("nima", dataset("tad66k", score=SCORES), {}),
        "model nima is not trained on 'tad66k'; use --data ava",
    ),
    "attributes of no data": (
        lambda: make_task("attributes", dataset("ava", score=SCORES), {}),
        "model attributes is not trained on 'ava'; use --data aadb or eva",
    ),
    "a distribution of scores": (
        lambda: make_task("tanet", dataset("eva", score=SCORES), {"data": "ava"}),
        "model tanet: data='ava' needs distributions, which eva lacks; leave it out",
    ),
    "attributes of other data": (
        lambda: make_task("attributes", dataset("eva", score=SCORES), {"data": "aadb"}),
        "model attributes: data='aadb' does not suit --data eva",
    ),
    "tested on other attributes": (
        lambda: task_on(Task("attributes", {"data": "aadb"}, "aadb"), dataset("eva", score=SCORES)),
        "the model was trained on aadb, whose attributes are not those of eva; use --data aadb",
    ),
    "other classes": (
        lambda: make_task("gsfl", FEATURES, {"classes": 3}),
        "model gsfl: classes=3, and the data have 2; leave it out",
    ),
    "no name": (lambda: read_options("nima", ["vgg16"]), "--option vgg16: write NAME=VALUE"),
    "twice": (
        lambda: read_options("gsfl", ["groups=1", "groups=2"]),
        "--option groups=2: groups is given twice",
    ),
}


@pytest.mark.parametrize(("call", "message"), TASKS_REFUSED.values(), ids=TASKS_REFUSED)
def test_refused_tasks(call, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        call()
    assert str(caught.value) == message


# ---------------------------------------------------------------------- runs


class Killed(Exception):
    """Stands for a process that ends without warning: nothing is written after it."""


def gsfl_trainer(
    folder: Path, out: Path, epochs: int = 4, stop_at: tuple[int, int] = (0, 0), **fields
) -> ModelTrainer:
    data = read_dataset("features", folder)
    task = make_task("gsfl", data, {"hidden": 16, "groups": 3})
    recipe = Recipe("sgd", {"": 0.02}, 8, epochs, weight_decay=1e-3, decay=0.5, decay_epochs=2)

    def on_batch(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == stop_at:
            raise Killed

    settings = Settings(out, epochs, 8, **{"seed": 5, "save_every": 2, **fields})
    return ModelTrainer(task, data, recipe, settings, CPU, on_batch=on_batch)


def tanet_trainer(
    folder: Path, out: Path, epochs: int = 3, stop_at: tuple[int, int] = (0, 0), **fields
) -> ModelTrainer:
    data = with_validation(read_dataset("tad66k", folder))
    task = make_task("tanet", data, {"branches": ("colour",)})
    recipe = Recipe("adam", {"": 1e-4}, 5, epochs, size=32, resize=36)

    def on_batch(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == stop_at:
            raise Killed

    paths = {split: locate_images(data, split, folder / "images") for split in ("train", "val")}
    settings = Settings(out, epochs, 5, **{"seed": 5, "save_every": 1, **fields})
    return ModelTrainer(task, data, recipe, settings, CPU, paths=paths, on_batch=on_batch)


@pytest.mark.parametrize("stop_at", [(1, 1), (1, 3), (2, 4), (4, 4)], ids=str)
def test_a_killed_run_ends_with_the_same_bytes(tmp_path, stop_at) -> None:
    features = tiny_features(tmp_path / "features")
    whole = gsfl_trainer(features, tmp_path / "whole").train(resume=False)
    with pytest.raises(Killed):
        gsfl_trainer(features, tmp_path / "killed", stop_at=stop_at).train(resume=False)
    again = gsfl_trainer(features, tmp_path / "killed").train(resume=True)
    for name in (STATE, LOG, SPLIT):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert again.progress.history == whole.progress.history


def test_a_killed_run_of_images_ends_with_the_same_bytes(tmp_path, tad) -> None:
    tanet_trainer(tad, tmp_path / "whole").train(resume=False)
    with pytest.raises(Killed):
        tanet_trainer(tad, tmp_path / "killed", stop_at=(2, 2)).train(resume=False)
    tanet_trainer(tad, tmp_path / "killed", workers=2).train(resume=True)
    for name in (STATE, LOG):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


EVERY = {
    **{f"nima, {name}": ("nima", "ava", {"backbone": name}) for name in Nima.backbones},
    "tanet, TAD66K": ("tanet", "tad66k", {}),
    "tanet, AVA": ("tanet", "ava", {}),
    "attributes, AADB": ("attributes", "aadb", {}),
    "attributes, EVA": ("attributes", "eva", {}),
    "gsfl, no decomposition": ("gsfl", "features", {"is_decomposed": False, "hidden": 16}),
}


@SLOW
@pytest.mark.parametrize(("model", "data", "options"), EVERY.values(), ids=EVERY)
def test_every_model_resumes_to_the_same_bytes(tmp_path, model, data, options) -> None:
    """The whole model, killed in its second epoch after the first batch; files of up to 1.6 GB, removed at the end."""
    folder = tmp_path / "set"
    if data == "features":
        tiny_features(folder)
    else:
        write_scored_set(data, folder, {"train": 6, "val": 2, "test": 2}, side=40, seed=6)
    found = with_validation(read_dataset(data, folder))
    task = make_task(model, found, options)
    recipe = replace(RECIPES[model].with_rate(1e-3), size=32, resize=36)
    paths = {}
    if data != "features":
        paths = {split: locate_images(found, split, folder / "images") for split in ("train", "val")}

    def trainer(out: str, stop_at: tuple[int, int] = (0, 0)) -> ModelTrainer:
        def on_batch(epoch: int, done: int, total: int) -> None:
            assert total > 1
            if (epoch, done) == stop_at:
                raise Killed

        settings = Settings(tmp_path / out, 2, 3, 5, save_every=1)
        return ModelTrainer(task, found, recipe, settings, CPU, paths=paths, on_batch=on_batch)

    whole = trainer("whole").train(resume=False)
    save_trained(trainer("whole"), whole.model, tmp_path / "whole.safetensors")
    with pytest.raises(Killed):
        trainer("killed", (2, 2)).train(resume=False)
    again = trainer("killed").train(resume=True)
    save_trained(trainer("killed"), again.model, tmp_path / "killed.safetensors")
    for one, other in (
        (tmp_path / "whole" / STATE, tmp_path / "killed" / STATE),
        (tmp_path / "whole" / LOG, tmp_path / "killed" / LOG),
        (tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"),
    ):
        assert file_sha256(one) == file_sha256(other), one.name
    for one in ("whole", "killed"):
        shutil.rmtree(tmp_path / one)
        (tmp_path / f"{one}.safetensors").unlink()


def test_a_request_to_stop_keeps_the_run(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    gsfl_trainer(features, tmp_path / "whole").train(resume=False)
    trainer = gsfl_trainer(features, tmp_path / "stopped", save_every=0)

    def ask(epoch: int, done: int, total: int) -> None:
        trainer.requests.stop = (epoch, done) == (2, 3)

    trainer.on_batch = ask
    assert trainer.train(resume=False).stopped == "by request"
    gsfl_trainer(features, tmp_path / "stopped").train(resume=True)
    assert (tmp_path / "stopped" / STATE).read_bytes() == (tmp_path / "whole" / STATE).read_bytes()


def test_weights_are_those_of_the_least_validation_loss(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    trained = gsfl_trainer(features, tmp_path / "val", epochs=6).train(resume=False)
    losses = [row["val_loss"] for row in trained.progress.history]
    assert trained.progress.best_epoch == 1 + int(np.argmin(losses))
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, trained.progress.best[name])
    last = gsfl_trainer(features, tmp_path / "last", epochs=6, select="last").train(resume=False)
    assert [row["loss"] for row in last.progress.history] == [row["loss"] for row in trained.progress.history]


def test_a_run_ends_without_improvement(tmp_path) -> None:
    trainer = gsfl_trainer(tiny_features(tmp_path / "features"), tmp_path / "out", epochs=9, patience=2)
    trainer.progress.best_epoch, trainer.progress.best_loss = 0, 0.0  # no loss is smaller
    trained = trainer.train(resume=False)
    assert (trained.progress.epoch, trained.stopped) == (3, "no smaller validation loss in 2 epochs")


def test_training_reads_no_image_of_the_test_set(tmp_path, tad) -> None:
    shutil.copytree(tad, tmp_path / "set")
    for image in (tmp_path / "set" / "images").glob("test_*"):
        image.unlink()
    tanet_trainer(tmp_path / "set", tmp_path / "out", epochs=1).train(resume=False)
    assert "test_" not in (tmp_path / "out" / SPLIT).read_text()
    tanet_trainer(tad, tmp_path / "other", epochs=1).train(resume=False)
    assert (tmp_path / "other" / STATE).read_bytes() == (tmp_path / "out" / STATE).read_bytes()


def test_another_runs_folder_is_refused(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    gsfl_trainer(features, tmp_path / "out", epochs=1).train(resume=False)
    before = (tmp_path / "out" / STATE).read_bytes()
    with pytest.raises(SolverError) as caught:
        gsfl_trainer(features, tmp_path / "out").train(resume=False)
    state = tmp_path / "out" / STATE
    assert str(caught.value) == (
        f"{state}: is of an earlier run; resume that one with resume=latest, or give another folder as out="
    )
    with pytest.raises(SolverError) as caught:
        gsfl_trainer(features, tmp_path / "out", seed=6).train(resume=True)
    assert str(caught.value) == (
        f"{state}: is of another run: seed was 5 and is 6; give what it was trained with, or another --out"
    )
    with pytest.raises(SolverError) as caught:
        gsfl_trainer(tiny_features(tmp_path / "changed", seed=1), tmp_path / "out").train(resume=True)
    assert str(caught.value).startswith(f'{state}: is of another run: train was "')
    assert state.read_bytes() == before
    state.write_bytes(before[:-4])
    with pytest.raises(FormatError) as caught:
        gsfl_trainer(features, tmp_path / "out").train(resume=True)
    assert str(caught.value).startswith(f"{state}: is not a complete safetensors file")


DAMAGED = {
    "epoch": (lambda v: {"epoch": True}, "its metadata are damaged; start again without --resume"),
    "epochs": (lambda v: {"epoch": 7}, "its metadata are damaged; start again without --resume"),
    "loss": (lambda v: {"loss": "x"}, "its metadata are damaged; start again without --resume"),
    "best epoch": (lambda v: {"best_epoch": 2}, "its metadata are damaged; start again without --resume"),
    "no best loss": (lambda v: {"best_loss": None}, "its metadata are damaged; start again without --resume"),
    "large loss": (lambda v: {"loss": 10**400}, "its metadata are damaged; start again without --resume"),
    "row": (lambda v: {"history": [5]}, "its metadata are damaged; start again without --resume"),
    "row's value": (
        lambda v: {"history": [{**v["history"][0], "loss": "x"}]},
        "its metadata are damaged; start again without --resume",
    ),
    "row's epoch": (
        lambda v: {"history": [{**v["history"][0], "epoch": None}]},
        "its metadata are damaged; start again without --resume",
    ),
    "key": (lambda v: {"x": 1}, "is not the state of a model's training; give the folder of its --out"),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_state_is_refused(one_epoch, edit, message) -> None:
    features, state = one_epoch
    file = open_safetensors(state)
    values = json.loads(file.metadata["model_run"])
    damaged = state.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    text = json.dumps({**values, **edit(values)})
    write_safetensors(damaged / STATE, file.tensors, {"model_run": text})
    with pytest.raises(FormatError) as caught:
        gsfl_trainer(features, damaged).train(resume=True)
    assert str(caught.value) == f"{damaged / STATE}: {message}"


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("optimizer.0.momentum_buffer", torch.zeros(3), FormatError,
         "does not fit the run (optimizer.0.momentum_buffer is not [16, 20] float32); start again without --resume"),
        ("optimizer.99.momentum_buffer", torch.zeros(3), FormatError,
         "does not fit the run (optimizer.99 is of no parameter of this optimizer); start again without --resume"),
        ("best.classifier.bias", torch.zeros(9), FormatError,
         "does not fit the run (its best weights are not the model's); start again without --resume"),
        ("model.classes_of_groups", torch.full((6,), 9), DataError,
         "gsfl: groups [6] for 6 classes; give one number from 0 to 2 for each"),
    ],
    ids=["shape", "number", "best", "groups"],
)  # fmt: skip
def test_a_state_of_other_tensors_is_refused(one_epoch, name, value, error, message) -> None:
    features, state = one_epoch
    file = open_safetensors(state)
    damaged = state.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    write_safetensors(damaged / STATE, {**file.tensors, name: value}, file.metadata)
    with pytest.raises(error) as caught:
        gsfl_trainer(features, damaged).train(resume=True)
    where = "" if error is DataError else f"{damaged / STATE}: "
    assert str(caught.value) == f"{where}{message}"


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory) -> tuple[Path, Path]:
    """Features, and the state after an epoch on them."""
    folder = tmp_path_factory.mktemp("state")
    features = tiny_features(folder / "features")
    gsfl_trainer(features, folder / "out", epochs=1).train(resume=False)
    return features, folder / "out" / STATE


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    trainer = gsfl_trainer(features, tmp_path / "out")
    with torch.no_grad():
        trainer.model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(DivergedError) as caught:
        trainer.train(resume=False)
    assert str(caught.value) == "epoch 1, batch 1: the loss is nan; lower --lr"
    assert not (tmp_path / "out" / STATE).exists()


# ---------------------------------------------------------------------- the commands


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_gsfl_overfits_from_the_command_line(tmp_path, capsys) -> None:
    features = tiny_features(tmp_path / "features")
    given = ("--model", "gsfl", "--data", "features", "--folder", features)
    options = (
        "--option",
        "hidden=32",
        "--option",
        "groups=3",
        "--batch-size",
        10,
        "--lr",
        0.02,
        "--select",
        "last",
    )
    out = tmp_path / "out"
    assert run("train", *given, *options, "--epochs", 40, "--out", out, "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    assert (trained["epochs"], trained["weights"]) == (40, str(out / "gsfl.safetensors"))
    assert (
        run(
            "test",
            *given,
            "--weights",
            out / "gsfl.safetensors",
            "--split",
            "train",
            "--out",
            tmp_path / "t",
            "--json",
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["accuracy"]["value"] == 1.0
    assert found["warnings"] == [
        "30 of the 30 images of features's train were trained on: the figures are not those of unseen images"
    ]
    assert run("test", *given, "--weights", out / "gsfl.safetensors", "--out", tmp_path / "t") == 0
    printed = capsys.readouterr()
    assert "gsfl on features's test: 18 images" in printed.out and "accuracy" in printed.out
    assert "warning" not in printed.err
    rows = (tmp_path / "t" / "predictions.csv").read_text().splitlines()
    assert len(rows) == 19 and rows[0].startswith("image,logits 1,logits 2")


def test_images_from_the_command_line(tmp_path, tad, capsys) -> None:
    given = ("--model", "tanet", "--data", "tad66k", "--folder", tad, "--pictures", tad / "images")
    options = ("--option", "branches=colour", "--batch-size", 7, "--lr", 0.0003, "--size", 32)
    assert run("train", *given, *options, "--epochs", 1, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "note: tad66k: train has 14 images, as published 52,248" in printed.err
    assert "epoch 1 of 1: loss 0." in printed.err and "selected: epoch 1" in printed.out
    weights = tmp_path / "out" / "tanet.safetensors"
    first = weights.read_bytes()
    assert run("train", *given, *options, "--epochs", 1, "--out", tmp_path / "out", "--resume", "latest") == 0
    assert weights.read_bytes() == first
    test = ("--weights", weights, "--out", tmp_path / "test", "--json")
    capsys.readouterr()
    assert run("test", *given, *test) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["figures"]) == {"SRCC", "LCC", "MSE", "accuracy"}
    assert json.loads((tmp_path / "test" / "figures.json").read_text()) == found
    rows = [row.split(",") for row in (tmp_path / "test" / "predictions.csv").read_text().splitlines()]
    assert rows[0] == ["image", "score", "score of the data"]
    scores = {row[0]: float(row[2]) for row in rows[1:]}
    own = read_dataset("tad66k", tad).split("test")
    assert scores == pytest.approx(
        dict(zip(own.images, own.targets["score"].tolist(), strict=True)), rel=1e-5
    )


TRAIN = ("train", "--model", "tanet", "--data", "tad66k", "--folder", "TAD")
TEST = ("test", "--model", "tanet", "--data", "tad66k", "--folder", "TAD")
COMMANDS_REFUSED = {
    "with a solver": (
        (*TRAIN, "--solver", "s"), "--solver: is not an option of this kind of run; leave it out with --model",
    ),
    "frozen": ((*TRAIN, "--freeze", "x"), "--freeze: is not an option of this kind of run; leave it out with --model"),
    "a solver with epochs": (
        ("train", "--solver", "s", "--epochs", "3"),
        "--epochs: is not an option of this kind of run; give --model, or leave it out",
    ),
    "no data": (("train", "--model", "nima"), "--data is missing: give it with --model nima"),
    "no folder": (("train", "--model", "nima", "--data", "ava"), "--folder is missing: give it with --model nima"),
    "a state": (
        (*TRAIN, "--resume", "x.solverstate"),
        "--resume x.solverstate: the state of a model is in its --out; give --resume latest",
    ),
    "other data": (
        ("train", "--model", "nima", "--data", "tad66k", "--folder", "TAD"),
        "model nima is not trained on 'tad66k'; use --data ava",
    ),
    "an unknown option": (
        (*TRAIN, "--option", "branch=colour", "--pictures", "TAD/images"),
        "model tanet: option 'branch' is unknown; it takes data, branches",
    ),
    "a small image": (
        (*TRAIN, "--size", "64", "--resize", "32"),
        "--resize 32: is smaller than the input of 64; increase it, or give --size",
    ),
    "an input that is too small": (
        (*TRAIN, "--size", "16", "--pictures", "TAD/images", "--option", "branches=colour"),
        "model tanet: images are 16x16; give at least 32x32",
    ),
    "a checkpoint": (
        (*TRAIN, "--weights", "TAD/w.pth", "--pictures", "TAD/images", "--option", "branches=colour"),
        "w.pth: is a PyTorch checkpoint, a pickle, not weights of a model of scores (.safetensors)",
    ),
    "no images": (
        TRAIN,
        "TAD: 14 of 14 images of tad66k's train are missing, the first 'train_0.jpg' (looked for train_0.jpg); give the "
        "folder of the images",
    ),
    "test: no dataset": (("test",), "DATASET is missing: give ava1, ava2 or own, or a model of scores with --model"),
    "test: no weights": (TEST, "--weights is missing: give it with --model tanet"),
    "test: a protocol": (
        (*TEST, "--protocol", "published"),
        "--protocol: is not an option of this kind of run; leave it out with --model",
    ),
    "test: a dataset too": (
        ("test", "ava1", *TEST[1:]), "DATASET: is not an option of this kind of run; leave it out with --model",
    ),
    "test: a split of AVA1": (
        ("test", "ava1", "--split", "val"),
        "--split: is not an option of this kind of run; give --model, or leave it out",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), COMMANDS_REFUSED.values(), ids=COMMANDS_REFUSED)
def test_refused_commands(tmp_path, tad, capsys, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TAD").symlink_to(tad)
    torch.save({"weight": torch.zeros(2)}, tad / "w.pth")
    assert run(*arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"ilgnet: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["TAD"]


def test_weights_of_another_model_are_refused(tmp_path, tad, capsys) -> None:
    features = tiny_features(tmp_path / "features")
    given = ("--model", "gsfl", "--data", "features", "--folder", features)
    assert run("train", *given, "--option", "hidden=8", "--epochs", 1, "--out", tmp_path / "out") == 0
    weights = tmp_path / "out" / "gsfl.safetensors"
    capsys.readouterr()
    test = ("--data", "tad66k", "--folder", tad, "--pictures", tad / "images")
    assert run("test", "--model", "tanet", *test, "--weights", weights, "--out", tmp_path / "t") == 1
    assert capsys.readouterr().err == f"ilgnet: {weights}: is of the model gsfl; give --model gsfl\n"
    assert run("test", *given, "--weights", tmp_path / "out" / STATE, "--out", tmp_path / "t") == 1
    assert "state.safetensors: " in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
    # A run that starts from these weights is another run than one from drawn weights.
    assert run("train", *given, "--option", "hidden=8", "--epochs", 2, "--out", tmp_path / "out", "--resume", "latest",
               "--weights", weights) == 1  # fmt: skip
    assert ' is of another run: weights was "drawn" and is "=' in capsys.readouterr().err
    assert (
        run(
            "train",
            *given,
            "--option",
            "hidden=8",
            "--epochs",
            1,
            "--out",
            tmp_path / "two",
            "--weights",
            weights,
        )
        == 0
    )


# ---------------------------------------------------------------------- the results page


def test_the_results_page_is_up_to_date() -> None:
    assert PAGE.read_text() == results_page(read_ours(OURS))


def test_results_stand_beside_the_published_ones_of_their_model() -> None:
    ours = [
        {
            "model": "tanet", "options": {"data": "tad66k", "branches": ["theme", "aesthetics"]}, "data": "tad66k",
            "split": "test", "images": 14_079,
            "figures": {"SRCC": {"value": 0.4, "low": 0.3, "high": 0.5}, "LCC": {"value": None, "low": None, "high": None}},
        }
    ]  # fmt: skip
    rows = results_page(ours).splitlines()
    number = next(index for index, row in enumerate(rows) if "0.483" in row)
    assert rows[number + 1] == (
        "| TANet (aesthetics+theme) | tad66k | ours | 0.400 (0.300 to 0.500) |  |  |  |  | 14,079 |  |"
    )
    assert sum("not run" in row for row in rows) == len(
        PUBLISHED
    )  # the text above the table, and all rows but this one


PUBLISHED_FOR = {
    "TANet": ("tanet", {}, "tad66k", 0.513),
    "TANet on AVA": ("tanet", {"data": "ava"}, "ava", 0.758),
    "an ablation": ("tanet", {"data": "tad66k", "branches": ["aesthetics"]}, "tad66k", 0.440),
    "NIMA": ("nima", {}, "ava", 0.510),
    "NIMA on VGG-16": ("nima", {"backbone": "vgg16"}, "ava", 0.592),
    "NIMA on MobileNet v2": ("nima", {"backbone": "mobilenet_v2"}, "ava", None),
    "TANet on FLICKR-AES": ("tanet", {}, "flickr-aes", None),
    "attributes": ("attributes", {"data": "eva"}, "eva", None),
}


@pytest.mark.parametrize(("model", "options", "data", "wanted"), PUBLISHED_FOR.values(), ids=PUBLISHED_FOR)
def test_the_published_figures_of_a_model(model, options, data, wanted) -> None:
    found = find_published(model, options, data)
    assert (None if found is None else found.figures["SRCC"]) == wanted


def test_results_of_another_form_are_refused(tmp_path) -> None:
    (tmp_path / "ours.json").write_text('[{"model": "tanet"}]')
    with pytest.raises(FormatError) as caught:
        read_ours(tmp_path / "ours.json")
    assert str(caught.value).endswith("is not a list of what `ilgnet test --model` wrote as figures.json")


# ---------------------------------------------------------------------- `make models`: processes of their own


def command(folder: Path, out: str, *arguments: str, processes: int = 1) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        start += [f"--nproc-per-node={processes}"]
    given = ["--model", "gsfl", "--data", "features", "--folder", str(folder), "--option", "hidden=16"]
    return [
        *start, str(ROOT / "tools" / "train.py"), *given, "--batch-size", "10", "--lr", "0.01", "--epochs", "30",
        "--save-every", "1", "--out", out, *arguments,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@SLOW
def test_a_process_killed_without_warning_ends_with_the_same_bytes(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    options = {"cwd": tmp_path, "env": ENVIRONMENT}
    subprocess.run(command(features, "whole"), check=True, capture_output=True, timeout=PATIENCE, **options)
    kill_midway(
        command(features, "killed"), (tmp_path / "killed" / STATE).exists,
        lambda: shutil.rmtree(tmp_path / "killed"), **options,
    )  # fmt: skip
    assert not (tmp_path / "killed" / "gsfl.safetensors").exists()
    again = command(features, "killed", "--resume", "latest")
    subprocess.run(again, check=True, capture_output=True, timeout=PATIENCE, **options)
    for name in ("gsfl.safetensors", STATE, LOG):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@SLOW
def test_two_processes_train_the_run_of_one(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    script = str(ROOT / "tests" / "helpers" / "train_gsfl_whole.py")
    start = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node=2"]
    for processes, out in (([], "one"), (start, "two")):
        arguments = [sys.executable, *processes, script, str(features), str(tmp_path / out)]
        subprocess.run(arguments, check=True, capture_output=True, timeout=PATIENCE, env=ENVIRONMENT)
    one, two = (open_safetensors(tmp_path / out / STATE).tensors for out in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():  # the centres of GSFL, which are moved by whole batches, among them
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)


@SLOW
def test_torchrun_trains_and_resumes_from_the_command_line(tmp_path) -> None:
    features = tiny_features(tmp_path / "features")
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "capture_output": True, "timeout": PATIENCE}
    subprocess.run(command(features, "out", processes=2), check=True, **options)
    before = (tmp_path / "out" / "gsfl.safetensors").read_bytes()
    subprocess.run(command(features, "out", "--resume", "latest", processes=2), check=True, **options)
    assert (tmp_path / "out" / "gsfl.safetensors").read_bytes() == before
    again = subprocess.run(command(features, "out", "--resume", "latest"), check=False, text=True, **options)
    assert again.returncode == 1
    assert "is of another run: processes was 2 and is 1" in again.stderr
