"""Scores by a cluster: each worker loads the net once and scores whole batches; the records are those of a local run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .errors import DataError
from .process import tune_process
from .reading.cluster import CLUSTER, Columns, Work, rows_on_cluster
from .reading.parallel import ordered_map
from .reading.photos import read_file
from .score_cache import ScoreCache, Stamp, file_stamp
from .scored import Score
from .scoring import Prepared, Scorer


@dataclass(frozen=True)
class Spread:
    """How images are scored: what makes a worker's `Scorer`, called in each worker, its batch, and the cluster."""

    make: Callable[[], Scorer]
    batch: int
    cluster: str = CLUSTER

    def scored(
        self, paths: Sequence[str], numbers: Sequence[int]
    ) -> Iterator[tuple[Score, str, Stamp | None]]:
        """Yield each image's record, in order, with the digest of its file and its stamp before it was read.

        ``numbers`` are those that the images have in a local run (`Scorer.score_read`).
        """
        items = [b"%d " % number + os.fsencode(path) for number, path in zip(numbers, paths, strict=True)]
        rows = rows_on_cluster(
            _Start(self.make), items, cluster=self.cluster, batch=self.batch, threads=torch.get_num_threads()
        )
        for path, row in zip(paths, rows, strict=True):
            yield Score.from_json(row["record"], path), row["digest"], _stamp_of(row["stamp"])


def score_on_cluster(paths: Sequence[str], spread: Spread) -> Iterator[Score]:
    """Yield the record of each image, in order."""
    for score, _, _ in spread.scored(paths, range(len(paths))):
        yield score


def score_cached_on_cluster(
    paths: Iterable[str], cache: ScoreCache, model: str, spread: Spread
) -> Iterator[Score]:
    """Yield the record of each image in order, a kept one where there is one; the workers score the others."""
    listed: list[tuple[str, str | None]] = []
    for path in paths:
        digest = cache.digest(path)
        known = digest is not None and cache.score(model, digest, path) is not None
        listed.append((path, digest if known else None))
    numbers = [number for number, (_, digest) in enumerate(listed) if digest is None]
    others = spread.scored([listed[number][0] for number in numbers], numbers)
    for path, digest in listed:
        kept = None if digest is None else cache.score(model, digest, path)
        if kept is None:
            kept, found, stamp = next(others)
            if found:
                cache.keep_digest(path, found, stamp)
                cache.keep(model, found, kept)
        yield kept


def _stamp_of(text: str) -> Stamp | None:
    if not text:
        return None
    size, time, inode = map(int, text.split())
    return size, time, inode


@dataclass(frozen=True)
class _Start:
    """Starts a worker: its net is loaded here."""

    make: Callable[[], Scorer]

    def __call__(self, threads: int) -> Work:
        tune_process()
        torch.set_num_threads(threads)
        return _Scoring(self.make(), threads)


@dataclass(frozen=True)
class _Scoring:
    scorer: Scorer
    threads: int

    def __call__(self, items: Sequence[bytes]) -> Columns:
        numbers, paths = zip(*(item.split(b" ", 1) for item in items), strict=True)
        digests: list[str] = []
        stamps: list[str] = []

        def read() -> Iterator[Prepared | Score]:
            for found, digest, stamp in ordered_map(self._read, paths, self.threads, 1):
                digests.append(digest)
                stamps.append("" if stamp is None else " ".join(map(str, stamp)))
                yield found

        records = [score.to_json() for score in self.scorer.score_read(read(), map(int, numbers))]
        return {"record": records, "digest": digests, "stamp": stamps}

    def _read(self, name: bytes) -> tuple[Prepared | Score, str, Stamp | None]:
        path = os.fsdecode(name)
        stamp = file_stamp(path)
        try:
            data = read_file(path)
        except DataError as error:
            return Score(path, {}, error=str(error)), "", None
        return self.scorer.read_in_turn(path, path, data), hashlib.sha256(data).hexdigest(), stamp
