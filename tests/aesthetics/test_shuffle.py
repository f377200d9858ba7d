"""Caffe's shuffle against orders recorded from boost 1.74, and the search for a seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ilgnet_repro.aesthetics.caffe_shuffle import FALLBACK_SEEDS, caffe_shuffle, search_seed

# Recorded from boost::mt19937 and boost::uniform_int<ptrdiff_t>, row n − 1 down to 1, in C++.
SHORT = {
    "one row": (5489, 1, "0"),
    "seed 0": (0, 7, "0 2 1 4 5 6 3"),
    "seed 1164": (1164, 10, "1 3 9 5 7 2 4 6 8 0"),
    "largest seed": (104_728, 12, "8 9 7 6 10 5 4 11 3 0 1 2"),
}
LONG = {
    "AVA1 rows": (1164, 20_000, "94052d315b41cd7cbeab9f0993f775065dcbf0cfb8b3f0686fc9d72471e3800c"),
    "AVA2 rows": (3, 25_553, "a9621b4663754b2ac01fedcfb734685e6f4877728312485f88563118670d7539"),
    "a draw is refused": (21, 20_000, "17049c653e8a282d8da60dda25a2453bfe42265dc6aa4efb059020e1900ed994"),
    "another refused": (38, 20_000, "1bea8978699e0b8c8ef50e2cb2bc71e02fc2940f0b5c62909d9988b3cdb68b2c"),
}


@pytest.mark.parametrize("seed, count, order", SHORT.values(), ids=SHORT)
def test_order_is_boosts(seed: int, count: int, order: str) -> None:
    assert caffe_shuffle(count, seed).tolist() == [int(row) for row in order.split()]


@pytest.mark.parametrize("seed, count, digest", LONG.values(), ids=LONG)
def test_long_order_is_boosts(seed: int, count: int, digest: str) -> None:
    text = " ".join(map(str, caffe_shuffle(count, seed).tolist()))
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def _world(seed: int, errors: int) -> tuple[np.ndarray, list[int]]:
    """A list of 640 right and wrong answers, and the counts of 20 batches of 16 in a shuffled order."""
    rng = np.random.default_rng(5)
    correct = rng.random(640) < 0.8
    read = correct[caffe_shuffle(640, seed)].copy()
    flipped = rng.choice(320, errors, replace=False)
    read[flipped] = ~read[flipped]
    return correct, read[:320].reshape(20, 16).sum(axis=1).tolist()


@pytest.mark.parametrize("errors", [0, 6], ids=["the same answers", "six answers differ"])
def test_search_finds_the_seed(errors: int) -> None:
    correct, counts = _world(1234, errors)
    search = search_seed(correct, counts, 16, range(1000, 1700))
    assert search.found == 1234 and search.tried == 700
    assert search.best[0].difference <= errors
    assert search.best[0].correlation > search.best[1].correlation


def test_search_finds_no_seed_in_random_order() -> None:
    correct, counts = _world(9999, 0)
    search = search_seed(correct, counts, 16, range(1000, 1700))
    assert search.found is None and search.p_value > 0.01


@pytest.mark.parametrize(
    "rows, counts, batch",
    [
        ([0, 1] * 4, [1, 2, 1], 4),
        ([1] * 12, [1, 2, 1], 4),
        ([0, 1] * 6, [2, 2, 2], 4),
        ([0, 1] * 6, [1, 2], 4),
    ],
    ids=["list too short", "rows all equal", "counts all equal", "two batches"],
)
def test_search_refuses(rows: list[int], counts: list[int], batch: int) -> None:
    with pytest.raises(ValueError, match=r"rows"):
        search_seed(np.array(rows), counts, batch, range(10))


def test_number_of_fallback_seeds() -> None:
    assert FALLBACK_SEEDS == 104_729
