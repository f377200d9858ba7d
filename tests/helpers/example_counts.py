"""How many examples hypothesis draws: a third of those that `make examples` draws."""

from __future__ import annotations

import os


def examples(count: int) -> int:
    """Return ``count`` with ALL_EXAMPLES=1, a third of it otherwise."""
    return count if os.environ.get("ALL_EXAMPLES") else count // 3
