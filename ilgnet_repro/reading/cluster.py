"""Work on numbered rows spread over a cluster by Ray Data: the results come back in order, whatever machine made them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import DataError, excerpt

CLUSTERS = ("ray",)
_BATCH = 16  # rows of one call
Columns = Mapping[str, Sequence[Any]]  # bytes, integers or texts, one per row


def check_cluster(name: str) -> None:
    """Raise DataError unless the cluster is known and its package is installed."""
    if name not in CLUSTERS:
        raise DataError(f"cluster={name!r}: is not supported; use {', '.join(CLUSTERS)}", option="cluster")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"cluster={name!r}: ray is not installed; pip install 'ilgnet_repro[ray]'", option="cluster"
        ) from error


def rows_on_cluster(
    make: Callable[[Sequence[int]], Columns], start: int, stop: int
) -> Iterator[dict[str, Any]]:
    """Yield the row that ``make`` returns for each number from ``start`` on, in order.

    ``make`` is called with up to 16 numbers on any machine of the cluster, which has this package and sees the same files by
    the same paths.  The cluster is the one that the process is connected to, else that of $RAY_ADDRESS, else one of this
    machine, which ends with the rows.  Raises DataError where it fails.
    """
    check_cluster("ray")
    import pyarrow
    import ray

    def batch(numbers: pyarrow.Table) -> pyarrow.Table:
        return pyarrow.table(dict(make([start + number for number in numbers["id"].to_pylist()])))

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
        )
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        rows = ray.data.range(stop - start).map_batches(
            batch, batch_size=_BATCH, batch_format="pyarrow", zero_copy_batch=True
        )
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        raise DataError(
            f"cluster='ray': failed ({excerpt(lines[-1] if lines else type(error).__name__, 300)})",
            option="cluster",
        ) from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if is_ours:
            ray.shutdown()
