"""`Score`: the record of one image, without torch, so that kept ones are read without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import FormatError
from .files import json_text, parse_json

TOP = 5  # classes named
DISTRIBUTION = 10  # values of a distribution over the scores 1 to 10
MEAN = "mean"  # the meaning of the value of a distribution


@dataclass(frozen=True)
class Ranked:
    """A class of an image: its index, its name where labels are known, and its value."""

    index: int
    label: str
    value: float


@dataclass(frozen=True)
class Box:
    """A detection: class, score, and the box in pixels of the upright image."""

    index: int
    label: str
    score: float
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Score:
    """One image's outputs: each output blob's values, flattened.  ``path`` is "image N" for an array.

    ``value`` is the score, if the net's metadata say which value it is (`About.score`), and ``meaning`` its name.  Of a
    distribution over the scores 1 to 10 it is the mean, and ``deviation`` the standard deviation.  ``classes`` are the
    best ones of the first output that the labels fit.  ``boxes`` are those of a net that ends in DetectionOutput, best
    first; None for any other net.  ``size`` is the image's height and width, ``notes`` what the user should know
    about it.  Where ``error`` is set the image could not be scored, and it says why.
    """

    path: str
    outputs: dict[str, tuple[float, ...]]
    value: float | None = None
    meaning: str = ""
    deviation: float | None = None
    classes: tuple[Ranked, ...] = ()
    boxes: tuple[Box, ...] | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    error: str = field(default="", kw_only=True)

    def best_of(self, labels: Sequence[str], top: int) -> dict[str, tuple[Ranked, ...]]:
        """Return the ``top`` best classes of each output with as many values as there are labels."""
        return {
            name: rank(values, labels, top)
            for name, values in self.outputs.items()
            if len(values) == len(labels)
        }

    def labelled(self, labels: Sequence[str], top: int = TOP, fewest: float = -math.inf) -> Score:
        """Return this with names for its classes and boxes, boxes below the score ``fewest`` left out."""
        best = next(iter(self.best_of(labels, top).values()), ())
        boxes = self.boxes and tuple(
            replace(box, label=labels[box.index] if box.index < len(labels) else box.label)
            for box in self.boxes
            if box.score >= fewest
        )
        return replace(self, classes=best, boxes=boxes)

    def with_best(self, top: int | None, *, keep_classes: bool) -> Score:
        """Return this with at most ``top`` boxes, and with its classes only if they are to be shown."""
        boxes = self.boxes if self.boxes is None or top is None else self.boxes[:top]
        return replace(self, boxes=boxes, classes=self.classes if keep_classes else ())

    def to_json(self) -> str:
        """Return what is kept of it: everything but its path and its classes, which follow from labels."""
        kept: dict[str, Any] = {"outputs": self.outputs, "value": self.value, "meaning": self.meaning}
        if self.deviation is not None:
            kept["deviation"] = self.deviation
        if self.boxes is not None:
            kept["boxes"] = [
                [box.index, box.score, box.xmin, box.ymin, box.xmax, box.ymax] for box in self.boxes
            ]
        return json_text({**kept, "size": self.size, "notes": self.notes, "error": self.error})

    @classmethod
    def from_json(cls, text: str, path: str) -> Score:
        """Read the result of `to_json`.  Raises FormatError on anything else."""
        try:
            kept = parse_json(text)
            boxes, size = kept.get("boxes"), kept["size"]
            score = cls(
                path,
                {str(name): _numbers(values) for name, values in kept["outputs"].items()},
                _optional(kept["value"]),
                _text(kept["meaning"]),
                _optional(kept.get("deviation")),
                boxes=None if boxes is None else tuple(_box(row) for row in boxes),
                size=None if size is None else _size(size),
                notes=tuple(map(_text, kept["notes"])),
                error=_text(kept["error"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise FormatError(f"score of {path}: not as this package keeps it") from error
        return score


def rank(values: Sequence[float], labels: Sequence[str], top: int) -> tuple[Ranked, ...]:
    """Return the ``top`` largest values, largest first, each named by its label or its index."""
    order = sorted(range(len(values)), key=lambda index: (math.isnan(values[index]), -values[index]))[:top]
    return tuple(
        Ranked(index, labels[index] if index < len(labels) else str(index), values[index]) for index in order
    )


def distribution(values: Sequence[float]) -> tuple[float, float] | None:
    """Return mean and standard deviation of a distribution over the scores 1 to 10; None for other values."""
    if len(values) != DISTRIBUTION or not all(0 <= value <= 1 + 1e-6 for value in values):
        return None
    total = math.fsum(values)
    if abs(total - 1) > 1e-3:
        return None
    mean = math.fsum(score * value for score, value in enumerate(values, 1)) / total
    variance = math.fsum((score - mean) ** 2 * value for score, value in enumerate(values, 1)) / total
    return mean, math.sqrt(variance)


def best_value(score: Score) -> float | None:
    """Return what images are sorted by: the score, else the best box or the best class."""
    if score.value is not None:
        return score.value
    if score.boxes:
        return max(box.score for box in score.boxes)
    return score.classes[0].value if score.classes else None


def _number(value: Any) -> float:
    """A number; NaN and infinities are kept as strings."""
    if isinstance(value, bool) or not (
        isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")
    ):
        raise ValueError("not a number")
    return float(value)


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise ValueError("not a list")
    return tuple(map(_number, values))


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError("not an index or a side")
    return value


def _size(sides: Any) -> tuple[int, int]:
    height, width = sides
    return _integer(height), _integer(width)


def _box(row: Any) -> Box:
    index, *numbers = row
    score, xmin, ymin, xmax, ymax = map(_number, numbers)
    return Box(_integer(index), str(index), score, xmin, ymin, xmax, ymax)
