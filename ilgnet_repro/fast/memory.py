"""Freed memory stays with the process, so that a net's blobs are not taken from the kernel anew each time."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# malloc.h of the GNU C library: the size from which a block is mapped by itself, and how much free memory
# at the heap's end is handed back.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM = 64 << 20
KEPT = 256 << 20


@cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep up to 256 MiB of freed memory; return whether it could be told.

    Each blob of a picture is taken and freed again.  By default the GNU C library hands such blocks back to
    the kernel, which clears them page by page when they are taken next: 2,000 page faults and 4 ms for one
    picture through ILGNet's convolutions.  It holds for the whole process.  Another C library, or an
    allocator put in its place, keeps its own ways.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
