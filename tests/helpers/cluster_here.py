"""Work of a cluster's workers done in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ilgnet_repro.reading.cluster import Columns, Work


def in_this_process(
    start: Callable[[int], Work], items: Sequence[Any], *, cluster: str, batch: int = 16, threads: int = 1
) -> Iterator[dict[str, Any]]:
    """What `rows_on_cluster` does, without Ray."""
    work = start(threads)
    for first in range(0, len(items), batch):
        found: Columns = work(items[first : first + batch])
        yield from (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))
