"""`ilgnet test`: a protocol run on a weights file, with the context of its result."""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engines.fast import FastNet
from ..errors import IlgnetError, printable
from ..files import atomic_file, check_outputs, check_replaced, json_text, starts_with
from ..runtime.runnable import Runnable
from ..staging import claimed
from .context import (
    choose_mean,
    identify_weights,
    partition_source,
    partition_warnings,
    versions,
    weights_warnings,
)
from .journal import Journal, is_journal
from .labelled_images import LabelledImages, ShuffledImages
from .partition_scores import read_scores
from .protocol_run import Cluster, run_protocol, scorer
from .protocols import BATCH_SIZES, OTHER_BATCH_SIZE, RESIZE, Preparation, Protocol
from .results import COLUMNS, RunResult, csv_line, is_run, write_table

JOURNAL = "journal.csv"
_COMPARED = 16  # images on which the fast path is compared with the exact net
_NAMED = 5  # how many images that could not be read are named in the warning


@dataclass(frozen=True)
class Test:
    """One test to run. ``dataset`` is ava1, ava2, or a name for other two-class images.

    ``batch_size`` and ``batches`` default to the protocol's; ``mean_values`` are in BGR; ``scores`` is a file
    of mean scores as `ilgnet partition --scores` writes it; ``table`` is csv or parquet.
    """

    __test__ = False  # not a pytest test class

    dataset: str
    protocol: Protocol
    images: LabelledImages
    mean: str | os.PathLike[str] | None = None
    mean_values: tuple[float, ...] = ()
    resize: int = RESIZE
    batch_size: int | None = None
    batches: int | None = None
    scores: str | os.PathLike[str] | None = None
    strict: bool = False
    workers: int | None = None
    table: str = "csv"
    command: str = ""
    notes: tuple[str, ...] = ()  # of the net: layers that its weights file lacked

    @property
    def size(self) -> int:
        """Images in a batch."""
        return self.batch_size or BATCH_SIZES.get(self.dataset, OTHER_BATCH_SIZE)

    @property
    def count(self) -> int | None:
        """How many batches are read, or None for each image once."""
        return self.batches if self.batches is not None else self.protocol.batches

    @property
    def reads(self) -> int:
        """How many images are read, if all of them can be."""
        return len(self.images) if self.count is None else self.count * self.size


def run_test(
    test: Test,
    net: Runnable,
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "cpu",
    cluster: Callable[[Preparation], Cluster] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    log: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Run a test; write run.json, pictures.csv and, where images could not be read, bad.txt into ``out``.

    ``net`` was loaded from ``weights``. With ``resume`` an interrupted run continues from its journal;
    the result is identical; a finished one is read and returned. ``log`` hears of either, and of an interrupted
    run that is started over. ``cluster`` makes what reads and scores on a cluster, in protocols that read each image
    once; the result is the same. Raises IlgnetError in one line.
    """
    started = time.monotonic()
    protocol = test.protocol
    if protocol.batches is None and test.batches is not None:
        raise IlgnetError(
            f"protocol {protocol.name} reads every image once; leave out batches=, or use published",
            option="batches",
        )
    if cluster is not None and test.count is not None:
        raise IlgnetError(
            f"protocol {protocol.name}: reads some images only, one batch after the other; leave out cluster=, or use full",
            option="cluster",
        )
    known = identify_weights(weights, net)
    mean, mean_source, warnings = choose_mean(test.dataset, protocol, known, test.mean, test.mean_values)
    warnings += weights_warnings(known, test.dataset)
    warnings += partition_warnings(test.images, test.dataset, known, protocol, test.reads)
    warnings += _departures(test)
    warnings += test.notes
    preparation = Preparation(protocol, _side(net), mean, test.resize)
    folder = Path(out)
    _check_folder(folder, test, weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IlgnetError(
            f"{out}: cannot be made ({error.strerror}); give another out=", option="out"
        ) from error
    with claimed(folder / "run.json"):
        partition = partition_source(test.images)
        journal_file = folder / JOURNAL
        if journal_file.is_file() and not resume:
            done = max(0, journal_file.read_bytes().count(b"\n") - 1)
            log(
                f"{folder} has an interrupted run of {done:,} images, which starts over; --resume would continue it"
            )
            journal_file.unlink()
        elif resume and not journal_file.is_file() and (folder / "run.json").is_file():
            finished = RunResult.read(folder / "run.json")
            expected = (
                protocol.name, test.dataset, known.source.sha256, partition.sha256, mean_source and mean_source.sha256,
                preparation.describe(), test.size, test.images.order, test.count or len(finished.batches),
            )  # fmt: skip
            if _identity(finished) != expected or not _computed_by(net, finished.computed):
                raise IlgnetError(
                    f"{folder}: has another run, which is finished; give another out=", option="out"
                )
            log(f"{folder} has this run, which is finished: nothing to do")
            return finished
        # Journals of earlier versions, which knew no order but the list's, have none in their key.
        order = [test.images.order] if isinstance(test.images, ShuffledImages) else []
        key = _key(
            known.source.sha256, partition.sha256, mean_source and mean_source.sha256, preparation.describe(),
            protocol.name, test.size, test.count, test.scores and os.fspath(test.scores), _form(net),
            *order,
        )  # fmt: skip
        with Journal(journal_file, key) as journal:
            outcome = run_protocol(
                scorer(net, device), test.images, preparation, test.size,
                batches=test.count, journal=journal, mean_score=_mean_scores(test.scores), strict=test.strict,
                workers=test.workers, cluster=None if cluster is None else cluster(preparation), progress=progress,
            )  # fmt: skip
        if outcome.bad:
            warnings.append(_about(outcome.bad, folder / "bad.txt"))
        result = RunResult(
            protocol=protocol.name,
            dataset=test.dataset,
            weights=known.source,
            random_weights=known.random,
            partition=partition,
            mean=mean_source,
            preprocessing=preparation.describe(),
            computed=_how_computed(net, preparation, test.images, outcome.images.names),
            batch_size=test.size,
            batches=outcome.batches,
            images=outcome.images,
            list_order=test.images.order,
            warnings=tuple(warnings),
            versions=versions(),
            command=test.command,
            elapsed=time.monotonic() - started,
        )
        _write(result, outcome.bad, folder, test.table)
        journal_file.unlink()
        return result


def _identity(run: RunResult) -> tuple[object, ...]:
    """What distinguishes a run from others in the same folder."""
    return (
        run.protocol, run.dataset, run.weights.sha256, run.partition.sha256, run.mean and run.mean.sha256,
        run.preprocessing, run.batch_size, run.list_order, len(run.batches),
    )  # fmt: skip


def _check_folder(folder: Path, test: Test, weights: str | os.PathLike[str]) -> None:
    """Raise IlgnetError where a file in ``folder`` that the run would replace is an input or not a run's."""
    names = ("run.json", f"pictures.{test.table}", "bad.txt", JOURNAL)
    inputs = [weights, test.mean, test.scores, test.images.title]
    check_outputs([folder / name for name in names], inputs)
    is_ours: dict[str, Callable[[Path], bool]] = {
        "run.json": is_run,
        "pictures.csv": starts_with(csv_line(COLUMNS).encode()),
        "bad.txt": lambda path: b"\t" in path.read_bytes().partition(b"\n")[0] and _holds_run(folder),
        JOURNAL: is_journal,
    }
    for name in names:
        check_replaced(
            folder / name, is_ours.get(name, lambda path: _holds_run(folder)), "`ilgnet test`",
            "give another out=", option="out",
        )  # fmt: skip


def _holds_run(folder: Path) -> bool:
    """Whether a folder contains a run's result, or that of an interrupted run."""
    run, journal = folder / "run.json", folder / JOURNAL
    return (run.is_file() and is_run(run)) or (journal.is_file() and is_journal(journal))


def _how_computed(net: Runnable, preparation: Preparation, images: LabelledImages, names: np.ndarray) -> str:
    """The net's form and, where it is not the exact one, its largest deviation on the first images."""
    if not isinstance(net, FastNet):
        return net.form
    rows = {name: row for row, name in enumerate(images.names)}
    first = [preparation.one(images.image(rows[name])) for name in names[:_COMPARED].tolist()]
    view = torch.from_numpy(next(iter(preparation.views(np.stack(first)))))
    most = max(net.deviation({net.inputs_for(net.outputs)[0]: view}).values())
    return (
        f"{net.form}; at most {most:.2g} from the exact net's probabilities on the first {len(first)} images"
    )


def _write(result: RunResult, bad: tuple[tuple[str, str], ...], folder: Path, table: str) -> None:
    write_table(folder / f"pictures.{table}", result.images)
    (folder / "bad.txt").unlink(missing_ok=True)
    if bad:
        with atomic_file(folder / "bad.txt", "w") as file:
            file.writelines(f"{printable(name)}\t{reason}\n" for name, reason in bad)
    result.write(folder / "run.json")


def _side(net: Runnable) -> int:
    name = net.image_input()
    shape = net.shapes[name]
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] is None:
        raise IlgnetError(f"input {name!r} is {shape}; colour images of a square crop are needed (N,3,S,S)")
    return shape[2]


def _departures(test: Test) -> list[str]:
    """Warn where a run called `published` differs from what was published."""
    if test.protocol.batches is None or test.dataset not in BATCH_SIZES:
        return []
    usual = (test.protocol.batches, BATCH_SIZES[test.dataset])
    if (test.count, test.size) == usual:
        return []
    return [f"not as published: {test.count} batches of {test.size} instead of {usual[0]} of {usual[1]}"]


def _mean_scores(file: str | os.PathLike[str] | None) -> Callable[[str], float]:
    if file is None:
        return lambda name: math.nan
    table = read_scores(file)
    of_id = dict(zip(table.ids.tolist(), table.means.tolist(), strict=True))

    def score(name: str) -> float:
        stem = Path(name).stem
        return of_id.get(int(stem), math.nan) if stem.isdecimal() else math.nan

    return score


def _about(bad: tuple[tuple[str, str], ...], file: Path) -> str:
    names = ", ".join(name for name, _ in bad[:_NAMED]) + (", …" if len(bad) > _NAMED else "")
    were = "image was" if len(bad) == 1 else "images were"
    return f"left out: {len(bad):,} {were} missing or broken: {names}; {file} has all with the reason"


def _form(net: Runnable) -> str:
    """The net's form without its engine: a choice by speed, which may differ when an interrupted run continues."""
    return f"fast path, large dense weights in {net.precision}" if isinstance(net, FastNet) else net.form


def _computed_by(net: Runnable, stated: str) -> bool:
    """Whether a finished run was computed by this form of the net, by any engine."""
    return re.sub(r"^fast path in \w+,", "fast path,", stated).startswith(_form(net))


def _key(*parts: Any) -> str:
    """A digest of all that the rows of a run depend on."""
    return hashlib.sha256(json_text([str(part) for part in parts]).encode()).hexdigest()
