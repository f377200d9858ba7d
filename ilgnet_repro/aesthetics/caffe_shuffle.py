"""Caffe's own list shuffle, and the search for the seed that explains the batches of a log.

`convert_imageset --shuffle` draws its seed from the system's entropy. Where Caffe finds none (it says
"System entropy source not available", as the authors' logs do) it derives the seed from the clock and the
process number, modulo 104,729 (`cluster_seedgen` in Caffe's src/caffe/common.cpp): so few that all of them
can be tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FALLBACK_SEEDS = 104_729
_SEEDS_AT_ONCE = 512


def caffe_shuffle(count: int, seed: int) -> np.ndarray:
    """The order in which `convert_imageset --shuffle` writes ``count`` rows: row ``order[k]`` is k-th."""
    return _shuffled(np.arange(count), [seed])[:, 0]


@dataclass(frozen=True)
class SeedScore:
    """How well one seed explains a log: correlation, and the counts' total absolute difference."""

    seed: int
    correlation: float
    difference: int


@dataclass(frozen=True)
class SeedSearch:
    """The seeds tried, best first (a few of them), and the result that chance would give.

    ``p_value`` is that of the best one-sided correlation times the number of seeds tried, at most 1: how
    often a log unrelated to all of these orders would have as good a best.
    """

    tried: int
    best: tuple[SeedScore, ...]
    p_value: float

    @property
    def found(self) -> int | None:
        """The seed that is significantly best (p below 0.01), else None."""
        return self.best[0].seed if self.best and self.p_value < 0.01 else None


def search_seed(
    per_row: np.ndarray,
    counts: Sequence[int],
    batch_size: int,
    seeds: Iterable[int] = range(FALLBACK_SEEDS),
    keep: int = 5,
) -> SeedSearch:
    """Try every seed's order of the list on the log's per-batch ``counts``.

    ``per_row`` (N,) holds a 0 or 1 for each row of the list in the order released: whether our run got it
    right, or, without weights, its label: a net that finds one class easier than the other
    scores higher in batches with more of it. 20,000 rows take about three minutes for all seeds on one core.

    Raises ValueError if the list is shorter than the batches, or ``counts`` or ``per_row`` do not vary.
    """
    per_row, target = np.asarray(per_row, np.uint8), np.asarray(counts, np.float64)
    read = len(target) * batch_size
    if len(per_row) < read:
        raise ValueError(f"{len(per_row)} rows for {len(target)} batches of {batch_size}")
    if len(target) < 3 or np.ptp(target) == 0 or np.ptp(per_row) == 0:
        raise ValueError("rows and counts must vary, over three batches or more")
    scores: list[SeedScore] = []
    tried = 0
    for group in _groups(seeds):
        rows = _shuffled(per_row, group)[:read]
        sums = rows.reshape(len(target), batch_size, len(group)).sum(axis=1, dtype=np.int64)
        correlations = _correlations(sums, target)
        differences = np.abs(sums - target[:, None]).sum(axis=0)
        tried += len(group)
        scores += [
            SeedScore(group[k], float(correlations[k]), int(differences[k]))
            for k in np.argsort(-correlations)[:keep]
        ]
        scores = sorted(scores, key=lambda score: (-score.correlation, score.seed))[:keep]
    return SeedSearch(tried, tuple(scores), _family_p(scores[0].correlation, len(target), tried))


def _groups(seeds: Iterable[int]) -> Iterator[list[int]]:
    everything = list(seeds)
    for start in range(0, len(everything), _SEEDS_AT_ONCE):
        yield everything[start : start + _SEEDS_AT_ONCE]


def _correlations(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ``target`` (B,) with each column of (B, S); 0 for a constant column."""
    columns = columns - columns.mean(axis=0)
    target = target - target.mean()
    norms = np.linalg.norm(columns, axis=0)
    found: np.ndarray = (target @ columns) / np.where(norms > 0, norms * np.linalg.norm(target), np.inf)
    return found


def _family_p(correlation: float, batches: int, tried: int) -> float:
    from scipy.stats import t

    rest = max(1 - correlation**2, 1e-300)
    single = float(t.sf(correlation * np.sqrt((batches - 2) / rest), batches - 2))
    return min(1.0, tried * single)


def _shuffled(values: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Fisher–Yates from the last row down, for several seeds side by side: (N,) to (N, S)."""
    count = len(values)
    rows = np.repeat(values[:, None], len(seeds), axis=1)
    partners = np.stack([_partners(count, seed) for seed in seeds], axis=1)
    column = np.arange(len(seeds))
    for last, partner in zip(range(count - 1, 0, -1), partners, strict=True):
        moved = rows[last].copy()
        rows[last] = rows[partner, column]
        rows[partner, column] = moved
    return rows


def _partners(count: int, seed: int) -> np.ndarray:
    """For row N − 1 down to 1, the row it is exchanged with: boost's uniform_int over an mt19937.

    A 32-bit draw is divided by floor(2³² / (row + 1)); a quotient beyond the row is drawn again.
    """
    limit = np.arange(count - 1, 0, -1, dtype=np.int64)
    bucket = 2**32 // (limit + 1)
    # RandomState seeds as mt19937 does; random_raw is its plain sequence of 32-bit numbers.
    generator = np.random.RandomState(seed)._bit_generator
    draws = generator.random_raw(len(limit)).astype(np.int64)
    while len(beyond := np.flatnonzero(draws // bucket > limit)):
        draws = np.append(np.delete(draws, beyond[0]), np.int64(generator.random_raw()))
    return draws // bucket
