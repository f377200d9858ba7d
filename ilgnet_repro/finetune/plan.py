"""A fine-tuning run as files in one folder, and as the commands that make it: each can be typed, each is done once."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..caffe.prototxt import format_message, read_solver
from ..errors import DataError, GraphError
from ..files import atomic_file, json_text, open_input, parse_json
from ..reading.image_list import find_image
from ..reading.image_size import stated_size
from ..reading.lmdb_build_journal import bad_list, read_bad_numbers
from ..reading.lmdb_read import LmdbReader
from ..reading.mean import read_mean
from ..runtime.load import load_caffe
from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb
from .dataset import Example, Split, read_examples
from .nets import (
    Body,
    Feeding,
    Targets,
    deploy_net,
    make_schedule,
    small_body,
    solver_text,
    train_val_net,
    tuned_body,
)

RECORD = "finetune.json"
SLOWER = 10  # the new layer learns this many times as fast as a slow trunk
_SMALL_SIDES = (32, 128)  # of the default net
_MEASURED, _HEADER = 64, 1 << 16  # images whose size is looked up, and the bytes read of each
_EPOCHS = {True: 10, False: 20}  # with weights, and from scratch
# SGD learns classes and distributions, at these rates by trunk. For scores, whose gradient grows with the error, it
# diverges where features are large: Adam's steps do not depend on their scale.
_RATES = {"slow": 0.001, "full": 0.001, "frozen": 0.01, "": 0.05}
_ADAM_RATES = {"slow": 1e-4, "full": 1e-4, "frozen": 1e-3, "": 2e-3}
_SMALL_SCALE = 1 / 64


@dataclass(frozen=True)
class Wish:
    """What a run is made from; None is chosen by the data or the weights."""

    source: str
    out: str
    weights: str | None = None
    prototxt: str | None = None
    task: str | None = None
    layer: str | None = None
    trunk: str = "slow"
    epochs: int | None = None
    batch: int = 32
    rate: float | None = None
    size: int | None = None
    resize: int | None = None
    val: float = 0.2
    seed: int = 1
    mirror: bool = True


@dataclass(frozen=True)
class Step:
    """One command, without ``ilgnet``, and what is there once it is done."""

    arguments: tuple[str, ...]
    product: Path


@dataclass(frozen=True)
class Plan:
    """A run whose data and net are read: what it will make, and how images reach the net."""

    wish: Wish
    split: Split
    body: Body
    targets: Targets
    stored: tuple[int, int]
    mean: tuple[float, ...] | None  # of the weights' own preprocessing; None is computed
    scale: float
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.wish.out)

    def path(self, name: str) -> str:
        """A file of the run, as its commands name it."""
        return os.path.join(self.wish.out, name)

    @property
    def weights(self) -> Path:
        """The weights of the best test."""
        return Path(f"{self._solver().snapshot_prefix}_best.caffemodel")

    @property
    def result(self) -> Path:
        """The file that the run ends in."""
        return Path(self.path(f"{self.weights.stem}.safetensors"))

    def _solver(self) -> pb.SolverParameter:
        """The solver as it stands, edited or not."""
        return read_solver(self.path("solver.prototxt"))

    # ------------------------------------------------------------------ commands

    def data_steps(self) -> list[Step]:
        """The commands that make the databases and their mean."""
        height, width = self.stored
        gray = ["--gray"] if self.body.shape[0] == 1 else []
        root = os.path.join(self.split.root, "")
        steps = []
        for part in ("train", "val"):
            database, listed = self.path(f"{part}_lmdb"), self.path(f"{part}.txt")
            size = [f"--resize_height={height}", f"--resize_width={width}", *gray]
            steps.append(self._step(["lmdb", "make", *size, root or "./", listed, database], database))
            if self.split.task != "classes":
                target = self.path(f"{part}_labels_lmdb")
                values = self.path(f"{part}_labels.txt")
                steps.append(self._step(["lmdb", "labels", database, values, target], target))
        mean, sheet = self.path("mean.binaryproto"), self.path("train.html")
        steps.append(self._step(["mean", self.path("train_lmdb"), mean], mean))
        steps.append(self._step(["sheet", self.path("train_lmdb"), "--out", sheet], sheet))
        return steps

    def train_step(self, device: str | None = None) -> Step:
        """The command that trains, resuming where it was stopped."""
        solver = self.path("solver.prototxt")
        text = self._solver()
        suffix = ".h5" if text.snapshot_format == pb.SolverParameter.HDF5 else ""
        arguments = [
            "train",
            "--solver",
            solver,
            "--out",
            self.path("log"),
            "--keep",
            "1",
            "--resume",
            "latest",
        ]
        if self.wish.weights is not None:
            arguments += ["--weights", self.wish.weights]
            name = re.escape(self.body.last)
            if self.wish.trunk == "frozen":
                arguments += ["--freeze", f"(?!{name}$).*"]
            elif self.wish.trunk == "slow":
                arguments += ["--lr-mult", f"{name}={SLOWER}"]
        if device is not None:
            arguments += ["--device", device]
        return self._step(arguments, f"{text.snapshot_prefix}_iter_{text.max_iter}.solverstate{suffix}")

    def convert_step(self) -> Step:
        """The command that writes one file with net, weights, preprocessing and labels."""
        feeding = self.feeding()
        arguments = [
            "convert",
            str(self.weights),
            "--prototxt",
            self.path("deploy.prototxt"),
            "--out",
            self.wish.out,
            "--path",
            "crop",
        ]
        arguments += ["--resize", str(feeding.stored[0])]
        if any(feeding.mean):
            arguments += ["--mean-value", ",".join(f"{value:g}" for value in feeding.mean)]
        arguments += ["--scale", f"{feeding.scale:g}"]
        if self.split.task != "score":
            arguments += ["--labels", self.path("labels.txt")]
        if self.split.task != "classes":
            arguments += ["--score", "score"]
        return self._step(arguments, str(self.result))

    @staticmethod
    def _step(arguments: Sequence[str], product: str) -> Step:
        return Step(tuple(arguments), Path(product))

    # ------------------------------------------------------------------ files

    def write_lists(self) -> None:
        """Begin the run, or reopen it: its record, lists and labels.

        Raises DataError where the folder holds another run.
        """
        begun = self._record()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be made ({error.strerror}); give another --out"
            ) from error
        path = self.folder / RECORD
        if not path.exists():
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise DataError(f"{self.folder}: holds other files; give a new folder as --out")
            with atomic_file(path, "w") as file:
                file.write(json_text(begun, indent=1))
        else:
            self._check_same(path, begun)
        is_class = self.split.task == "classes"
        for part, examples in (("train", self.split.train), ("val", self.split.val)):
            self._write(
                f"{part}.txt",
                "".join(f"{one.path} {int(one.target[0]) if is_class else 0}\n" for one in examples),
            )
            if not is_class:
                self._write(f"{part}_labels.txt", "".join(_numbers(one) for one in examples))
        if self.split.names:
            self._write("labels.txt", "".join(f"{name}\n" for name in self.split.names))

    def write_nets(self) -> list[str]:
        """Write the nets and the solver that are not there yet; return their names. Edited ones are kept."""
        train, val = (len(LmdbReader(self.path(f"{part}_lmdb"))) for part in ("train", "val"))
        wish, tuned = self.wish, self.wish.weights is not None
        adam = self.split.task == "score"
        rate = wish.rate or (_ADAM_RATES if adam else _RATES)[wish.trunk if tuned else ""]
        schedule = make_schedule(train, val, wish.epochs or _EPOCHS[tuned], wish.batch)
        texts = {
            "train_val.prototxt": train_val_net(
                self.body, self.targets, self.feeding(), wish.out, (schedule.batch, schedule.val_batch)
            ),
            "deploy.prototxt": deploy_net(self.body, self.targets),
            "solver.prototxt": solver_text(
                schedule, wish.out, adam=adam, rate=rate, seed=wish.seed, on_gpu=torch.cuda.is_available()
            ),
        }
        return [name for name, text in texts.items() if self._write(name, format_message(text))]

    def feeding(self) -> Feeding:
        """How images reach the net, once the mean is computed."""
        mean = self.mean
        if mean is None:
            image = read_mean(self.path("mean.binaryproto"))
            # The numbers of the nets are those of the last file, digit by digit.
            mean = tuple(float(f"{value:.6g}") for value in image.mean(axis=(1, 2), dtype=np.float64))
        return Feeding(mean, self.scale, self.stored, self.wish.mirror)

    def bad_rows(self) -> dict[str, int]:
        """The lists of images that could not be read, and how many each names."""
        found = {
            str(bad_list(base)): len(read_bad_numbers(base))
            for base in map(Path, (self.path("train_lmdb"), self.path("val_lmdb")))
        }
        return {name: count for name, count in found.items() if count}

    def _write(self, name: str, text: str) -> bool:
        path = self.folder / name
        if path.exists():
            return False
        with atomic_file(path, "wb") as file:
            file.write(os.fsencode(text))
        return True

    def _record(self) -> dict[str, Any]:
        listed = hashlib.sha256()
        for examples in (self.split.train, self.split.val):
            for one in examples:
                listed.update(os.fsencode(f"{one.path}\t{one.target}\n"))
            listed.update(b"\n")
        return {**asdict(self.wish), "out": os.path.abspath(self.wish.out), "images": listed.hexdigest()}

    def _check_same(self, path: Path, own: dict[str, Any]) -> None:
        try:
            begun = parse_json(path.read_text(encoding="utf-8"))
            changed = [name for name in own if begun[name] != own[name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: is not of a run of `ilgnet finetune`; give another folder as --out"
            ) from error
        if not changed:
            return
        name = changed[0]
        if name == "images":
            what = f"images or labels of {self.wish.source} that have changed since"
        else:
            what = f"{name} {begun[name]!r}, now {own[name]!r}"
        raise DataError(f"{self.folder}: was begun with {what}; give the same, or another folder as --out")


def _numbers(example: Example) -> str:
    return f"{example.path} {' '.join(f'{value:.9g}' for value in example.target)}\n"


# ---------------------------------------------------------------------- from wish to plan


def make_plan(wish: Wish) -> Plan:
    """Read the data and the weights of a run, and choose what was left open. Nothing is written."""
    source, out = os.path.realpath(wish.source), os.path.realpath(wish.out)
    if os.path.isdir(source) and (out + os.sep).startswith(source + os.sep):
        raise DataError(
            f"{wish.out}: is in the folder of the images; give a folder outside of it", option="out"
        )
    if not wish.out or not wish.out.isprintable():
        raise DataError(f"{wish.out}: cannot be written into a prototxt; give another folder", option="out")
    split = read_examples(wish.source, task=wish.task, val=wish.val, seed=wish.seed)
    targets = _targets(split)
    if wish.weights is None:
        return _from_scratch(wish, split, targets)
    if wish.size is not None:
        raise DataError(
            f"size={wish.size}: goes without weights, which state their own; leave it out", option="size"
        )
    net = load_caffe(wish.weights, prototxt=wish.prototxt)
    body = tuned_body(net, targets.outputs, wish.layer)
    mean, scale, stored, notes = _own_preprocessing(net, body)
    if wish.resize is not None:
        stored = (wish.resize, wish.resize)
    _check_stored(stored, body.shape)
    notes = (
        *split.notes,
        f"net: {body.name} from {wish.weights}, {body.replaced} replaced by {body.last} of {targets.outputs} outputs; "
        + {"slow": f"it learns {SLOWER} times as fast as the layers before it", "frozen": "only it learns",
           "full": "all layers learn at one rate"}[wish.trunk],
        *notes,
    )  # fmt: skip
    return Plan(wish, split, body, targets, stored, mean, scale, notes)


def _from_scratch(wish: Wish, split: Split, targets: Targets) -> Plan:
    if wish.prototxt is not None or wish.layer is not None or wish.trunk != "slow":
        given = next(
            name for name in ("prototxt", "layer", "trunk") if getattr(wish, name) not in (None, "slow")
        )
        raise DataError(f"{given}={getattr(wish, given)!r}: goes with weights; give them too", option=given)
    size = wish.size or _small_side(split)
    body = small_body(size, targets.outputs)
    stored = (wish.resize or size, wish.resize or size)
    _check_stored(stored, body.shape)
    note = (
        f"net: no weights are given, so a small net learns from scratch, at {size} x {size} pixels; with few images "
        "a trained net learns more (--weights bvlc_googlenet.caffemodel)"
    )
    return Plan(wish, split, body, targets, stored, None, _SMALL_SCALE, (*split.notes, note))


def _small_side(split: Split) -> int:
    """The side for a small net: that of the images where these are smaller, a multiple of 16."""
    sides = []
    for example in split.train[:_MEASURED]:
        try:
            with open_input(find_image(split.root, example.path)) as file:
                size = stated_size(file.read(_HEADER))
        except OSError:
            continue
        sides += [] if size is None else [min(size)]
    median = int(np.median(sides)) if sides else _SMALL_SIDES[1]
    return min(max(median // 16 * 16, _SMALL_SIDES[0]), _SMALL_SIDES[1])


def _check_stored(stored: tuple[int, int], shape: tuple[int, int, int]) -> None:
    height, width = shape[1:]
    if height != width:
        raise GraphError(
            f"the net takes images of {height} x {width}; only nets of square images are fine-tuned"
        )
    if stored[0] < height:
        raise DataError(
            f"resize={stored[0]}: the net takes {height} x {width}; give at least that", option="resize"
        )


def _targets(split: Split) -> Targets:
    if split.task != "score":
        return Targets(split.task, split.outputs, split.values)
    scores = np.array([one.target[0] for one in split.train])
    deviation = float(f"{scores.std():.6g}") or 1.0
    return Targets("score", 1, mean=float(f"{scores.mean():.6g}"), deviation=deviation)


def _own_preprocessing(
    net: CaffeNet, body: Body
) -> tuple[tuple[float, ...] | None, float, tuple[int, int], tuple[str, ...]]:
    """The mean, factor and stored size that a trained net's own preprocessing states, and what is not known of it."""
    how, size = net.about.preprocessing, (body.shape[1], body.shape[2])
    if how is None:
        return (
            None,
            1.0,
            size,
            ("preprocessing: nothing is known of the weights'; the mean of the train images is subtracted",),
        )
    if how.order == "RGB":
        raise GraphError(f"{net.name}: takes RGB, and Caffe's data layers read BGR; convert its first layer")
    mean = how.mean_value or (0.0,)
    if how.mean_image is not None:
        mean = tuple(float(f"{value:.6g}") for value in how.mean_image.mean(axis=(1, 2), dtype=np.float64))
    stored = how.resize if how.path == "crop" and how.resize is not None else size
    is_square = stored[0] == stored[1] and size[0] == size[1] and stored[0] >= size[0]
    guess = ("; assumed from its layers",) if net.about.assumed else ("",)
    note = f"preprocessing: that of the weights ({how.describe()}{guess[0]})"
    return mean, how.scale, stored if is_square else size, (note,)
