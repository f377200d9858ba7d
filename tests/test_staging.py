"""Staged outputs: what a killed process left is removed by the next one, what a living one writes is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ilgnet_repro import staging
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.files import atomic_file, atomic_path, staged_results
from ilgnet_repro.staging import (
    MARK,
    claimed,
    note_in_claim,
    note_of_killed,
    partial_folder,
    staged_file,
    staged_folder,
)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def staged(folder: Path) -> list[str]:
    return hidden(folder) + sorted(path.name for path in folder.glob("*.partial"))


def in_another_process(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start ``code`` with these names in ``folder``; return when it has printed a line."""
    head = "from ilgnet_repro.staging import *; from ilgnet_repro.files import *; from pathlib import Path; import sys\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)], cwd=folder,
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


WAIT = "print('ready', flush=True); sys.stdin.readline()"
STAGES = {
    "file": (f"with staged_file(Path('x.bin')) as p: p.write_bytes(b'half'); {WAIT}", staged_file, "x.bin"),
    "folder": (f"with staged_folder(Path('x')) as p: (p / 'in').write_bytes(b'half'); {WAIT}", staged_folder, "x"),
    "partial folder": (
        f"with partial_folder(Path('x')) as p: (p / 'in').write_bytes(b'half'); {WAIT}", partial_folder, "x",
    ),
    "claim": (f"with claimed(Path('x')): {WAIT}", claimed, "x"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "stage", "name"), STAGES.values(), ids=STAGES)
def test_another_process(tmp_path, code, stage, name) -> None:
    process = in_another_process(code, tmp_path)
    left = staged(tmp_path)
    assert len(left) == 1
    with pytest.raises(IlgnetError) as refused, stage(tmp_path / name):
        pytest.fail("two processes write one output")
    assert str(refused.value) == (
        f"{tmp_path / name}: another process is writing it; wait for it, or give another name"
    )
    assert staged(tmp_path) == left  # what the living process writes is as it was
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert staged(tmp_path) == left
    with stage(tmp_path / name) as path:
        if path is not None:  # nothing of what was left is in the new one
            assert not (any(path.iterdir()) if path.is_dir() else path.stat().st_size)
    assert staged(tmp_path) == []


def test_a_process_that_ends_by_itself_leaves_nothing(tmp_path) -> None:
    process = in_another_process(STAGES["file"][0], tmp_path)
    process.communicate("\n")
    assert process.returncode == 0 and hidden(tmp_path) == []


def test_discarding(tmp_path) -> None:
    process = in_another_process(
        "stack = [staged_file(Path('a')), staged_folder(Path('b'))]; [one.__enter__() for one in stack];"
        f" {WAIT}; discard_staged(); print(os.listdir())",
        tmp_path,
    )
    assert process.communicate("\n")[0] == "[]\n"


def test_a_child_does_not_remove_what_its_parent_stages(tmp_path) -> None:
    with staged_file(tmp_path / "x") as path:
        child = os.fork()
        if not child:
            staging.discard_staged()
            os._exit(0)
        os.waitpid(child, 0)
        assert path.exists()
    assert hidden(tmp_path) == []


OTHERS = {
    "file": lambda path: path.write_bytes(b"mine"),
    "link": lambda path: path.symlink_to("elsewhere"),
    "folder of files": lambda path: (path / "in").mkdir(parents=True),
    "folder of both": lambda path: [(path / name).mkdir(parents=True) for name in ("mine", MARK)],
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("take", OTHERS.values(), ids=OTHERS)
def test_a_partial_folder_of_someone_else(tmp_path, take) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "x.partial"
    take(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IlgnetError) as refused, partial_folder(tmp_path / "x"):
        pytest.fail("it is not replaced")
    assert str(refused.value) == (
        f"{path}: was not left by a run of this command; remove it, or give another name"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_partial_folder_that_is_renamed(tmp_path) -> None:
    (tmp_path / "x.partial").mkdir()  # left by a process that was killed at its start or its end
    with partial_folder(tmp_path / "x") as stage:
        (stage / "in").write_bytes(b"whole")
        stage.rename(tmp_path / "x")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["x", "x/in"]


def test_the_note_of_a_claim(tmp_path) -> None:
    """It is read when its process is gone, however it ended, and not before."""
    target = tmp_path / "x"
    note_in_claim(target, b"without a claim")
    process = in_another_process(
        f"with claimed(Path('x')): note_in_claim(Path('x'), b'one '); note_in_claim(Path('x'), b'two'); {WAIT}",
        tmp_path,
    )
    assert note_of_killed(target) == b""
    process.kill()
    process.communicate()
    assert [note_of_killed(target) for _ in range(2)] == [b"one two"] * 2
    with claimed(target):
        assert note_of_killed(target) == b""
    assert note_of_killed(target) == b"" and hidden(tmp_path) == []


TAKEN = {
    "link": lambda path: path.symlink_to("mine"),
    "dead link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "file": lambda path: path.write_bytes(b"left"),
    "folder": lambda path: (path / "in").mkdir(parents=True),
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_a_name_that_is_taken(tmp_path, take) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    take(tmp_path / f".x.{MARK}.txt")
    with atomic_file(tmp_path / "x.txt") as file:
        file.write(b"new")
    assert (tmp_path / "x.txt").read_bytes() == b"new" and not (tmp_path / "x.txt").is_symlink()
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".txt", "é" * 127, "x." + "y" * 200], ids=["long", "bytes", "suffix"]
)
def test_long_names(tmp_path, name) -> None:
    with atomic_file(tmp_path / name) as file:
        (left,) = hidden(tmp_path)
        assert len(os.fsencode(left)) <= 255
        other = name[:-1] + "z"
        with atomic_file(tmp_path / other) as another:  # another name, also where only its end differs
            another.write(b"2")
        file.write(b"1")
    assert (tmp_path / name).read_bytes() == b"1" and (tmp_path / other).read_bytes() == b"2"


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        (OSError(28, "No space left on device"), "cannot be written (No space left on device); free some space"),
        (OSError(27, "File too large"), "cannot be written (File too large); raise the limit on the size of files"),
        (OSError(13, "Permission denied"), "cannot be written (Permission denied); give another folder"),
    ],
    ids=["full", "limit", "denied"],
)  # fmt: skip
def test_a_write_that_fails(tmp_path, failing, message) -> None:
    with pytest.raises(IlgnetError) as refused, atomic_path(tmp_path / "x"):
        raise failing
    assert str(refused.value) == f"{tmp_path / 'x'}: {message}"
    assert list(tmp_path.iterdir()) == []


def test_without_locks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(staging, "lock", lambda descriptor: None)
    with staged_file(tmp_path / "x") as first, staged_file(tmp_path / "x") as second:
        assert first != second and first.exists() and second.exists()
    assert hidden(tmp_path) == []


def test_an_error_names_the_result(tmp_path) -> None:
    with pytest.raises(IlgnetError) as refused, staged_results(tmp_path, "x") as stage:
        raise IlgnetError(f"{stage / 'x.onnx'}: is wrong")
    assert str(refused.value) == f"{tmp_path / 'x.onnx'}: is wrong"
