"""What the page and its API compute: scores, heat maps and small copies of images, for many requests at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import opencv as cv2
from ..about import About
from ..engines.fast import FastNet
from ..errors import DataError, IlgnetError, excerpt, printable
from ..gradcam import branch_shares, concat_layers, grad_cam, heat_map_blobs
from ..reading.images import encode_image
from ..reading.parallel import cores
from ..reading.photos import decode_photo
from ..runtime.net import CaffeNet
from ..runtime.runnable import Runnable
from ..scored import Box, Ranked, Score, best_value, distribution, rank
from ..scoring import Prepared, Scorer

AT_WORK = 2  # requests that decode images at the same time; a large one takes hundreds of megabytes
MOST_PREPARED = 64 << 20  # bytes of prepared images that wait for the net
MOST_HEAT = 128  # values on a side of a heat map
MOST_VALUES = 64  # of an output, in a record
MOST_BOXES = 200  # in a record
LONGEST_NAME = 255  # characters of a file's name that are repeated
Reader = Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class Served:
    """A net of the page: how it is called there, and what scores images with it."""

    name: str
    scorer: Scorer

    @property
    def caffe(self) -> CaffeNet | None:
        """The net with its gradients, which heat maps need; None for files of other engines."""
        net = self.scorer.net
        exact = net.exact if isinstance(net, FastNet) else net
        return exact if isinstance(exact, CaffeNet) else None

    @cached_property
    def heat_blobs(self) -> tuple[str, ...]:
        """The blobs that a heat map can be taken at; none where the net has no gradients or no output to choose."""
        try:
            return () if self.caffe is None else heat_map_blobs(self.caffe)
        except IlgnetError:
            return ()

    @cached_property
    def has_branches(self) -> bool:
        """Whether the score can be divided among branches of the net."""
        try:
            return self.caffe is not None and bool(concat_layers(self.caffe))
        except IlgnetError:
            return False

    @property
    def about(self) -> About:
        """What is known of its weights and of the preparation of its images."""
        return self.scorer.about

    def facts(self) -> dict[str, Any]:
        """What the page says of the net, as plain values."""
        about, net = self.about, self.scorer.net
        source, caffe = about.source, self.caffe
        return {
            "name": self.name,
            "net": printable(net.name),
            "form": net.form,
            "random": about.random,
            "file": printable(source.file) if source else "",
            "bytes": source.bytes if source else None,
            "sha256": source.sha256 if source else None,
            "release": source.release if source else None,
            "derived": source.derived if source else "",
            "model": about.model,
            "assumed": about.assumed,
            "preprocessing": about.preprocessing.describe() if about.preprocessing else "by the net itself",
            "meaning": printable(about.score.meaning) if about.score else "",
            "labels": len(self.scorer.labels),
            "detects": self.scorer.detects,
            "raw_pixels": self.scorer.raw_pixels,
            "notes": [printable(note) for note in about.notes],
            "parameters": None if caffe is None else sum(blob.numel() for blob in caffe.parameters()),
            "blobs": list(self.heat_blobs),
        }


def open_served(names_and_scorers: Sequence[tuple[str, Scorer]]) -> list[Served]:
    """Return served nets with names of their own: a number is added to a name that is there already."""
    served: list[Served] = []
    for name, scorer in names_and_scorers:
        taken = {one.name for one in served}
        unique, number = printable(name), 1
        while unique in taken:
            number += 1
            unique = f"{printable(name)} ({number})"
        served.append(Served(unique, scorer))
    return served


class Service:
    """Computes for many requests: `AT_WORK` of them decode images at a time, and one runs a net.

    Memory therefore does not grow with the number of requests.
    """

    def __init__(self, nets: Sequence[Served]) -> None:
        self.nets = tuple(nets)
        self._work = threading.BoundedSemaphore(min(AT_WORK, cores()))
        self._net = threading.Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Wait for a turn to decode images."""
        with self._work:
            yield

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wait for a turn to run a net."""
        with self._net:
            yield

    def score(self, net: Served, images: Sequence[tuple[str, Reader]]) -> list[dict[str, Any]]:
        """Return a record per image, in order; each is its name and what reads its bytes."""
        found: list[Score | None] = [None] * len(images)
        waiting: list[tuple[int, Prepared]] = []
        most = 1 if net.about.image_order else net.scorer.batch  # images of any size wait for nothing

        def run() -> None:
            with self.running():
                scores = net.scorer.run([one for _, one in waiting])
            for (index, _), score in zip(waiting, scores, strict=True):
                found[index] = score
            waiting.clear()

        with self.working():
            for index, (name, read) in enumerate(images):
                try:
                    waiting.append((index, net.scorer.read(read(), name)))
                except DataError as error:
                    found[index] = Score(name, {}, error=str(error))
                    continue
                size = sum(one.values.nbytes for _, one in waiting)
                if len(waiting) >= most or size >= MOST_PREPARED:
                    run()
            run()
        return [record(net, score) for score in found if score is not None]

    def heat(self, net: Served, name: str, read: Reader, blob: str | None) -> dict[str, Any]:
        """Return the heat map of an image, from 0 to 1, and the part of the image that it covers.

        Raises IlgnetError where the image, or the blob, has none.
        """
        caffe = expect_caffe(net)
        with self.working():
            photo = decode_photo(read(), None, name, raw_pixels=net.scorer.raw_pixels)
            with self.running():
                pixels = np.ascontiguousarray(photo.pixels[:, :, :3])
                heat = grad_cam(caffe, pixels, blob)
                shares = branch_shares(caffe, pixels).by_kind() if net.has_branches else {}
        values = smaller(heat.values)
        largest = float(values.max(initial=0.0))
        scaled = values / largest if largest > 0 and math.isfinite(largest) else np.zeros_like(values)
        return {
            "name": name,
            "blob": printable(heat.blob),
            "output": printable(heat.output),
            "index": heat.index,
            "score": heat.score if math.isfinite(heat.score) else None,
            "region": region(net.about),
            "branches": [
                {"name": printable(branch), "share": share}
                for branch, share in shares.items()
                if math.isfinite(share)
            ],
            "values": [[round(float(value), 3) for value in row] for row in scaled],
        }

    def small_copy(self, name: str, read: Reader, side: int) -> bytes:
        """Return an image as a JPEG with sides of at most ``side`` pixels."""
        with self.working():
            pixels = decode_photo(read(), None, name).pixels
            factor = min(1.0, side / max(pixels.shape[:2]))
            size = tuple(max(1, round(length * factor)) for length in (pixels.shape[1], pixels.shape[0]))
            return encode_image(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), "jpg")


def expect_caffe(net: Served) -> CaffeNet:
    """Return the Caffe net of a served net.  Raises IlgnetError where another engine runs the file."""
    if net.caffe is None:
        raise IlgnetError(
            f"{net.name}: {form_of(net.scorer.net)} runs it, without gradients; serve its Caffe weights for heat maps"
        )
    return net.caffe


def form_of(net: Runnable) -> str:
    """What computes a net, in a few words."""
    return net.form


def smaller(values: np.ndarray) -> np.ndarray:
    """Return a map with sides of at most `MOST_HEAT` values."""
    height, width = (min(side, MOST_HEAT) for side in values.shape)
    if (height, width) == values.shape:
        return values
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA))


def region(about: About) -> list[float]:
    """Return the part of the upright image that the net sees, as fractions: left, top, width, height."""
    how = about.preprocessing
    if how is None or how.path == "whole" or not how.resize:
        return [0.0, 0.0, 1.0, 1.0]
    # The centre crop begins where Caffe's integer division puts it.
    (top, height), (left, width) = (
        ((whole - crop) // 2 / whole, crop / whole) for whole, crop in zip(how.resize, how.size, strict=True)
    )
    return [round(value, 6) for value in (left, top, width, height)]


def record(net: Served, score: Score) -> dict[str, Any]:
    """Return the record of one image: its name and score, or its name and error, and what else is known."""
    name = printable(score.path)
    if score.error:
        return {"name": name, "error": score.error}
    classes = score.classes or _ranked(net, score)
    value = classes[0].value if score.value is None and not score.boxes and classes else best_value(score)
    if score.boxes is not None and not score.boxes:
        value = 0.0  # nothing was detected
    if value is None:
        return {"name": name, "error": f"{name}: the net has no output of one row of values to score it by"}
    if not math.isfinite(value):
        return {
            "name": name,
            "error": f"{name}: the net gives {value} for it; check its weights and preprocessing",
        }
    meaning = score.meaning or (
        _of_box(score.boxes) if score.boxes is not None else printable(classes[0].label)
    )
    found: dict[str, Any] = {"name": name, "score": value, "meaning": printable(meaning)}
    if score.deviation is not None and math.isfinite(score.deviation):
        found |= {"deviation": score.deviation, "distribution": _distribution(net, score)}
    if classes and score.boxes is None and score.deviation is None:
        found["classes"] = [
            {"index": one.index, "label": printable(one.label), "value": one.value}
            for one in classes
            if math.isfinite(one.value)
        ]
    if score.boxes is not None:
        found["boxes"] = [
            {**vars(box), "label": printable(box.label)}
            for box in score.boxes[:MOST_BOXES]
            if all(map(math.isfinite, (box.score, box.xmin, box.ymin, box.xmax, box.ymax)))
        ]
    if score.size is not None:
        found["height"], found["width"] = score.size
    return {**found, "notes": [printable(note) for note in score.notes]}


def _ranked(net: Served, score: Score) -> tuple[Ranked, ...]:
    """The best values of the first output that is a row, by their numbers where no labels fit."""
    if score.value is not None or score.boxes is not None:
        return ()
    for values in score.outputs.values():
        if values:
            ranked = rank(values, (), net.scorer.top)
            return tuple(replace(one, label=f"value {one.index}") for one in ranked)
    return ()


def _of_box(boxes: Sequence[Box]) -> str:
    return max(boxes, key=lambda box: box.score).label if boxes else "nothing detected"


def _distribution(net: Served, score: Score) -> list[float]:
    at = net.about.score
    named = score.outputs.get(at.distribution, ()) if at is not None and at.distribution else ()
    found = named or next((values for values in score.outputs.values() if distribution(values)), ())
    return list(found[:MOST_VALUES])


def shown_name(name: str | None, number: int) -> str:
    """Return the name of an uploaded file as it is repeated: its last part, printable, not endless."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return excerpt(last, LONGEST_NAME) or f"image {number}"
