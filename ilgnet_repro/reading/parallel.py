"""Work shared out to threads, its results taken in order and never far ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, chunk: int = 8
) -> Iterator[Result]:
    """Like ``map``, on threads (one a core if not said): OpenCV and LMDB work outside the interpreter's lock.

    At most ``4 * workers`` chunks are under way, so memory does not grow with the number of items.
    An exception of ``function`` comes out at its chunk's place.
    """
    workers = workers if workers and workers > 0 else cores()
    if workers == 1:
        yield from map(function, items)
        return
    source = iter(items)
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[Result]]] = deque()
    try:
        while True:
            while len(waiting) < 4 * workers and (block := list(islice(source, chunk))):
                waiting.append(pool.submit(_each, function, block))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _each(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]
