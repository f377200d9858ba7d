"""Several processes give the run of one; a process killed without warning resumes to the same weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from killing import PATIENCE, kill_midway, wait_until
from train_cases import PIPELINE, SOLVERS, read_log

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.cli.main import main
from ilgnet_repro.train.curves import read_table

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
OPTIONS = ["--solver", "solver.prototxt", "--out", "log"]
TRAIN = [str(ROOT / "tools" / "train.py"), *OPTIONS]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder like a user's, with the tiny net and its data."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny.prototxt", "raw64_lmdb", "raw64_mean.binaryproto", "tiny_init.caffemodel"):
        (tmp_path / name).symlink_to(PIPELINE / name)
    return tmp_path


def write_solver(folder: Path, name: str, **fields: object) -> None:
    text = (SOLVERS / f"{name}.prototxt").read_text().replace(f"solvers/{name}", "run")
    for field, value in fields.items():
        text = (
            "\n".join(line for line in text.splitlines() if not line.startswith(f"{field}:"))
            + f"\n{field}: {value}\n"
        )
    (folder / "solver.prototxt").write_text(text)


def command(folder: Path, *arguments: str, processes: int = 1) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr",
            "127.0.0.1",
            f"--nproc-per-node={processes}",
        ]
    return [*start, *TRAIN, *arguments]


def train(*arguments: str) -> None:
    """A run that nothing kills, in this process: a start takes longer than its steps."""
    assert main(["train", *OPTIONS, *arguments]) == 0


def remove_run(folder: Path) -> None:
    for file in folder.glob("run_*"):
        file.unlink()
    shutil.rmtree(folder / "log", ignore_errors=True)


def weights(path: Path) -> list[np.ndarray]:
    return [blob.array() for layer in open_caffemodel(path).layers for blob in layer.blobs]


def test_two_processes_repeat_the_recorded_run(workplace):
    write_solver(workplace, "sgd_iter_size")
    arguments = command(workplace, "--weights", "tiny_init.caffemodel", processes=2)
    subprocess.run(
        arguments, cwd=workplace, env=ENVIRONMENT, check=True, capture_output=True, timeout=PATIENCE
    )
    caffe = read_log(SOLVERS / "sgd_iter_size.log")
    _, rows = read_table(workplace / "log" / "train.csv")
    assert [int(row[0]) for row in rows] == list(range(20))
    np.testing.assert_allclose([row[3] for row in rows], list(caffe.losses.values()), rtol=1e-4)
    _, tests = read_table(workplace / "log" / "test.csv")
    np.testing.assert_allclose(
        [row[1:] for row in tests], [[v for _, v in t] for t in caffe.tests.values()], rtol=1e-4
    )
    ours = weights(workplace / "run_iter_20.caffemodel")
    for mine, theirs in zip(ours, weights(SOLVERS / "sgd_iter_size_iter_20.caffemodel"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * abs(theirs).max())


def test_a_killed_run_resumes_to_the_same_weights(workplace):
    write_solver(workplace, "adam", max_iter=60, snapshot=4)
    arguments = ["--weights", "tiny_init.caffemodel", "--keep", "3"]
    train(*arguments)
    whole = weights(workplace / "run_iter_60.caffemodel")
    assert len(list(workplace.glob("run_iter_*.solverstate"))) == 3
    remove_run(workplace)

    kill_midway(
        command(workplace, *arguments),
        is_midway=lambda: any(workplace.glob("run_iter_*.solverstate")),
        start_over=lambda: remove_run(workplace),
        cwd=workplace,
        env=ENVIRONMENT,
    )
    assert not (workplace / "run_iter_60.caffemodel").exists(), "killed in the middle"

    train("--resume", "latest", "--keep", "3")
    for mine, theirs in zip(weights(workplace / "run_iter_60.caffemodel"), whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    _, rows = read_table(workplace / "log" / "train.csv")
    assert [int(row[0]) for row in rows] == list(range(60)), "the tables have no gap and no row twice"


def test_torchrun_restarts_from_the_last_snapshot(workplace):
    """One of two processes is killed; torchrun starts both again, and the weights are those of an uninterrupted run."""
    write_solver(workplace, "adagrad", max_iter=90, snapshot=6, test_interval=0, test_iter=0)
    text = (workplace / "solver.prototxt").read_text()
    (workplace / "solver.prototxt").write_text(text.replace("test_iter: 0\n", "").replace("test_iter: 0", ""))
    arguments = ["--weights", "tiny_init.caffemodel", "--resume", "latest"]
    train(*arguments)
    whole = weights(workplace / "run_iter_90.caffemodel")
    remove_run(workplace)

    start = command(workplace, *arguments, processes=2)
    start.insert(start.index("--standalone"), "--max-restarts=2")
    with (workplace / "out").open("w") as out:
        running = subprocess.Popen(start, cwd=workplace, env=ENVIRONMENT, stdout=out, stderr=out)
        wait_until(lambda: any(workplace.glob("run_iter_*.solverstate")) or running.poll() is not None)
        victim = next(
            child for child in psutil.Process(running.pid).children() if "train.py" in str(child.cmdline())
        )
        victim.kill()
        assert running.wait(timeout=PATIENCE) == 0
    assert "restoring history" in (workplace / "out").read_text()
    for mine, theirs in zip(weights(workplace / "run_iter_90.caffemodel"), whole, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * abs(theirs).max())
    _, rows = read_table(workplace / "log" / "train.csv")
    assert [int(row[0]) for row in rows] == list(range(90))
