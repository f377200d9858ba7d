"""An AVA.txt of generated votes, with the published numbers of both classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilgnet_repro.aesthetics.ava import AvaTable

LOW, HIGH = 74_673, 180_856  # images at or below, and above, a mean of 5, as published


def synthetic_votes(random: np.random.Generator, low: int, high: int) -> np.ndarray:
    """Vote counts of which the first ``low`` have a mean of at most 5 and the others one above it."""
    votes = random.poisson([1, 2, 5, 12, 22, 20, 12, 6, 3, 1], (low + high, 10)).astype(np.int32)
    above = (votes * np.arange(1, 11)).sum(1) > 5 * votes.sum(1)
    wanted = np.arange(low + high) >= low
    votes[above & ~wanted, 1] += 200
    votes[~above & wanted, 8] += 200
    return votes


def table_of(low: int, high: int, seed: int = 3) -> AvaTable:
    random = np.random.default_rng(seed)
    order = random.permutation(low + high)
    votes = synthetic_votes(random, low, high)[order]
    ids = random.permutation(4 * (low + high))[: low + high] + 1
    tags = random.integers(0, 67, (low + high, 2), dtype=np.int32)
    return AvaTable("AVA.txt", ids, votes, tags, random.integers(1, 1398, low + high, dtype=np.int32))


def write_ava(table: AvaTable, path: Path) -> Path:
    columns = [np.arange(1, len(table) + 1), table.ids, table.votes, table.tags, table.challenges]
    rows = np.column_stack(columns).tolist()
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    return path
