"""`aesthetics.test`: what `ilgnet test` measures, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from ..engines.arguments import checked_device
from ..engines.fast import fast
from ..errors import IlgnetError
from ..runtime.load import load
from ..runtime.model import Model
from ..runtime.net import CaffeNet
from ..runtime.runnable import FileNet
from .evaluation import Test, run_test
from .labelled_images import open_images
from .protocols import RESIZE, find_protocol
from .results import RunResult

PathLike = str | os.PathLike[str]
DATASETS = ("ava1", "ava2", "own")


def test(
    dataset: str,
    weights: PathLike,
    *,
    images: PathLike | None = None,
    list_file: PathLike | None = None,
    database: PathLike | None = None,
    protocol: str = "full",
    out: PathLike | None = None,
    resume: bool = False,
    mean: PathLike | None = None,
    mean_values: tuple[float, ...] = (),
    resize: int = RESIZE,
    batch_size: int | None = None,
    batches: int | None = None,
    scores: PathLike | None = None,
    strict: bool = False,
    workers: int | None = None,
    table: str = "csv",
    device: str = "cpu",
    precision: str | None = None,
    prototxt: PathLike | None = None,
    crop: str | None = None,
    allow_missing: Collection[str] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> RunResult:
    """Test a two-class net on ``ava1``, ``ava2`` or ``own`` images by a named protocol.

    ``images`` is the folder that the rows of ``list_file`` start from (default: the released val list of the dataset);
    ``database`` is an LMDB instead of both.  ``protocol`` is published (the first 50 batches, as the published figures
    were made), full (every image once), resize or tencrop.  run.json, pictures.csv and, for images that cannot be read,
    bad.txt are written to ``out`` (default: DATASET_PROTOCOL in the current folder); an interrupted run continues with
    ``resume``.  With ``precision`` the net is made fast.  The other options are those of `ilgnet test`.

    The result has ``accuracy``, ``correct`` and ``count`` as the protocol counts them, ``images`` (one row per image)
    and ``warnings``.  Raises IlgnetError in one line.
    """
    if dataset not in DATASETS:
        raise IlgnetError(f"dataset {dataset!r} is unknown; use {', '.join(DATASETS)}")
    what = find_protocol(protocol)
    labelled = open_images(dataset, images=images, list_file=list_file, database=database)
    # A fast net computes a copy on the device, of a net on the CPU.
    net = _load(weights, prototxt, crop, allow_missing, device if precision is None else "cpu")
    test_ = Test(
        dataset=dataset, protocol=what, images=labelled, mean=mean, mean_values=tuple(mean_values), resize=resize,
        batch_size=batch_size, batches=batches, scores=scores, strict=strict, workers=workers, table=table,
        command=f"aesthetics.test({dataset!r}, {os.fspath(weights)!r}, protocol={protocol!r})",
        notes=net.about.filled,
    )  # fmt: skip
    if precision is not None:
        net = fast(net, precision, device=device)
    folder = f"{dataset}_{protocol}" if out is None else out
    return run_test(test_, net, weights, folder, resume=resume, device=device, progress=progress)


def _load(
    weights: PathLike,
    prototxt: PathLike | None,
    crop: str | None,
    allow_missing: Collection[str],
    device: str,
) -> Any:
    check_device(device)
    return on_device(load(weights, prototxt, crop=crop, allow_missing=allow_missing), device)


def check_device(device: str) -> None:
    """Raise IlgnetError for a device other than cpu, cuda and cuda:N, and for a GPU that torch does not find."""
    checked_device(device, "float32", compile=False)


def on_device(net: CaffeNet | FileNet | Model, device: str) -> CaffeNet | FileNet | Model:
    """Return a Caffe net on a device.  Raises IlgnetError for any other net, which is run on the CPU."""
    if isinstance(net, CaffeNet):
        return net.to(device)
    if device != "cpu":
        raise IlgnetError(
            f"device={device!r}: {net.name} is run by {net.form} on the CPU; leave it out", option="device"
        )
    return net
