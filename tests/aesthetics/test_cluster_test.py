"""`ilgnet test --cluster`: the files of a run here. Real workers take long to start: ``make cluster``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from cluster_here import in_this_process
from tiny_ava import TinySet

from ilgnet_repro.aesthetics import protocol_cluster
from ilgnet_repro.cli.main import main
from ilgnet_repro.reading import cluster


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.chdir(tmp_path)
    made = TinySet(tmp_path, 23)
    made.list()
    for name in (made.names[0], made.names[9]):
        (Path("images") / name).unlink()
    return made


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "check_cluster", lambda name: None)
    monkeypatch.setattr(protocol_cluster, "rows_on_cluster", in_this_process)
    monkeypatch.setattr(protocol_cluster, "connected", lambda name: nullcontext())


def command(tiny: TinySet, *more: str) -> list[str]:
    return [
        "test",
        "own",
        "--pictures",
        "images",
        "--list",
        "val.txt",
        *tiny.arguments(*more),
        "--batch-size",
        "5",
    ]


def result(folder: str) -> dict[str, Any]:
    """What is in a run's folder, but for the time it took and the folder's own name."""
    run = json.loads(Path(folder, "run.json").read_text())
    del run["elapsed"]
    others = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "run.json"}
    return {"run": json.loads(json.dumps(run).replace(folder, "OUT")), **others}


def check_same(tiny: TinySet, protocol: str) -> None:
    assert main(command(tiny, "--protocol", protocol, "--out", "local")) == 0
    assert main(command(tiny, "--protocol", protocol, "--out", "spread", "--cluster", "ray")) == 0
    assert result("spread") == result("local")


@pytest.mark.parametrize("protocol", ["full", "tencrop"])
def test_the_same_files(tiny: TinySet, without_ray, protocol: str) -> None:
    check_same(tiny, protocol)
    assert len(Path("spread/bad.txt").read_text().splitlines()) == 2


def test_of_a_database(tiny: TinySet, without_ray) -> None:
    database = str(tiny.store())
    for out, more in (("local", []), ("spread", ["--cluster", "ray"])):
        assert main(["test", "own", "--lmdb", database, *tiny.arguments("--out", out, *more)]) == 0
    assert result("spread") == result("local")


REFUSED = {
    "published": (["--protocol", "published"], "protocol published: reads some images only, one batch after the other; "
                  "leave out --cluster, or use full"),
    "a device": (["--device", "cuda"], "--device cuda: the workers of --cluster use the CPU; leave it out"),
    "a check": (["--check"], "--cluster: --check reads the images here; leave it out"),
}  # fmt: skip


@pytest.mark.parametrize(("more", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(tiny: TinySet, without_ray, capsys: pytest.CaptureFixture, more, message: str) -> None:
    assert main(command(tiny, "--cluster", "ray", *more)) == 1
    assert capsys.readouterr().err == f"ilgnet: {message}\n"


def test_two_workers_test_the_same(tiny: TinySet, two_workers) -> None:
    check_same(tiny, "full")
