"""Importing the library does not change process settings; what `tune_process` sets, without changing results."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro import process

ROOT = Path(__file__).parents[1]
MIB = 1 << 20


LATE, EARLY, KEEP = (-3, 256 * MIB), (-3, 32 * MIB), (-1, 2**31 - 1)


@pytest.mark.parametrize(
    ("platform", "stated", "refused", "settings", "tuned"),
    [
        ("linux", {}, [], [LATE, KEEP], True),
        ("linux", {}, [LATE], [LATE, EARLY, KEEP], True),
        ("linux", {}, [LATE, EARLY], [LATE, EARLY], False),
        ("linux", {"MALLOC_TRIM_THRESHOLD_": "1000"}, [], [], False),
        ("linux", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000"}, [], [], False),
        ("darwin", {}, [], [], False),
    ],
    ids=["tuned", "an older library", "refused", "set by the user", "a tunable", "another system"],
)
def test_only_the_gnu_library_is_tuned(platform, stated, refused, settings, tuned, monkeypatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, *arguments: int) -> int:
            calls.append(arguments)
            return int(arguments not in refused)

    for name in process.OVERRIDE_ENV_VARS:
        monkeypatch.delenv(name, raising=False)
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process.sys, "platform", platform)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: Library())
    assert process.tune_allocator.__wrapped__() is tuned
    assert calls == settings


def test_a_library_without_the_call_is_not_changed(monkeypatch) -> None:
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())  # as musl's
    assert process.tune_allocator.__wrapped__() is False


# Blobs of 38 MB in a net of two layers; the page faults of five passes once five others have run.
PASSES = """
import resource, sys, torch
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro import tune_process
tune_process()
layer = 'layer { name: "%s" type: "%s" bottom: "%s" top: "%s" }'
text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 5 dim: 5 dim: 620 dim: 645 } } }'
text += layer % ("a", "TanH", "x", "a") + layer % ("b", "AbsVal", "a", "b")
net = CaffeNet(build_graph(parse_net(text), "TEST"))
x = torch.ones(5, 5, 620, 645)
def faults(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        net(x=x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is tuned")
def test_passes_of_a_tuned_process_reuse_its_memory() -> None:
    def faults(**stated: str) -> int:
        clean = {name: value for name, value in os.environ.items() if name not in process.OVERRIDE_ENV_VARS}
        done = subprocess.run(
            [sys.executable, "-c", PASSES], cwd=ROOT, env={**clean, **stated}, check=True,
            capture_output=True,
        )  # fmt: skip
        return int(done.stdout)

    every_page = 5 * 2 * 9000  # of both blobs in each pass
    assert faults(MALLOC_MMAP_THRESHOLD_="131072") > every_page
    assert faults() < 1000


MAPS = """\
00400000-00a00000 rw-p 00000000 00:00 0 \t\t[heap]
01100000-01900000 rw-p 00000000 00:00 0
02000000-02400000 rw-p 00000000 08:01 77 \t\t/weights of a file
03000000-03400000 r--p 00000000 00:00 0
04000000-04400000 rw-s 00000000 00:00 0
05000000-05400000 rw-p 00000000 00:00 0 \t\t[stack]
06100000-062fffff rw-p 00000000 00:00 0
"""


def test_pages_are_whole_ones_of_the_process_own_memory(monkeypatch, tmp_path) -> None:
    (tmp_path / "maps").write_text(MAPS)
    monkeypatch.setattr(process, "Path", lambda name: tmp_path / "maps")
    assert process.private_pages() == {2, 3, 4, *(9, 10, 11)}
    monkeypatch.setattr(process, "Path", lambda name: tmp_path / "no such system")
    assert process.private_pages() == set()


@pytest.mark.parametrize(
    ("refused", "moved", "calls"),
    [(set(), 80, 80), ({(25, 264)}, 78, 80), ({(25, page) for page in range(0, 999, 2)}, 0, 80),
     ({(14, page) for page in range(0, 999, 2)}, 0, 40)],
    ids=["all", "one page not", "an older kernel", "no large pages"],
)  # fmt: skip
def test_only_new_memory_is_moved_in_unbroken_stretches(refused, moved, calls, monkeypatch) -> None:
    """96 MiB in a row, 16 of them there before: 48 and 32 are new. The 30 MiB elsewhere are not worth it."""
    advised: list[tuple[int, int]] = []

    class Library:
        def madvise(self, start, size, advice) -> int:
            assert size.value == 2 * MIB
            advised.append((advice, start.value // MIB))
            return -1 if advised[-1] in refused else 0

    monkeypatch.setattr(process.ctypes, "CDLL", lambda *name, **options: Library())
    monkeypatch.setattr(process, "private_pages", lambda: {*range(100, 148), *range(200, 215)})
    assert process.use_huge_pages(set(range(124, 132))) == moved * MIB
    assert len(advised) == calls
    assert {start for _, start in advised} == {*range(200, 248, 2), *range(264, 296, 2)}


def test_nothing_is_done_without_madvise(monkeypatch) -> None:
    monkeypatch.setattr(process.ctypes, "CDLL", lambda *name, **options: object())
    monkeypatch.setattr(process, "private_pages", lambda: set(range(100)))
    assert process.use_huge_pages(set()) == 0
    process.trim_heap()


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are requested only on Linux")
def test_moved_memory_holds_what_it_held() -> None:
    before = process.private_pages()
    taken = mmap.mmap(-1, 96 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(taken, np.int32)
    values[:] = np.arange(24 * MIB)
    page = values.ctypes.data // process.HUGE_PAGE + 1
    assert page in process.private_pages() - before
    assert process.use_huge_pages(before) >= 0
    np.testing.assert_array_equal(values, np.arange(24 * MIB))


def snapshots(folder: Path, *arguments: str) -> tuple[dict, str]:
    """What `process_snapshot.py` found, and what it wrote to stderr."""
    clean = {name: value for name, value in os.environ.items() if name not in process.OVERRIDE_ENV_VARS}
    done = subprocess.run(
        [sys.executable, "tests/helpers/process_snapshot.py", str(folder), *arguments], cwd=ROOT, env=clean, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_changes_nothing_of_its_process(tmp_path) -> None:
    found, stderr = snapshots(tmp_path)
    assert found["changed"] == {}
    assert found["watched"] >= 8
    assert stderr == ""
    if platform.libc_ver()[0] == "glibc":
        assert found["malloc"] == [[True, True]] * 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such settings")
def test_tune_process_sets_what_it_says_and_nothing_else(tmp_path) -> None:
    """The opposite case: the snapshots show a change."""
    found, stderr = snapshots(tmp_path, "tuned")
    assert set(found["changed"]) - {"huge pages"} == {"malloc", "OpenCV"}  # a kernel may have no huge pages
    assert found["changed"]["malloc"][1][:2] == [[False, False], [False, False]]
    assert found["changed"]["OpenCV"][1][:2] == [1, 2]
    assert stderr == ""
