"""A small, seeded part of the fuzzing that fuzz_formats.py does by the hundred thousand."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_formats


def test_seeds_are_valid(tmp_path):
    for target in fuzz_formats.FORMATS:
        for number, data in enumerate(fuzz_formats.seeds()[target.kind]):
            refused, problem = fuzz_formats.attempt(target, data, tmp_path, number)
            assert not refused, f"{target.name}, seed {number}"
            assert problem is None


def test_each_stage_takes_some_seeds(tmp_path):
    for target in fuzz_formats.STAGES:
        outcomes = [
            fuzz_formats.attempt(target, data, tmp_path, number)
            for number, data in enumerate(fuzz_formats.seeds()[target.kind])
        ]
        assert all(problem is None for _, problem in outcomes)
        assert any(not refused for refused, _ in outcomes), target.name


def test_damaged_files_raise_nothing_but_our_errors():
    tracemalloc.start()
    try:
        ran, problems = fuzz_formats.run(cases=2_000, seed=3, seconds=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problems == []
    assert peak < 64 << 20
    outcomes = {outcome for _, outcome in ran}
    assert outcomes == {"read", "refused"}  # the damage is sometimes read and sometimes refused


def test_a_wrong_exception_is_noticed(tmp_path):
    def broken(path: Path, out: Path) -> None:
        raise KeyError("x")

    refused, problem = fuzz_formats.attempt(fuzz_formats.Target("broken", "net", broken), b"", tmp_path, 0)
    assert not refused and "KeyError" in problem
