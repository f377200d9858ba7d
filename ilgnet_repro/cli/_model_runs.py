"""``ilgnet train --model`` and ``ilgnet test --model``: the options of models of scores, and the two runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError
from ..files import json_text
from ._console import add_row, progress_bar, results_console, say
from ._ending import INTERRUPTED
from ._options import BATCH, COUNT, Real, Whole, check_exist

if TYPE_CHECKING:
    from pathlib import Path

MODELS = ("nima", "tanet", "gsfl", "attributes")
DATA = ("ava", "tad66k", "aadb", "eva", "flickr-aes", "features")
_LARGEST_SIDE = 4096
_LARGEST_SEED = 2**32 - 1
# Options that only the other kind of run has, with their defaults.
_OF_SOLVERS: Mapping[str, Any] = {
    "solver": None, "freeze": [], "lr_mult": [], "warm_up": "", "max_iter": None, "best_by": None, "keep": 0,
    "allow_nonfinite": False, "precision": "float32", "accumulate": 1, "grad_norms": False, "tensorboard": False,
    "caffe_log": False, "ignore_field": [],
}  # fmt: skip
_OF_TRAINED_MODELS: Mapping[str, Any] = {
    "option": [], "data": None, "folder": None, "pictures": None, "epochs": None, "batch_size": None, "lr": None,
    "size": None, "resize": None, "seed": 0, "val_share": 0.1, "select": "val", "save_every": 0,
}  # fmt: skip
_OF_PROTOCOLS: Mapping[str, Any] = {
    "dataset": None, "prototxt": None, "protocol": "full", "list": None, "lmdb": None, "scores": None, "order": None,
    "strict": False, "mean": None, "mean_value": None, "resize": 256, "batches": None, "check": False, "resume": False,
    "table": "csv", "level": 0, "stage": [], "shape": [], "ignore_field": [], "crop": None, "allow_missing": [],
    "fast": False, "compile": False, "engine": None, "precision": None, "cluster": None,
}  # fmt: skip
_OF_TESTED_MODELS: Mapping[str, Any] = {
    "data": None, "folder": None, "split": "test", "trained_on": None, "val_share": 0.1,
}  # fmt: skip


class ModelAction(argparse.Action):
    """``--model``: without it ``--solver`` is required, as argparse says in its own words."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            if action.dest == "solver":
                action.required = False


def _add_data_options(group: Any) -> None:
    group.add_argument("--data", choices=DATA, help="the scored images, in their published layout")
    group.add_argument(
        "--folder", metavar="DIR", help="folder of the data's lists (or of train.npz and test.npz)"
    )
    group.add_argument(
        "--val-share", type=Real(0, 1), default=0.1, metavar="X",
        help="share of the training images that select the weights, where the data have no list for that (default 0.1)",
    )  # fmt: skip


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ilgnet train --model``."""
    group = parser.add_argument_group("models of scores, instead of --solver")
    group.add_argument("--model", choices=MODELS, action=ModelAction, help="the model to train")
    group.add_argument(
        "--option", metavar="NAME=VALUE", action="append", default=[],
        help="of the model (repeatable): backbone=vgg16, branches=aesthetics,theme, groups=4",
    )  # fmt: skip
    _add_data_options(group)
    group.add_argument("--pictures", metavar="DIR", help="folder of the images (default: --folder)")
    group.add_argument("--epochs", type=COUNT, metavar="N", help="default: the model's recipe")
    group.add_argument(
        "--batch-size", type=BATCH, metavar="N", help="of all processes together (default: the recipe)"
    )
    group.add_argument(
        "--lr", type=Real(0), metavar="X", help="rate; its parts keep their ratios (default: the recipe)"
    )
    side = Whole(8, _LARGEST_SIDE)
    group.add_argument("--size", type=side, metavar="N", help="side of the input (default 224)")
    group.add_argument(
        "--resize", type=side, metavar="N", help="side of the image before the crop (default 256)"
    )
    group.add_argument("--seed", type=Whole(0, _LARGEST_SEED), default=0, metavar="N", help="default 0")
    group.add_argument(
        "--select", choices=("val", "last"), default="val",
        help="the weights of the epoch with the least validation loss (default), or of the last",
    )  # fmt: skip
    group.add_argument(
        "--save-every", type=Whole(), default=0, metavar="N",
        help="write the state after N batches too (default: after each epoch)",
    )  # fmt: skip


def add_testing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ilgnet test --model``."""
    group = parser.add_argument_group("models of scores, instead of DATASET")
    group.add_argument("--model", choices=MODELS, help="the model that --weights holds")
    _add_data_options(group)
    group.add_argument("--split", choices=("train", "val", "test"), default="test", help="default test")
    group.add_argument(
        "--trained-on", metavar="FILE",
        help="split.csv of the training, to warn of images seen before (default: the one beside --weights)",
    )  # fmt: skip


def check_not_given(args: argparse.Namespace, *, of: str) -> None:
    """Raise IlgnetError for an option of another kind of run: ``of`` is "solver", "protocol" or "model"."""
    tables = {
        "solver": (_OF_SOLVERS, "leave it out with --model"),
        "trained model": (_OF_TRAINED_MODELS, "give --model, or leave it out"),
        "protocol": (_OF_PROTOCOLS, "leave it out with --model"),
        "tested model": (_OF_TESTED_MODELS, "give --model, or leave it out"),
    }
    table, remedy = tables[of]
    for name, default in table.items():
        if hasattr(args, name) and getattr(args, name) != default and getattr(args, name) is not None:
            flag = "DATASET" if name == "dataset" else f"--{name.replace('_', '-')}"
            raise IlgnetError(f"{flag}: is not an option of this kind of run; {remedy}")


def _require(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) is None:
            raise IlgnetError(f"--{name.replace('_', '-')} is missing: give it with --model {args.model}")


# ---------------------------------------------------------------------- training


def train_model(args: argparse.Namespace, group: Any, requests: Any) -> int:
    """Train a model of scores, and print the result."""
    import dataclasses
    from pathlib import Path

    from ..aesthetics.datasets import locate_images, read_dataset, with_validation
    from ..aesthetics.model_runs.finish import save_trained
    from ..aesthetics.model_runs.recipes import RECIPES
    from ..aesthetics.model_runs.tasks import check_data, make_task, read_options
    from ..aesthetics.model_runs.train import ModelTrainer, Settings
    from ..train.distributed import choose_device

    check_data(args.model, args.data)
    dataset = with_validation(read_dataset(args.data, args.folder), args.val_share)
    task = make_task(args.model, dataset, read_options(args.model, args.option))
    recipe = RECIPES[args.model]
    recipe = recipe if args.lr is None else recipe.with_rate(args.lr)
    size = args.size or recipe.size
    resize = args.resize or max(
        size, recipe.resize if args.size is None else round(size * recipe.resize / recipe.size)
    )
    if resize < size:
        raise IlgnetError(
            f"--resize {resize}: is smaller than the input of {size}; increase it, or give --size"
        )
    recipe = dataclasses.replace(recipe, size=size, resize=resize)
    device = choose_device(args.device, 0, group)
    folder = Path(args.out or f"{args.model}_{args.data}")
    settings = Settings(
        folder, args.epochs or recipe.epochs, args.batch_size or recipe.batch, args.seed, args.save_every, args.patience,
        args.workers or 0, args.select,
    )  # fmt: skip
    root = args.pictures or args.folder
    paths = (
        {}
        if dataset.split("train").inputs is not None
        else {split: locate_images(dataset, split, root) for split in ("train", "val")}
    )
    log = _log if group.is_first else _silent
    for note in dataset.notes:
        log(f"note: {note}")
    batches = settings.epochs * -(-len(dataset.split("train")) // settings.batch)
    with progress_bar(f"training {args.model}", batches if group.is_first else 0, unit="batches") as progress:
        trainer = ModelTrainer(
            task, dataset, recipe, settings, device, paths=paths, group=group, requests=requests, log=log,
            on_batch=lambda epoch, done, total: progress((epoch - 1) * total + done),
        )  # fmt: skip
        _start_from(trainer, args.weights)
        trained = trainer.train(resume=args.resume is not None)
    if not group.is_first:
        return 0
    if trained.stopped == "by request":
        say(
            f"stopped by request; the same command with --resume latest continues from {folder}",
            file=sys.stderr,
        )
        # torchrun has an exit status of its own, and would report a failure of this process.
        return 0 if group.world > 1 else INTERRUPTED
    saved = save_trained(trainer, trained.model, folder / f"{args.model}.safetensors")
    _report(args, trainer, trained, saved)
    return 0


def _log(text: str) -> None:
    say(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass


def _start_from(trainer: Any, weights: str) -> None:
    """Load ``[PART=]FILE[,...]`` into the model: its own file, or a published backbone's into a part of it.

    A part's file may also be a caffemodel: its images are prepared as Caffe's were from then on.
    """
    from ..aesthetics.models.caffe_trunks import start_from_caffe
    from ..aesthetics.models.pretrained import load_named, load_published
    from ..caffe.expected_kind import expect
    from ..caffe.kinds import Kind
    from ..files import file_sha256
    from ..runtime.safetensors_file import open_safetensors

    digests = []
    for given in [text for text in weights.split(",") if text]:
        part, separator, name = given.partition("=")
        if not separator or os.path.exists(given):
            part, name = "", given
        caffe = (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5) if part else ()
        what = (
            "weights of a backbone (.safetensors, .caffemodel)"
            if part
            else "weights of a model of scores (.safetensors)"
        )
        kind = expect(name, Kind.SAFETENSORS, *caffe, what=what)

        def load(model: Any, part: str = part, name: str = name, kind: Kind = kind) -> None:
            if not part:
                load_named(model, open_safetensors(name).tensors, name)
                return
            parts = [own for own, module in model.named_children() if hasattr(module, "features_of")]
            if part not in parts:
                raise IlgnetError(
                    f"--weights {part}={name}: the model has no part {part!r}; it has {', '.join(parts)}"
                )
            if kind is Kind.SAFETENSORS:
                load_published(getattr(model, part), name)
            else:
                start_from_caffe(model, part, name)

        digests.append(f"{part}={file_sha256(name)}")
        trainer.start_from(load, ",".join(digests))


def _report(args: argparse.Namespace, trainer: Any, trained: Any, saved: Path) -> None:
    progress = trained.progress
    history = progress.history
    best = progress.best_epoch  # None where no validation loss was a number
    chosen = history[-1 if args.select == "last" or best is None else best - 1]
    if args.json:
        values = {
            "epochs": progress.epoch,
            "stopped": trained.stopped,
            "selected": chosen,
            "weights": str(saved),
        }
        print(json_text(values))
        return
    say(f"{progress.epoch} epochs{'; stopped: ' + trained.stopped if trained.stopped else ''}")
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(chosen.items())[1:] if value is not None)
    say(f"selected: epoch {chosen['epoch']} ({shown})")
    say(f"weights: {saved}; curves: {trainer.settings.folder / 'log.csv'}")


def run_training(args: argparse.Namespace) -> int:
    """Check the arguments of ``ilgnet train --model``, and train."""
    check_not_given(args, of="solver")
    _require(args, "data", "folder")
    if args.resume not in (None, "latest"):
        raise IlgnetError(
            f"--resume {args.resume}: the state of a model is in its --out; give --resume latest"
        )
    check_exist(args.folder, args.pictures, [text.rpartition("=")[2] for text in args.weights.split(",")])
    from ..process import tune_process
    from ..train.distributed import process_group
    from ..train.signals import Requests, catch_signals

    tune_process()
    with process_group(args.device) as group, catch_signals(Requests()) as requests:
        return train_model(args, group, requests)


# ---------------------------------------------------------------------- testing


def run_testing(args: argparse.Namespace) -> int:
    """Test a model of scores on a split, write its files and print its figures beside the published ones."""
    check_not_given(args, of="protocol")
    _require(args, "weights", "data", "folder")
    check_exist(args.weights, args.folder, args.pictures, args.trained_on)
    from pathlib import Path

    from ..aesthetics.datasets import read_dataset, with_validation
    from ..aesthetics.model_runs.evaluate import evaluate_model, read_split, write_result
    from ..aesthetics.model_runs.finish import open_trained
    from ..aesthetics.model_runs.tasks import task_on
    from ..aesthetics.model_runs.train import SPLIT
    from ..files import check_outputs
    from ..process import tune_process
    from ..train.distributed import ProcessGroup, choose_device

    tune_process()
    out = Path(args.out or f"{args.model}_{args.data}_{args.split}")
    check_outputs([out / "figures.json", out / "predictions.csv"], [args.weights, args.trained_on])
    opened = open_trained(args.weights)
    if opened.task.model != args.model:
        raise IlgnetError(
            f"{args.weights}: is of the model {opened.task.model}; give --model {opened.task.model}"
        )
    dataset = read_dataset(args.data, args.folder)
    if args.split != "test":
        dataset = with_validation(dataset, args.val_share)
    task = task_on(opened.task, dataset)
    beside = Path(args.weights).with_name(SPLIT)
    seen = args.trained_on or (beside if beside.is_file() else None)
    rows = dataset.split(args.split)
    with progress_bar(f"testing {args.model}", len(rows), unit="images") as progress:
        found = evaluate_model(
            opened.model.to(choose_device(args.device, 0, ProcessGroup())), task, opened.recipe, dataset,
            args.pictures or args.folder, split=args.split, batch=args.batch_size or 32, workers=args.workers or 0,
            device=choose_device(args.device, 0, ProcessGroup()), progress=progress,
            trained_on=read_split(seen) if seen else [],
        )  # fmt: skip
    figures, predictions = write_result(found, dataset, out)
    if args.json:
        print(json_text(found.values()))
        return 0
    for warning in found.warnings:
        say(f"warning: {warning}", file=sys.stderr)
    if not seen:
        say(
            f"note: without a {SPLIT} (--trained-on) it is not checked which images were trained on",
            file=sys.stderr,
        )
    _print_figures(found)
    say(f"{figures} and {predictions} written")
    return 0


def _print_figures(found: Any) -> None:
    from rich.table import Table

    published = {} if found.published is None else found.published.figures
    table = Table(
        title=f"{found.model} on {found.data}'s {found.split}: {found.images:,} images, loss {found.loss:.4g}"
    )
    for column in ("figure", "value", "95 % interval", "published"):
        table.add_column(column)
    for name, figure in found.figures.items():
        value = figure.reason if figure.value is None else f"{figure.value:.4f}"
        interval = figure.interval
        ends = "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
        theirs = f"{published[name]:.3f}" if name in published and found.split == "test" else ""
        add_row(table, name, value, ends, theirs)
    results_console().print(table)
    if found.published is not None:
        say(f"published: {found.published.source}")
