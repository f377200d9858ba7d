"""docs/aesthetic_systems.md: its table is what was measured, and its numbers of parameters are those of the models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_model_costs as bench  # noqa: E402

COSTS = json.loads(bench.COSTS.read_text())


def test_the_page_shows_the_figures() -> None:
    assert bench.PAGE.read_text() == bench.page(COSTS)
    assert list(COSTS) == [case.title for case in bench.CASES]


@pytest.mark.parametrize("case", [case for case in bench.CASES if case.name], ids=lambda case: case.title)
def test_the_parameters_are_those_of_the_models(case: bench.Case) -> None:
    with torch.device("meta"):
        found = bench.parameters(case.make())
    assert found == {name: COSTS[case.title][name] for name in found}


def test_the_explained_difference_is_the_whole_one() -> None:
    """Inception v2: 10.16 million, as published, less what the page lists."""
    page = bench.PAGE.read_text()
    ours = COSTS["NIMA, Inception v2"]["parameters"]
    for number in (10_016, 10_016, 6_696, 90_176):
        assert f"{number:,}" in page
        ours -= number
    assert ours == 10_163_586 and f"{ours:,}" in page


def test_multiply_adds_are_those_of_the_papers() -> None:
    """MobileNet v1 569, v2 300 million with their 1,000 classes (1.0 and 1.3 million of them); VGG-16 15.5 billion."""
    adds = {title: one["multiply_adds"] / 1e6 for title, one in COSTS.items()}
    assert adds["NIMA, MobileNet v1"] + 1.0 == pytest.approx(569, abs=0.5)
    assert adds["NIMA, MobileNet v2"] + 1.3 == pytest.approx(301, abs=0.5)
    assert adds["NIMA, VGG-16"] / 1000 == pytest.approx(15.5, abs=0.05)
