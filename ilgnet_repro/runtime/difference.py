"""The difference between two arrays of one blob, and how many of their values could be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """The result of comparing two arrays.

    Values that are finite in both are compared.  NaN and infinities must be at the same positions; where they are
    not, or the shapes differ, ``largest`` and ``mean`` are infinite.  ``scale`` is the largest finite absolute
    value of the first array.
    """

    largest: float
    mean: float
    scale: float
    values: int
    compared: int

    @property
    def is_compared(self) -> bool:
        """Whether anything was compared: arrays without a finite value never agree."""
        return self.compared > 0 or self.largest > 0

    @property
    def left_out(self) -> str:
        """Which values were not compared, as text; empty where all were."""
        if self.largest == np.inf or (self.compared and self.compared == self.values):
            return ""
        if not self.values:
            return "no values"
        if not self.compared:
            return "no value is finite"
        return f"{self.values - self.compared} of {self.values} values are not finite, at the same positions"


def differ(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare two arrays of any numeric types in double precision."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = np.abs(a[np.isfinite(a)])
    scale = float(known.max(initial=0.0))
    if a.shape != b.shape:
        return Difference(np.inf, np.inf, scale, a.size, 0)
    finite = np.isfinite(a) & np.isfinite(b)
    alike = finite | (np.isnan(a) & np.isnan(b)) | (a == b)
    apart = np.abs(a[finite] - b[finite])
    largest = float(apart.max(initial=0.0)) if alike.all() else np.inf
    mean = (float(apart.mean()) if apart.size else 0.0) if alike.all() else np.inf
    return Difference(largest, mean, scale, a.size, int(finite.sum()))
