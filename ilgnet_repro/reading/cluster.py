"""Work on items spread over a cluster by Ray Data: the results come back in order, whatever machine made them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..errors import DataError, IlgnetError, excerpt, reason_of

if TYPE_CHECKING:
    import pyarrow

CLUSTER = "ray"
_LARGEST_BLOCK = 256  # items of one task: what a worker that is lost does again
_TASKS = 8  # per worker, so that the slow ones do fewer
# Of a worker that was lost with its machine; Ray itself would start one that crashes for ever.
_RESTARTS: Any = {"max_restarts": 3, "max_task_retries": 3}
_FAILURE = "failure of a worker"  # a column
Columns = Mapping[str, Sequence[Any]]  # bytes, integers or texts, one per item
Work = Callable[[Sequence[Any]], Columns]


def check_cluster(name: str) -> None:
    """Raise DataError unless the cluster is known and its package is installed."""
    if name != CLUSTER:
        raise DataError(f"cluster={name!r}: is not supported; use ray", option="cluster")
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise DataError(
            f"RAY_ADDRESS={address}: Ray Data does not run over Ray's client; run on a machine of the cluster with "
            "RAY_ADDRESS=auto, or HOST:PORT of its head"
        )
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"cluster={name!r}: ray is not installed; pip install 'ilgnet_repro[ray]'", option="cluster"
        ) from error


def rows_on_cluster(
    start: Callable[[int], Work],
    items: Sequence[int] | Sequence[bytes],
    *,
    cluster: str = CLUSTER,
    batch: int = 16,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield the row of results of each item, in order.

    ``start`` is called once in each worker, with the number of processors it has: ``threads``, or what the largest machine
    of the cluster has.  What it returns is called with up to ``batch`` items at a time.  Every machine has this package, and
    sees the same files by the same paths: workers begin in the folder of the caller.  The cluster is the one that the
    process is connected to, else that of $RAY_ADDRESS, else one of this machine, which
    ends with the rows.  What fails is a DataError: in a worker with the line that it would have here.
    """
    check_cluster(cluster)
    if not len(items):
        return
    import pyarrow
    import ray

    with connected(cluster), _in_order(), _errors(cluster):
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        threads = max(1, min(threads, max(nodes, default=1)))
        workers = max(1, min(sum(count // threads for count in nodes), -(-len(items) // batch)))
        size = min(max(-(-len(items) // (workers * _TASKS * batch)), 1) * batch, max(_LARGEST_BLOCK, batch))
        tables = [
            pyarrow.table({"item": list(items[first : first + size])}) for first in range(0, len(items), size)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Ray's next versions take other arguments: setup.cfg has the range
            rows = ray.data.from_arrow(tables).map_batches(
                _Worker, fn_constructor_args=(start, threads, os.getcwd(), cluster), batch_size=batch,
                batch_format="pyarrow", zero_copy_batch=True, concurrency=workers, num_cpus=threads,
                **_RESTARTS,
            )  # fmt: skip
        for row in rows.iter_rows():
            if row.get(_FAILURE):
                raise DataError(row[_FAILURE])
            yield row


class _Worker:
    """One worker's process.  What fails is a row of its own: Ray would try again, and report where its code failed."""

    def __init__(self, start: Callable[[int], Work], threads: int, folder: str, cluster: str) -> None:
        self._cluster, self._failure = cluster, ""
        try:
            os.chdir(folder)
        except OSError as error:
            why = error.strerror
            self._failure = (
                f"{folder}: a machine of the cluster cannot use this folder ({why}); work in a shared one"
            )
            return
        try:
            self._work = start(threads)
        except Exception as error:
            self._failure = self._line(error)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        if not self._failure:
            try:
                return pyarrow.table(dict(self._work(table["item"].to_pylist())))
            except Exception as error:
                self._failure = self._line(error)
        return pyarrow.table({_FAILURE: [self._failure]})

    def _line(self, error: Exception) -> str:
        """What a run on one machine would print."""
        return (
            str(error)
            if isinstance(error, IlgnetError)
            else f"cluster={self._cluster!r}: failed ({reason_of(error)})"
        )


@contextmanager
def connected(cluster: str) -> Iterator[None]:
    """Connect to the cluster, unless the process is connected already: calls of `rows_on_cluster` within share it."""
    import ray

    if ray.is_initialized():
        yield
        return
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    address = os.environ.get("RAY_ADDRESS")
    # Ray's C++ parts would write to stderr, and what happens in the cluster would be printed on stdout, between rows.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    worker: Any = ray._private.worker
    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        with _stderr_discarded():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
            )
    except Exception as error:  # Ray raises plain ones too, as where it does not start in time
        where = f" at {address}" if address else ""
        raise DataError(f"cluster={cluster!r}: no Ray{where} ({_last_line(error)}); check it with `ray status`, "
                        "and that RAY_AUTH_MODE is the same everywhere",
                        option="cluster") from error  # fmt: skip
    finally:
        if handler is not None:  # Ray sets its own
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        with suppress(Exception):  # the cluster may be gone
            ray.shutdown()
        worker._worker_logs_enabled = before


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what is written to the descriptor: Ray's C++ parts report there what they read from the environment."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextmanager
def _in_order() -> Iterator[None]:
    """Keep the order of rows, without bars and lines of Ray's."""
    import ray

    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        logger.setLevel(level)


@contextmanager
def _errors(cluster: str) -> Iterator[None]:
    """Raise what Ray raises as a DataError of one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise DataError(f"cluster={cluster!r}: failed ({_last_line(error)})", option="cluster") from error


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return excerpt(lines[-1] if lines else type(error).__name__, 300)
