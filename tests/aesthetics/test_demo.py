"""``ilgnet demo`` with a small net: every step runs, and every page says that the weights are random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilgnet_repro.cli.main import main


def test_the_small_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--small", "--out", "demo"]) == 0
    printed = capsys.readouterr().out
    steps = [line.split()[2] for line in printed.splitlines() if line.startswith("$ ilgnet")]
    assert steps == ["convert", "score", "lmdb", "mean", "test", "test", "report"]
    made = {path.name for path in Path("demo").iterdir()}
    assert {
        "small_random.safetensors",
        "lmdb",
        "mean.binaryproto",
        "published",
        "full",
        "report.html",
    } <= made
    counts = [
        len(json.loads(Path("demo", name, "run.json").read_text())["pictures"]["names"])
        for name in ("published", "full")
    ]
    assert counts == [40, 60]
    page = Path("demo/report.html").read_text()
    assert page.count("Seeded random weights") == page.count("<section>") >= 4
    assert printed.count("Seeded random weights") == 3  # both tests and the report
    assert printed.count("RANDOM weights") == 4  # at both ends, of the conversion and of the scores
    # It can be run again, and draws the same.
    first = json.loads(Path("demo/report.json").read_text())["metrics"]
    assert main(["demo", "--small", "--out", "demo"]) == 0
    assert json.loads(Path("demo/report.json").read_text())["metrics"] == first
