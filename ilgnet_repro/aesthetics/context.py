"""What a run's files are, by their checksums, and the warnings about them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import opencv as cv2
from ..errors import IlgnetError
from ..files import file_sha256
from ..known import find_model
from ..reading.mean import read_mean
from ..runtime.runnable import Runnable
from ..version import __version__
from .labelled_images import LabelledImages
from .partition_checks import warn_contaminated
from .protocols import Mean, Protocol
from .published import PUBLISHED
from .releases import Release, default_folder, find_release, known_release
from .results import Source


@dataclass(frozen=True)
class Weights:
    """A weights file; ``release`` is the released file it is or comes from, ``random`` whether they
    were drawn at random, in part at least, by what the file states.

    How a release's weights were changed (folded, fewer bits) is in the source's ``known_as``; weights
    that were trained on since come from no release.
    """

    source: Source
    release: Release | None
    random: bool


def identify_weights(path: str | os.PathLike[str], net: Runnable) -> Weights:
    """Find out what a weights file is; ``net`` is what was loaded from it."""
    sha256 = file_sha256(path)
    origin = net.about.source
    release = known_release(sha256)
    known_as = release.name if release else None
    if release is None and origin is not None and origin.sha256 is not None:
        release = known_release(origin.sha256)
        how = f" ({origin.derived})" if origin.derived else ""
        known_as = f"converted from {release.name}{how}" if release else None
    return Weights(Source(os.fspath(path), sha256, known_as), release, bool(net.about.random))


def weights_warnings(weights: Weights, dataset: str) -> list[str]:
    """Warn of weights that are not released ones, where a released dataset is tested."""
    if weights.random or weights.release is not None or dataset not in PUBLISHED:
        return []
    return [
        f"unknown weights: {weights.source.name} is not one of the released files"
        f" (SHA-256 {weights.source.sha256}), so the published figure is not of them"
    ]


def partition_source(images: LabelledImages) -> Source:
    """The list that was read, with its checksum."""
    return Source(images.title, images.sha256, images.release.name if images.release else None)


def partition_warnings(
    images: LabelledImages, dataset: str, weights: Weights, protocol: Protocol, reads: int
) -> list[str]:
    """Warn of a list that is not the dataset's, that the weights have seen, or that begins with one class."""
    found: list[str] = []
    if dataset in PUBLISHED:
        expected = f"{dataset}-val"
        release = images.release
        if release is None:
            found.append(
                f"wrong partition: {images.title} is not the released {expected} (its list has SHA-256"
                f" {images.sha256})"
            )
        elif release.name != expected:
            found.append(f"wrong partition: {images.title} is the released {release.name}, not {expected}")
    contaminated = warn_contaminated(weights.release, images.release)
    if contaminated:
        found.append(f"contaminated: {contaminated}")
    if protocol.batches is not None:
        labels = images.labels[:reads]
        if len(np.unique(labels)) == 1 and len(np.unique(images.labels)) == 2:
            found.append(
                f"one class: the first {len(labels):,} images all have label {labels[0]}, so this is"
                " the recall of one class and no accuracy; run `full`"
            )
        if len(images) < reads:
            found.append(
                f"wrapped: {reads:,} images are read of a list of {len(images):,}, some more than once"
            )
    return found


def choose_mean(
    dataset: str,
    protocol: Protocol,
    weights: Weights,
    path: str | os.PathLike[str] | None = None,
    values: tuple[float, ...] = (),
) -> tuple[Mean, Source | None, list[str]]:
    """The mean to subtract, where it is from, and warnings.

    It is ``path`` or ``values``, or else the released mean file of the weights' training set (of ``dataset``
    where that is unknown), if it was fetched. Raises IlgnetError if there is none.
    """
    if values:
        if path is not None:
            raise IlgnetError("give mean= or mean_values=, not both", option="mean mean_values")
        unlike = "wrong mean file: none, but the channel means that were given"
        return Mean(values=values), None, [unlike] if dataset in PUBLISHED else []
    expected = _expected_mean(dataset, weights)
    if path is None and expected is None:
        raise IlgnetError(
            "no mean: give mean=FILE or mean_values=B,G,R (0 for none)", option="mean mean_values"
        )
    if path is None:
        assert expected is not None
        released = default_folder() / Path(expected.path)
        if not released.is_file():
            if protocol.whole:
                model = find_model(f"{expected.name.removesuffix('-mean')}-weights")
                assert model is not None and model.preprocessing is not None
                return Mean(values=model.preprocessing.mean_value), None, []
            raise IlgnetError(
                f"{released}: the mean file is not there; `ilgnet data get {expected.name}`,"
                " or give mean=FILE",
                option="mean",
            )
        path = released
    sha256 = file_sha256(path)
    known = known_release(sha256)
    source = Source(os.fspath(path), sha256, known.name if known else None)
    warnings = []
    if expected is not None and known != expected:
        what = f"the released {known.name}" if known else "no released mean file"
        warnings.append(f"wrong mean file: {path} is {what}; the weights go with {expected.name}")
    return Mean(read_mean(path)), source, warnings


def _expected_mean(dataset: str, weights: Weights) -> Release | None:
    """A mean belongs to the training list: that of the weights, if it is known."""
    trained_on = weights.release.trained_on if weights.release else None
    name = trained_on.removesuffix("-train") if trained_on else dataset
    return find_release(f"{name}-mean") if name in PUBLISHED else None


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    import torch

    return {
        "ilgnet_repro": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "opencv": str(cv2.__version__),
        "machine": platform.machine(),
    }
