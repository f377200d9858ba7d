"""What the C library and the kernel are told of a net's memory: freed blobs stay, weights lie on large pages."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

# malloc.h of the GNU C library: the size from which a block is mapped by itself, and how much free memory
# at the heap's end is handed back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM = 256 << 20
MAPPED_FROM_AT_MOST = 32 << 20  # in older versions
KEPT = (2 << 30) - 1  # the most that the call can say; a batch of 48 needs more than half of it
STATED_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# mman.h of Linux: let a stretch of memory have large pages, and move it there now (from Linux 6.1 on).
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
LARGE_PAGE = 2 << 20
WORTH_MOVING = 32 << 20  # bytes; weights, not the stack of a thread that was started in between


@cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep up to 2 GiB of freed memory; return whether it could be told.

    Each blob of a pass is taken and freed again.  By default the GNU C library hands such blocks back to the
    kernel, which clears them page by page when they are taken next: a quarter of the time of ILGNet's batch
    of 16, nearly half of that of 48.  It holds for the whole process, and never keeps more than the process
    had taken at its peak.  Who states one of ``STATED_BY_USER`` in the environment, or puts another allocator
    in the library's place, keeps that.
    """
    if sys.platform != "linux" or any(name in os.environ for name in STATED_BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    is_mapped_late = mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) or mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_AT_MOST)
    return bool(is_mapped_late) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))


def hand_back_freed_memory() -> None:
    """Give the kernel what is free now, as after work that took much more than what follows will."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def mapped_pages() -> set[int]:
    """Return the numbers of the large pages that this process has memory of its own for; none but on Linux."""
    table = Path("/proc/self/maps")
    return _pages_of(table.read_text().splitlines()) if table.is_file() else set()


def use_large_pages(before: set[int]) -> int:
    """Move to pages of 2 MiB what was taken since ``mapped_pages()`` gave ``before``; return the bytes moved.

    Weights that are read once a picture are spread over 72,000 pages of 4 KiB, more than a processor keeps
    addresses of: ILGNet's float16 heads are read a fifth faster from large ones.  Only what a stretch of
    ``WORTH_MOVING`` holds is moved.  A kernel that knows no large pages, or is out of them, leaves the
    memory as it is.
    """
    stretches = [run for run in _stretches(mapped_pages() - before) if len(run) * LARGE_PAGE >= WORTH_MOVING]
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if stretches else None
    if madvise is None:
        return 0
    moved = 0
    for stretch in stretches:
        # One by one: in a longer range, a page that holds nothing yet would end it.
        for start in (page * LARGE_PAGE for page in stretch):
            where = (ctypes.c_void_p(start), ctypes.c_size_t(LARGE_PAGE))
            if madvise(*where, MADV_HUGEPAGE) == 0 and madvise(*where, MADV_COLLAPSE) == 0:
                moved += LARGE_PAGE
    return moved


def _pages_of(lines: Iterable[str]) -> set[int]:
    """Which whole large pages lie in the private memory of no file, by the lines of /proc/self/maps."""
    pages: set[int] = set()
    for line in lines:
        addresses, rights, _, _, inode, *name = line.split(None, 5)
        if rights == "rw-p" and inode == "0" and (not name or name[0].strip() == "[heap]"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            pages.update(range(-(-start // LARGE_PAGE), end // LARGE_PAGE))
    return pages


def _stretches(pages: set[int]) -> Iterator[range]:
    """Every unbroken run of page numbers."""
    for first in sorted(pages):
        if first - 1 not in pages:
            last = first
            while last + 1 in pages:
                last += 1
            yield range(first, last + 1)
