"""Scores and tests on a cluster are those of this machine. Real workers take long to start: ``make cluster``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from cluster_here import in_this_process
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro import score_cluster
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError, WeightsError
from ilgnet_repro.reading import cluster
from ilgnet_repro.reading.cluster import Columns, Work, check_cluster, rows_on_cluster

NET = ["--weights", "two.caffemodel", "--prototxt", "two.prototxt", "--scale", "0.01", "--batch", "4"]
COUNT = 41
BAD = (0, 5, 6, 40)  # the first, the last, and two in a batch


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A net of two values, and images of which some are bad."""
    monkeypatch.chdir(tmp_path)
    text = SMALL_TEXT.replace("num_output: 5", "num_output: 2")
    write_weights(tmp_path / "two.caffemodel", text)
    Path("two.prototxt").write_text(text)
    Path("images").mkdir()
    rng = np.random.default_rng(6)
    for number in range(COUNT):
        name = f"images/{number:02}é.png"
        Path(name).write_bytes(cv2.imencode(".png", rng.integers(0, 256, (12, 11, 3), np.uint8))[1].tobytes())
        os.utime(name, (1, 1))
    for number in BAD[:-1]:
        Path(f"images/{number:02}é.png").write_bytes(b"no image")
    Path(f"images/{BAD[-1]:02}é.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "check_cluster", lambda name: None)
    monkeypatch.setattr(score_cluster, "rows_on_cluster", in_this_process)


def printed(capsys: pytest.CaptureFixture, *options: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["score", "images", *NET, *options])
    return (status, *capsys.readouterr())


FORMS = {"table": [], "csv": ["--csv"], "json": ["--json"], "best": ["--csv", "--sort"]}


def check_forms(capsys: pytest.CaptureFixture) -> None:
    for form in FORMS.values():
        assert printed(capsys, *form, "--cluster", "ray") == printed(capsys, *form)


def check_cache(capsys: pytest.CaptureFixture, first: list[str], second: list[str]) -> None:
    """A cache that the cluster began serves a run here, or the other way round."""
    plain = printed(capsys, "--csv")
    cache = ["--csv", "--cache", "scores.db"]
    assert printed(capsys, *cache, *first) == plain
    cv2.imwrite("images/99é.png", np.full((9, 9, 3), 77, np.uint8))
    more = printed(capsys, *cache, *second)
    assert more[1].startswith(plain[1]) and len(more[1].splitlines()) == COUNT + 2


def test_the_same_records(here, capsys, without_ray) -> None:
    check_forms(capsys)
    status, out, err = printed(capsys, "--csv", "--cluster", "ray")
    assert status == 1 and len(out.splitlines()) == COUNT + 1
    assert (
        err.splitlines()[-1] == f"ilgnet: {len(BAD)} of {COUNT} images were not scored; they are named above"
    )


@pytest.mark.parametrize("first", [["--cluster", "ray"], []], ids=["cluster first", "cluster second"])
def test_caches(here, capsys, without_ray, first: list[str]) -> None:
    check_cache(capsys, first, [] if first else ["--cluster", "ray"])


def test_a_net_that_is_wrong_is_refused_here(here, capsys, without_ray) -> None:
    Path("two.prototxt").write_text("layer {")
    local, spread = printed(capsys), printed(capsys, "--cluster", "ray")
    assert local == spread and spread[0] == 1 and len(spread[2].splitlines()) == 1


def test_two_workers_score_the_same(here, capsys, two_workers) -> None:
    plain, spread = printed(capsys, "--json"), printed(capsys, "--json", "--cluster", "ray")
    assert spread == plain


@pytest.mark.parametrize("first", [["--cluster", "ray"], []], ids=["cluster first", "cluster second"])
def test_two_workers_share_a_cache(here, capsys, two_workers, first: list[str]) -> None:
    check_cache(capsys, first, [] if first else ["--cluster", "ray"])


WORKER_ERRORS = {
    "ours": (WeightsError("net.caffemodel: is bad; convert it again"), "net.caffemodel: is bad; convert it again"),
    "not ours": (KeyError("x"), "cluster='ray': failed (KeyError: 'x')"),
}  # fmt: skip


@pytest.mark.parametrize("at_start", [True, False], ids=["at start", "at work"])
@pytest.mark.parametrize(("error", "expected"), WORKER_ERRORS.values(), ids=WORKER_ERRORS)
def test_what_a_worker_raises_is_one_line(error: Exception, expected: str, at_start: bool) -> None:
    """Rows from pyarrow tables, as Ray hands them on."""
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'ilgnet_repro[ray]'")
    worker = cluster._Worker(_failing(error, at_start=at_start), 1, ".", "ray")
    for _ in range(2):
        assert worker(pyarrow.table({"item": [1, 2]})).to_pylist() == [{cluster._FAILURE: expected}]


def test_a_worker_without_the_folder() -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'ilgnet_repro[ray]'")
    worker = cluster._Worker(_failing(KeyError("x"), at_start=False), 1, "/no/folder", "ray")
    (row,) = worker(pyarrow.table({"item": [1]})).to_pylist()
    assert row[cluster._FAILURE] == (
        "/no/folder: a machine of the cluster cannot use this folder (No such file or directory); work in a shared one"
    )


def test_failures_after_rows(two_workers) -> None:
    """The rows before it come first, and what is raised is its line."""
    rows = rows_on_cluster(_failing(DataError("a.jpg: is bad; mend it"), after=20), range(40))
    assert [row["value"] for row in islice(rows, 16)] == list(range(16))
    with pytest.raises(DataError) as raised:
        list(rows)
    assert str(raised.value) == "a.jpg: is bad; mend it"


def _failing(error: Exception, *, at_start: bool = False, after: int = 0) -> Callable[[int], Work]:
    """Workers that raise it: a closure, which Ray sends by value."""

    def work(items: Sequence[int]) -> Columns:
        if items[-1] < after:
            return {"value": items}
        raise error

    def start(threads: int) -> Work:
        if at_start:
            raise error
        return work

    return start


NO_CLUSTERS = ["dask", "ray:", "ray://host:10001", "rays", ""]


@pytest.mark.parametrize("name", NO_CLUSTERS)
def test_another_cluster(here, capsys, name: str) -> None:
    with pytest.raises(DataError, match="is not supported; use ray"):
        check_cluster(name)
    status, out, err = printed(capsys, "--cluster", name)
    assert (status, out) == (1, "")
    assert err == f"ilgnet: --cluster {name}".rstrip() + ": is not supported; use ray\n"


def test_the_address_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    with pytest.raises(DataError) as raised:
        check_cluster("ray")
    assert str(raised.value) == (
        "RAY_ADDRESS=ray://host:10001: Ray Data does not run over Ray's client; run on a machine of the cluster with "
        "RAY_ADDRESS=auto, or HOST:PORT of its head"
    )


def test_records_hold_everything(here, capsys, without_ray) -> None:
    Path("list.txt").write_text("images/01é.png\nimages/gone.png\n")
    options = ["score", "--list", "list.txt", *NET, "--json", "--cluster", "ray"]
    assert main(options) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(first["outputs"]["prob"]) == 2 and second["error"] == "images/gone.png: no such file"
