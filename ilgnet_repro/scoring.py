"""`score` and `Scorer`: images in, one record per image out, by any net."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from .about import About
from .engines.fast import FastNet, fast
from .errors import DataError, IlgnetError
from .image_paths import ImagePaths
from .known import ScoreAt
from .prepare_images import list_images, open_pixels, prepare_numbered, stack_pixels
from .reading.parallel import cores, ordered_map
from .reading.photos import Photo, decode_photo, read_file
from .reading.preprocessing import Preprocessing
from .runtime.calls import check_batch
from .runtime.drawn import about_now
from .runtime.load import LoadOptions, load
from .runtime.modes import as_loaded
from .runtime.net import CaffeNet
from .runtime.runnable import FileNet, Runnable, run_rows
from .scored import MEAN, TOP, Box, Score, distribution
from .signatures import shows_options

PathLike = str | os.PathLike[str]
Row = TypeVar("Row")
BATCH = 16
ERRORS = ("raise", "record")
_CHUNK = 4  # images that a thread prepares at a time


class ScorerOptions(TypedDict, total=False):
    """The options of a `Scorer`, by keyword."""

    preprocessing: Preprocessing | None
    batch: int
    labels: Sequence[str]
    top: int
    threshold: float
    raw_pixels: bool
    distributions: bool
    pad: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as the net's input, float32 channels x height x width (or uint8 pixels), with its name and size."""

    name: str
    values: np.ndarray
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


class Turn:
    """Whose turn it is on the processors: the net's threads wait for each other, so that decoding beside them delays all.

    A net that runs on every core has them to itself, and images are decoded on every core between its batches: the time of
    a batch is the sum of both, not more.  Where the net leaves cores free, images are decoded on them meanwhile.
    """

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()

    def wait(self) -> None:
        """Wait until the net runs no more."""
        self._free.wait()

    @contextmanager
    def of_net(self) -> Iterator[None]:
        """Let nobody begin to decode within the block."""
        if torch.get_num_threads() >= cores():
            self._free.clear()
        try:
            yield
        finally:
            self._free.set()


class Scorer:
    """Scores images with a loaded net (`load`, `fast`, or a file of another engine).

    `read` decodes and prepares one image and may be called in any thread; `run` scores prepared images; `score` does
    both for any number of images, with the next ones prepared on threads while the net runs.

    ``labels`` name classes (default: the net's own), ``top`` of which are returned; boxes below ``threshold`` are
    left out.  EXIF orientation is applied unless ``raw_pixels``.  Ten values that sum to 1 in a net without labels are a
    distribution over the scores 1 to 10, unless ``distributions`` is False.  ``pad`` runs every batch at its full size,
    so that a score does not depend on which images of its list are in its batch.
    """

    def __init__(
        self,
        net: Runnable,
        *,
        preprocessing: Preprocessing | None = None,
        batch: int = BATCH,
        labels: Sequence[str] = (),
        top: int = TOP,
        threshold: float = -np.inf,
        raw_pixels: bool = False,
        distributions: bool = True,
        pad: bool = False,
    ) -> None:
        self.net = net
        self.about = prepared_about(net, preprocessing)
        check_batch(batch)
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise IlgnetError(f"top={top!r}: give a number from 1", option="top")
        self.labels = tuple(labels) or self.about.labels
        self.top, self.threshold, self.raw_pixels, self.pad = top, threshold, raw_pixels, pad
        self._distributions = distributions and not self.labels and self.about.score is None
        self._input = net.image_input()
        self._turn = Turn()
        self._detection = detection_output(net)
        self.batch = 1 if self.about.image_order else batch  # images of several sizes cannot form a batch
        if self._detection and net.fixed_batch:
            self.batch = net.fixed_batch

    @property
    def detects(self) -> bool:
        """Whether the net ends in DetectionOutput, so that its records have boxes."""
        return bool(self._detection)

    def read(self, image: Any, name: str = "", *, data: bytes | None = None) -> Prepared:
        """Decode and prepare one image: a path, the bytes of a file, a uint8 array in BGR, or a PIL image.

        ``data`` is the content of a path, where it was read already.
        Raises DataError, with the image's name, if it cannot be used.
        """
        is_path = isinstance(image, str | os.PathLike)
        name = name or (os.fsdecode(image) if is_path else "image")
        how = None if self.about.image_order else self.about.preprocessing
        if is_path or isinstance(image, bytes):
            if data is None:
                data = read_file(image) if is_path else image
            photo = decode_photo(
                data,
                how,
                os.fsdecode(image) if is_path else name,
                raw_pixels=self.raw_pixels,
                is_path=is_path,
            )
        else:
            photo = Photo(open_pixels(image, name, upright=not self.raw_pixels))
        if how is None:
            (values,) = stack_pixels([photo.pixels], self.about.image_order)
        else:
            try:
                values = how.prepare_pixels(photo.pixels)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        return Prepared(name, values, photo.size, photo.notes)

    def run(self, prepared: Sequence[Prepared]) -> list[Score]:
        """Score prepared images, in batches."""
        found: list[Score] = []
        for start in range(0, len(prepared), self.batch):
            found += self._run_batch(dict(enumerate(prepared[start : start + self.batch]))).values()
        return found

    def score(
        self, images: Iterable[Any], *, errors: str = "record", workers: int | None = None
    ) -> Iterator[Score]:
        """Yield the record of each image, in order: a path, bytes, an array, a PIL image, or (name, one of these).

        An image that cannot be used has a record with its ``error``; ``errors="raise"`` raises it as a DataError.
        """
        if errors not in ERRORS:
            raise IlgnetError(f"errors={errors!r}: is one of {', '.join(ERRORS)}", option="errors")
        read = ordered_map(lambda numbered: self._try_read(*numbered), zip(count(1), images), workers, _CHUNK)
        yield from self.score_read(_raised(read) if errors == "raise" else read)

    def score_read(
        self, read: Iterable[Prepared | Score], numbers: Iterable[int] | None = None, most: int = 64
    ) -> Iterator[Score]:
        """Yield the record of each image that was read; records among them are passed on, in order.

        An image has the place in a batch that its number gives (default: counted from 0), since sums are rounded
        differently in different places: a bad image, or one whose record is kept, leaves its place empty.  With ``pad``
        images of several batches fill the places of one, and up to ``most`` batches of records wait for it.
        """
        waiting: list[int | Score] = []
        places: dict[int, Prepared] = {}
        for number, one in zip(count() if numbers is None else numbers, read, strict=False):
            place = number % self.batch
            if isinstance(one, Score):
                waiting.append(one)
            else:
                if place in places:
                    yield from self._scored(waiting, places)
                waiting.append(place)
                places[place] = one
            is_full = len(places) == self.batch or len(waiting) >= most * self.batch
            if not places or (is_full if self.pad else place == self.batch - 1):
                yield from self._scored(waiting, places)
        yield from self._scored(waiting, places)

    def _scored(self, waiting: list[int | Score], places: dict[int, Prepared]) -> Iterator[Score]:
        """The records that wait, in order, those of the places computed now; empties both."""
        found = self._run_batch(places) if places else {}
        for one in waiting:
            yield self._labelled(one) if isinstance(one, Score) else found[one]
        waiting.clear()
        places.clear()

    def _try_read(self, number: int, image: Any) -> Prepared | Score:
        name, image = image if isinstance(image, tuple) else ("", image)
        name = name or _path_of(image) or f"image {number}"
        try:
            data = read_file(image) if isinstance(image, str | os.PathLike) else None
        except DataError as error:
            return Score(name, {}, error=str(error))
        return self.read_in_turn(image, name, data)

    def read_in_turn(self, image: Any, name: str, data: bytes | None = None) -> Prepared | Score:
        """Read as `read`, while the net does not run on every core; what cannot be used is a record with its error."""
        self._turn.wait()
        try:
            return self.read(image, name, data=data)
        except DataError as error:
            return Score(name, {}, error=str(error))

    def _run_batch(self, places: Mapping[int, Prepared]) -> dict[int, Score]:
        padded = self.pad or (self._detection and self.net.fixed_batch)
        size = self.batch if padded else max(places) + 1
        filler = next(iter(places.values()))
        chunk = [places.get(place, filler) for place in range(size)]
        tensor = torch.from_numpy(np.stack([one.values for one in chunk]))
        with self._turn.of_net(), torch.inference_mode(), as_loaded(self.net):
            if self._detection:
                found = dict(self.net({self._input: tensor}))
            else:
                found = run_rows(self.net, self._input, tensor)
        boxes = self._boxes(found.pop(self._detection), chunk) if self._detection else None
        return {
            place: self._labelled(self._record(one, place, size, found, boxes))
            for place, one in places.items()
        }

    def _record(
        self, one: Prepared, index: int, rows: int, found: dict[str, Tensor], boxes: list[list[Box]] | None
    ) -> Score:
        outputs = {
            blob: _row(value, index, rows)
            for blob, value in found.items()
            if boxes is None or value.shape[:1] == (rows,)
        }
        value, meaning, deviation = _value(outputs, self.about.score), "", None
        if value is not None and self.about.score is not None:
            meaning = self.about.score.meaning
            shares = outputs.get(self.about.score.distribution, ())
            if (spread := distribution(shares)) is not None:
                deviation = spread[1]
        elif self._distributions and len(outputs) == 1:
            (values,) = outputs.values()
            if (spread := distribution(values)) is not None:
                (value, deviation), meaning = spread, MEAN
        return Score(
            one.name, outputs, value, meaning, deviation, (), None if boxes is None else tuple(boxes[index]),
            one.size, one.notes,
        )  # fmt: skip

    def _labelled(self, score: Score) -> Score:
        return score.labelled(self.labels, self.top, self.threshold)

    def _boxes(self, rows: Tensor, chunk: Sequence[Prepared]) -> list[list[Box]]:
        """The detections of each image: rows of number, class, score and corners as fractions of the input."""
        found: list[list[Box]] = [[] for _ in chunk]
        for number, label, score, *corners in rows.reshape(-1, 7).tolist():
            if label < 0 or not 0 <= number < len(chunk):  # Caffe writes -1 where there are no detections
                continue
            one = chunk[int(number)]
            xmin, ymin, xmax, ymax = self._in_pixels(corners, one.size)
            found[int(number)].append(Box(int(label), str(int(label)), score, xmin, ymin, xmax, ymax))
        return [sorted(boxes, key=lambda box: -box.score) for boxes in found]

    def _in_pixels(self, corners: Sequence[float], size: tuple[int, int]) -> list[float]:
        """Corners as fractions of the net's input, in pixels of the image it was made from."""
        how = self.about.preprocessing
        if how is None or how.path == "whole":
            spans = [(0.0, float(side)) for side in size]
        else:
            # The centre crop begins where Caffe's integer division puts it.
            resized = how.resize or size
            spans = [
                ((whole - crop) // 2 * side / whole, crop * side / whole)
                for whole, crop, side in zip(resized, how.size, size, strict=True)
            ]
        (top, height), (left, width) = spans
        return [
            first + fraction * length
            for fraction, (first, length) in zip(corners, [(left, width), (top, height)] * 2, strict=True)
        ]


def _raised(read: Iterable[Prepared | Score]) -> Iterator[Prepared | Score]:
    for one in read:
        if isinstance(one, Score) and one.error:
            raise DataError(one.error)
        yield one


def detection_output(net: Runnable) -> str:
    """Return the output that DetectionOutput computes, or "": of a file, one of rows of 7 for a batch as a whole."""
    caffe = net.exact if isinstance(net, FastNet) else net
    if isinstance(caffe, CaffeNet):
        tops = {top.blob for node in caffe.graph.nodes if node.type == "DetectionOutput" for top in node.tops}
        return next((name for name in net.outputs if name in tops), "")
    for name in net.outputs:
        shape = net.shapes.get(name, ())
        if len(shape) == 4 and shape[:2] == (1, 1) and shape[3] == 7:
            return name
    return ""


@shows_options(LoadOptions, load)
def open_scorer(
    weights: PathLike | Runnable,
    *,
    engine: str | None = None,
    precision: str = "float32",
    scorer: ScorerOptions | None = None,
    **options: Unpack[LoadOptions],
) -> Scorer:
    """Return a `Scorer` of a file that `load` takes, with its ``options``, computed by an engine of `fast` if given."""
    net = load(weights, **options) if isinstance(weights, str | os.PathLike) else weights
    given: ScorerOptions = scorer or {}
    if engine is not None:
        if not isinstance(net, CaffeNet | FileNet):
            raise IlgnetError(
                f"engine={engine!r}: the net is computed by {net.form} already; leave it out", option="engine"
            )
        net = fast(net, precision, engine=engine, batch=given.get("batch", BATCH))
    return Scorer(net, **given)


@shows_options(LoadOptions, load)
def score(
    images: Any,
    weights: PathLike | Runnable,
    *,
    preprocessing: Preprocessing | None = None,
    batch: int = BATCH,
    engine: str | None = None,
    precision: str = "float32",
    labels: Sequence[str] = (),
    top: int = TOP,
    raw_pixels: bool = False,
    errors: str = "raise",
    **options: Unpack[LoadOptions],
) -> list[Score]:
    """Return each image's score, in the order given.

    ``images`` are files, folders (with their subfolders), patterns, lists (.txt), uint8 arrays or PIL images, or one of
    them.  ``weights`` is any file that `load` takes, with its ``options``, or a loaded net, computed by an ``engine`` of
    `fast` if one is given.
    ``labels`` name the ``top`` best classes, and boxes.  EXIF orientation is applied unless ``raw_pixels``.
    An image that cannot be used raises its DataError; with ``errors="record"`` its record has the ``error``.
    Raises IlgnetError where the net's preprocessing is neither known nor given, since the scores would be wrong.
    """
    given: ScorerOptions = {
        "preprocessing": preprocessing, "batch": batch, "labels": labels, "top": top, "raw_pixels": raw_pixels,
    }  # fmt: skip
    scorer = open_scorer(weights, engine=engine, precision=precision, scorer=given, **options)
    return list(scorer.score(expand(list_images(images)), errors=errors))


def prepared_about(net: Runnable, preprocessing: Preprocessing | None) -> About:
    """Return what is known of a net, with the ``preprocessing`` stated. Raises IlgnetError where there is none."""
    about = about_now(net)
    about = about if preprocessing is None else about.stating(preprocessing)
    if about.preprocessing is None and not about.image_order:
        raise IlgnetError(
            f"net {net.name!r}: nothing says how its images are prepared; state it as preprocessing=",
            option="preprocessing",
        )
    return about


def run_images(
    net: Runnable,
    about: About,
    rows: Iterable[Row],
    batch: int,
    blobs: Sequence[str] | None = None,
    image: Callable[[Row], Any] = lambda row: row,
) -> Iterator[tuple[list[Row], dict[str, torch.Tensor]]]:
    """Yield the rows of each batch with the net's outputs for their images, or the requested blobs; read as by `Scorer`."""
    name, turn = net.image_input(), Turn()
    check_batch(batch)
    if about.image_order:
        batch = 1  # images of several sizes cannot form a batch

    def read(numbered: tuple[int, Row]) -> tuple[Row, np.ndarray]:
        number, row = numbered
        turn.wait()
        return row, prepare_numbered(about, image(row), number, net.name)

    prepared = ordered_map(read, enumerate(rows, 1), chunk=_CHUNK)
    while chunk := list(islice(prepared, batch)):
        values = torch.from_numpy(np.concatenate([one for _, one in chunk]))
        with turn.of_net(), torch.inference_mode(), as_loaded(net):
            found = run_rows(net, name, values, blobs)
        yield [row for row, _ in chunk], found


def _path_of(image: Any) -> str:
    """Return an image's path: of a PIL image its file's, of an array none."""
    path: PathLike = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    return os.fspath(path)


def _value(rows: dict[str, tuple[float, ...]], at: ScoreAt | None) -> float | None:
    values = rows.get(at.output, ()) if at is not None else ()
    return values[at.index] if at is not None and at.index < len(values) else None


def _row(blob: torch.Tensor, index: int, count: int) -> tuple[float, ...]:
    if blob.dim() == 0 or blob.shape[0] != count:
        raise IlgnetError(f"an output of shape {list(blob.shape)} does not have one row per image")
    return tuple(blob[index].flatten().tolist())


def expand(images: Iterable[Any]) -> Iterator[Any]:
    """Yield images, each folder, pattern and list among them replaced by its files (`ImagePaths`)."""
    for image in images:
        if isinstance(image, str | os.PathLike):
            yield from ImagePaths((os.fsdecode(image),))
        else:
            yield image
