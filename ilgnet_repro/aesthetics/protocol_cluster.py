"""A protocol's images read and scored by a cluster, whose workers load the net once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..errors import DataError
from ..process import tune_process
from ..reading.cluster import CLUSTER, Columns, Work, connected, rows_on_cluster
from ..reading.parallel import ordered_map
from ..runtime.runnable import Runnable
from .labelled_images import LabelledImages
from .protocol_run import Scorer, batch_scores, scorer
from .protocols import Preparation

_KIND = "<f4"  # of the probabilities that workers return


@dataclass(frozen=True)
class ProtocolCluster:
    """Scores rows on a cluster: ``load`` opens images and net in each worker.

    Sums are rounded differently in different places of a batch: which rows cannot be read is found first, so that each of
    the others has the place in a batch of ``batch`` that it has in a run on one machine.
    """

    open: Callable[[], LabelledImages]
    load: Callable[[], Runnable]
    preparation: Preparation
    batch: int
    cluster: str = CLUSTER

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[np.ndarray | None, str]]:
        """Yield both probabilities of each row, or None with the reason why its image cannot be read."""
        with connected(self.cluster):
            found = rows_on_cluster(self._start_reading, rows, cluster=self.cluster)
            faults = [os.fsdecode(row["fault"]) for row in found]
            good = [row for row, fault in zip(rows, faults, strict=True) if not fault]
            scored = rows_on_cluster(
                self._start, good, cluster=self.cluster, batch=self.batch, threads=torch.get_num_threads()
            )
            for fault in faults:
                yield (None, fault) if fault else (np.frombuffer(next(scored)["scores"], _KIND), "")

    def _start_reading(self, threads: int) -> Work:
        tune_process()
        return partial(self._read, self.open())

    def _read(self, images: LabelledImages, rows: Sequence[int]) -> Columns:
        prepare = self.preparation.one

        def fault_of(row: int) -> bytes:
            try:
                prepare(images.image(row))
            except (DataError, OSError) as error:
                return os.fsencode(str(error))
            return b""

        return {"fault": list(map(fault_of, rows))}

    def _start(self, threads: int) -> Work:
        tune_process()
        torch.set_num_threads(threads)
        return partial(self._score, self.open(), scorer(self.load()), threads)

    def _score(self, images: LabelledImages, score: Scorer, threads: int, rows: Sequence[int]) -> Columns:
        prepare = self.preparation.one
        values = list(ordered_map(lambda row: prepare(images.image(row)), rows, threads, 1))
        return {
            "scores": [both.astype(_KIND).tobytes() for both in batch_scores(score, self.preparation, values)]
        }
