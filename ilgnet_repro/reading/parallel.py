"""An ordered parallel map on threads with bounded read-ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, chunk: int = 8
) -> Generator[Result]:
    """Like ``map``, on threads (default: one per core): OpenCV and LMDB release the interpreter lock.

    At most ``4 * workers`` chunks are in flight, so memory does not grow with the number of items.
    An exception of ``function`` is raised at its item's place in the order.
    """
    workers = workers if workers and workers > 0 else cores()
    if workers == 1:
        yield from map(function, items)
        return
    source = iter(items)
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[tuple[list[Result], Exception | None]]] = deque()
    try:
        while True:
            while len(pending) < 4 * workers and (block := list(islice(source, chunk))):
                pending.append(pool.submit(_map_chunk, function, block))
            if not pending:
                return
            results, error = pending.popleft().result()
            yield from results
            if error is not None:
                raise error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _map_chunk(
    function: Callable[[Item], Result], items: list[Item]
) -> tuple[list[Result], Exception | None]:
    """The results of the items up to the first that raises, and its exception."""
    results: list[Result] = []
    try:
        results.extend(map(function, items))
    except Exception as error:
        return results, error
    return results, None
