"""Settings of the whole process: `tune_process()` for speed; everything else is restored when the call returns."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from . import opencv
from .errors import IlgnetError

# malloc.h of the GNU C library: the size from which a block gets its own mapping, and how much free memory
# the heap keeps at its end.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD = 256 << 20
OLD_MMAP_THRESHOLD = 32 << 20  # the largest that older versions accept
TRIM_THRESHOLD = (2 << 30) - 1  # the largest that the call accepts; a batch of 48 needs more than half of it
OVERRIDE_ENV_VARS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# mman.h of Linux: allow huge pages for a range of memory, and move it to them now (from Linux 6.1 on).
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
HUGE_PAGE = 2 << 20
SMALLEST_RANGE = 32 << 20  # bytes; includes weights, and excludes the stack of a thread started meanwhile

_settings = {"huge_pages": False}


def tune_process() -> None:
    """Configure the whole process for speed; every command that runs nets or decodes images calls this.

    The process keeps up to 2 GiB of freed memory (see `tune_allocator`), fast nets created later use huge pages if
    the kernel supports them, and OpenCV starts no threads besides those of this package and logs errors only.
    Nothing else in the package changes the process.
    """
    tune_allocator()
    _settings["huge_pages"] = True
    with suppress(IlgnetError):  # without OpenCV, the first image says so
        opencv.use_one_thread()


@cache
def tune_allocator() -> bool:
    """Make the C library keep up to 2 GiB of freed memory; return whether it does.

    Each blob of a pass is allocated and freed again.  By default the GNU C library returns such blocks to the
    kernel, which clears them page by page when they are allocated next: a quarter of the time of GoogLeNet's batch
    of 16, nearly half of that of 48.  The process never keeps more than its peak allocation. The environment
    variables ``OVERRIDE_ENV_VARS``, or another allocator, take precedence.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OVERRIDE_ENV_VARS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    is_set = mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD) or mallopt(M_MMAP_THRESHOLD, OLD_MMAP_THRESHOLD)
    return bool(is_set) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD))


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move what the block allocates to huge pages, and free memory to the kernel; only after `tune_process()`."""
    if not _settings["huge_pages"]:
        yield
        return
    before = private_pages()
    yield
    trim_heap()
    use_huge_pages(before)


@contextmanager
def environment(name: str, value: str | None = None) -> Iterator[None]:
    """Set an environment variable within the block, and restore it afterwards, even if the block changed it.

    For libraries that are configured by an environment variable only, or leave one set.
    """
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def trim_heap() -> None:
    """Return free memory to the kernel; for use after work that needed much more than what follows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def private_pages() -> set[int]:
    """Return the numbers of the huge-page ranges in this process's private memory; empty except on Linux."""
    table = Path("/proc/self/maps")
    return _pages_of(table.read_text().splitlines()) if table.is_file() else set()


@cache
def openvino_core() -> Any:
    """Return the process's only ``openvino.Core``.  Raises ImportError where OpenVINO is not installed.

    Its CPU plugin gives the thread that loads it an alternate signal stack, and puts back what it found there when
    its core is dropped. Of two cores dropped in the order in which they were made, the second puts back the stack
    that the first one freed, and the next signal (SIGCHLD of a DataLoader's worker) ends the process.
    """
    return import_module("openvino").Core()


def use_huge_pages(before: set[int]) -> int:
    """Move memory allocated since ``before`` (from `private_pages`) to pages of 2 MiB; return the bytes moved.

    Weights that are read once per image are spread over 72,000 pages of 4 KiB, more than the TLB
    has entries for: large float16 dense layers are read a fifth faster from huge pages.  Only ranges of at least
    ``SMALLEST_RANGE`` are moved.  If the kernel has no huge pages, or none left, nothing is moved.
    """
    ranges = [one for one in _ranges(private_pages() - before) if len(one) * HUGE_PAGE >= SMALLEST_RANGE]
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if ranges else None
    if madvise is None:
        return 0
    moved = 0
    for pages in ranges:
        # Page by page: in a longer range, an untouched page would stop the call.
        for start in (page * HUGE_PAGE for page in pages):
            where = (ctypes.c_void_p(start), ctypes.c_size_t(HUGE_PAGE))
            if madvise(*where, MADV_HUGEPAGE) == 0 and madvise(*where, MADV_COLLAPSE) == 0:
                moved += HUGE_PAGE
    return moved


def _pages_of(lines: Iterable[str]) -> set[int]:
    """Return the complete huge-page ranges in private anonymous memory, from the lines of /proc/self/maps."""
    pages: set[int] = set()
    for line in lines:
        addresses, rights, _, _, inode, *name = line.split(None, 5)
        if rights == "rw-p" and inode == "0" and (not name or name[0].strip() == "[heap]"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            pages.update(range(-(-start // HUGE_PAGE), end // HUGE_PAGE))
    return pages


def _ranges(pages: set[int]) -> Iterator[range]:
    """Yield every contiguous range of page numbers."""
    for first in sorted(pages):
        if first - 1 not in pages:
            last = first
            while last + 1 in pages:
                last += 1
            yield range(first, last + 1)
