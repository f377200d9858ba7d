"""`score`: pictures in, what the net says of them out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from .conversion.find import find_net
from .conversion.load import load
from .data.preprocess import Preprocessing, ilgnet_preprocessing
from .errors import IlgnetError
from .formats.caffemodel import open_caffemodel
from .formats.kinds import Kind, kind_of
from .loading import load_net
from .modes import as_loaded
from .net import CaffeNet
from .weights import DRAW_SEED

PathLike = str | os.PathLike[str]
BATCH = 16
LARGEST_BATCH = 65_536


@dataclass(frozen=True)
class Score:
    """One picture's outputs: each output blob's values for it, flattened."""

    picture: str
    outputs: dict[str, tuple[float, ...]]

    @property
    def high_quality(self) -> float | None:
        """ILGNet's probability of high quality (index 1 of its softmax), or None for another net."""
        values = self.outputs.get("loss1/loss", ())
        return values[1] if len(values) == 2 else None


def open_weights(
    weights: PathLike,
    prototxt: PathLike | None = None,
    *,
    crop: str | None = None,
    allow_missing: Collection[str] = (),
) -> tuple[CaffeNet, Preprocessing | None]:
    """Open a converted file or a caffemodel; return the net and the preprocessing that is known of it.

    ``crop`` is as in `load_graph`, ``allow_missing`` as in `load_net`.
    """
    if kind_of(weights) is Kind.SAFETENSORS:
        if allow_missing:
            raise IlgnetError(
                f"{weights}: a converted file holds every layer; leave out allow_missing (--allow-missing)"
            )
        net = load(weights, crop=crop)
        return net, net.converted.preprocessing
    found = find_net(open_caffemodel(weights), prototxt)
    known = ilgnet_preprocessing() if found.built_in == "ilgnet" else None
    return load_net(found.net, weights, crop=crop, allow_missing=allow_missing, seed=DRAW_SEED), known


def score(
    pictures: Iterable[PathLike],
    weights: PathLike,
    *,
    prototxt: PathLike | None = None,
    preprocessing: Preprocessing | None = None,
    batch: int = BATCH,
    crop: str | None = None,
    allow_missing: Collection[str] = (),
) -> list[Score]:
    """Return each picture's score, in the order given.

    Raises IlgnetError where the net's preprocessing is not known and none is given: of a picture that is
    fed wrongly every score is wrong.
    """
    net, known = open_weights(weights, prototxt, crop=crop, allow_missing=allow_missing)
    return list(score_with(net, pictures, preprocessing or known, batch))


def check_batch(batch: int) -> None:
    """Raise IlgnetError for a number of images that no batch can have."""
    if not 1 <= batch <= LARGEST_BATCH:
        raise IlgnetError(f"--batch {batch}: give a number from 1 to {LARGEST_BATCH}")


def score_with(
    net: CaffeNet, pictures: Iterable[PathLike], preprocessing: Preprocessing | None, batch: int = BATCH
) -> Iterator[Score]:
    """Score pictures a batch at a time with a net at hand."""
    if preprocessing is None:
        raise IlgnetError(
            f"net {net.graph.name!r}: nothing says how its pictures are prepared; "
            "give the mean, scale and channel order (--mean-value, --scale, --order)"
        )
    name = net.image_input()
    check_batch(batch)
    remaining = iter(pictures)
    while chunk := list(islice(remaining, batch)):
        values = np.stack([preprocessing(path) for path in chunk])
        with torch.inference_mode(), as_loaded(net):
            outputs = net({name: torch.from_numpy(values)})
        for index, path in enumerate(chunk):
            yield Score(
                os.fspath(path), {name: _row(blob, index, len(chunk)) for name, blob in outputs.items()}
            )


def _row(blob: torch.Tensor, index: int, count: int) -> tuple[float, ...]:
    if blob.dim() == 0 or blob.shape[0] != count:
        raise IlgnetError(f"an output of shape {list(blob.shape)} does not hold one row a picture")
    return tuple(blob[index].flatten().tolist())


def expand(paths: Sequence[PathLike]) -> list[Path]:
    """Return the pictures that files and folders (not their subfolders) name, in order of name."""
    suffixes = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(entry for entry in path.iterdir() if entry.suffix.lower() in suffixes)
        else:
            found.append(path)
    return found
