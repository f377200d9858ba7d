"""What the page and its API compute: scores, heat maps and small copies of images, for many requests at a time."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from .. import opencv as cv2
from ..about import About
from ..engines.fast import FastNet
from ..errors import DataError, IlgnetError, excerpt, printable
from ..gradcam import branch_shares, concat_layers, grad_cam, heat_map_blobs
from ..reading.images import encode_image
from ..reading.parallel import cores
from ..reading.photos import decode_photo
from ..runtime.model import Model
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..scored import Box, Ranked, Score, best_value, distribution, rank
from ..scoring import Prepared, Scorer
from .view_files import View

AT_WORK = 2  # images that are decoded at the same time; a large one takes hundreds of megabytes
AHEAD = 4  # images of a request that are under way
MOST_PREPARED = 64 << 20  # bytes of prepared images that wait for the net
MOST_HEAT = 128  # values on a side of a heat map
MOST_BARS = 400  # values that explain an output
MOST_VALUES = 64  # of an output, in a record
MOST_BOXES = 200  # in a record
LONGEST_NAME = 255  # characters of a file's name that are repeated
Reader = Callable[[], bytes]
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Served:
    """A net of the page: how it is called there, what scores images with it, and what opens it as a graph."""

    name: str
    scorer: Scorer
    view: Callable[[], View] | None = None

    @property
    def caffe(self) -> CaffeNet | None:
        """The net with its gradients, which heat maps need; None for files of other engines."""
        net = self.scorer.net
        exact = net.exact if isinstance(net, FastNet) else net
        return exact if isinstance(exact, CaffeNet) else None

    @property
    def explained(self) -> CaffeNet | Model | None:
        """The net whose heat maps are shown; None where it has no gradients."""
        net = self.scorer.net
        return net if isinstance(net, Model) else self.caffe

    @cached_property
    def heat_blobs(self) -> tuple[str, ...]:
        """The blobs that a heat map can be taken at; none where the net has no gradients or no output to choose."""
        try:
            return () if self.explained is None else heat_map_blobs(self.explained)
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
        source, explained = about.source, self.explained
        return {
            "name": self.name,
            "net": printable(net.name),
            "form": net.form,
            "random": printable(about.random),
            "random_in_part": about.is_random_in_part,
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
            "parameters": None if explained is None else sum(blob.numel() for blob in explained.parameters()),
            "blobs": list(self.heat_blobs),
        }


def open_served(given: Sequence[tuple[str, Scorer] | tuple[str, Scorer, Callable[[], View]]]) -> list[Served]:
    """Return served nets with names of their own: a number is added to a name that is there already."""
    served: list[Served] = []
    for name, scorer, *view in given:
        taken = {one.name for one in served}
        unique, number = printable(name), 1
        while unique in taken:
            number += 1
            unique = f"{printable(name)} ({number})"
        served.append(Served(unique, scorer, *view))
    return served


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A prepared image that waits for its net, and where its score is awaited."""

    net: Served
    image: Prepared
    score: Future[Score]


class Service:
    """Computes for many requests, on threads of its own: `AT_WORK` decode images, and one runs the nets.

    Prepared images wait for the net, which takes as many as have come, up to its batch; where they have `MOST_PREPARED`
    bytes, the threads that decode wait too.  Memory therefore does not grow with the number of requests, and each of the
    few threads reuses what it freed.
    """

    def __init__(self, nets: Sequence[Served]) -> None:
        self.nets = tuple(nets)
        self._decoders = ThreadPoolExecutor(min(AT_WORK, cores()), "decode")
        self._runner = ThreadPoolExecutor(1, "net")
        self._prepared: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        # A pass of each net, before the first image comes.
        self._facts = self._runner.submit(lambda: [net.facts() for net in self.nets])

    def close(self) -> None:
        """End the threads once they are done with what they compute; what waits for them is cancelled."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for threads in (self._decoders, self._runner):
            threads.shutdown(wait=False, cancel_futures=True)

    async def facts(self) -> list[dict[str, Any]]:
        """Return what the page says of each net."""
        return await asyncio.shield(asyncio.wrap_future(self._facts))

    async def score(self, net: Served, images: Sequence[tuple[str, Reader]]) -> list[dict[str, Any]]:
        """Return a record per image, in order; each is its name and what reads its bytes.

        `AHEAD` images of a request are under way at a time, so that requests take turns.
        """
        under_way: deque[asyncio.Future[Score]] = deque()
        found: list[Score] = []
        try:
            for name, read in images:
                if len(under_way) == AHEAD:
                    found.append(await under_way[0])
                    under_way.popleft()
                under_way.append(asyncio.ensure_future(self._score_one(net, name, read)))
            found += await asyncio.gather(*under_way)
        finally:  # no file is closed while it is read
            await asyncio.gather(*under_way, return_exceptions=True)
        return [record(net, score) for score in found]

    async def heat(self, net: Served, name: str, read: Reader, blob: str | None) -> dict[str, Any]:
        """Return the heat map of an image, from 0 to 1, and the part of the image that it covers.

        Raises IlgnetError where the image, or the blob, has none.
        """
        return await self._decoding(self._heat, net, name, read, blob)

    async def small_copy(self, name: str, read: Reader, side: int) -> bytes:
        """Return an image as a JPEG with sides of at most ``side`` pixels."""
        return await self._decoding(_small_copy, name, read, side)

    async def _decoding(self, work: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.wrap_future(self._decoders.submit(work, *args))

    async def _score_one(self, net: Served, name: str, read: Reader) -> Score:
        try:
            return await asyncio.wrap_future(await self._decoding(self._prepare, net, name, read))
        except DataError as error:
            return Score(name, {}, error=str(error))

    def _prepare(self, net: Served, name: str, read: Reader) -> Future[Score]:
        """Decode and prepare an image, and queue it for its net."""
        one = _Waiting(net, net.scorer.read(read(), name), Future())
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(one.image))
            self._prepared.append(one)
        self._runner.submit(self._run)
        return one.score

    def _has_room(self, image: Prepared) -> bool:
        size = sum(one.image.values.nbytes for one in self._prepared)
        return self._is_closed or not size or size + image.values.nbytes <= MOST_PREPARED

    def _run(self) -> None:
        """Score the next images that wait: those of the net that is first, up to its batch."""
        with self._changed:
            if not self._prepared:  # they were part of a batch
                return
            net = self._prepared[0].net
            taken = list(islice((one for one in self._prepared if one.net is net), net.scorer.batch))
            self._prepared = deque(one for one in self._prepared if one not in taken)
            self._changed.notify_all()
        taken = [one for one in taken if one.score.set_running_or_notify_cancel()]
        try:
            scores = net.scorer.run([one.image for one in taken])
        except Exception as error:
            for one in taken:
                one.score.set_exception(error)
            return
        for one, score in zip(taken, scores, strict=True):
            one.score.set_result(score)

    def _heat(self, net: Served, name: str, read: Reader, blob: str | None) -> dict[str, Any]:
        photo = decode_photo(read(), None, name, raw_pixels=net.scorer.raw_pixels)
        pixels = np.ascontiguousarray(photo.pixels[:, :, :3])
        # The thread that decodes waits, so that no more images wait than are decoded.
        return self._runner.submit(_explain, net, name, pixels, blob).result()


def _explain(net: Served, name: str, pixels: np.ndarray, blob: str | None) -> dict[str, Any]:
    explained = expect_gradients(net)
    heat = grad_cam(explained, pixels, blob)
    shares = (
        branch_shares(explained, pixels).by_kind()
        if isinstance(explained, CaffeNet) and net.has_branches
        else {}
    )
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
        "bars": bars(explained, pixels) if isinstance(explained, Model) else [],
        "values": [[round(float(value), 3) for value in row] for row in scaled],
    }


def _small_copy(name: str, read: Reader, side: int) -> bytes:
    pixels = decode_photo(read(), None, name).pixels
    factor = min(1.0, side / max(pixels.shape[:2]))
    size = tuple(max(1, round(length * factor)) for length in (pixels.shape[1], pixels.shape[0]))
    return encode_image(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), "jpg")


def expect_gradients(net: Served) -> CaffeNet | Model:
    """Return what has the gradients of a served net.  Raises IlgnetError where another engine runs the file."""
    if net.explained is None:
        raise IlgnetError(
            f"{net.name}: {net.scorer.net.form} runs it, without gradients; serve the weights themselves for heat maps"
        )
    return net.explained


def bars(model: Model, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Return what a model explains of its outputs for an image, by name (`Model.explained`)."""
    with torch.inference_mode(), as_loaded(model):
        found = model.explained(model.prepare([pixels]))
    return [
        {"name": printable(name), "values": [round(float(value), 6) for value in values[0][:MOST_BARS]]}
        for name, values in found.items()
        if bool(torch.isfinite(values).all())
    ]


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
