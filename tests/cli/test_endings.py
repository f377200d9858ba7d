"""How commands end: signals, files that are cut short while they are read, streams that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ilgnet_repro.cli import _ending
from ilgnet_repro.cli._ending import Terminated, guarded
from ilgnet_repro.staging import staged_file

# A child inherits what its parent ignores: SIGHUP of a test run under nohup, SIGINT of one in the background of a script.
DEFAULTS = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
# A command whose work is ``{work}``.
COMMAND = """
import os, signal, sys, time
from pathlib import Path
from ilgnet_repro.cli._ending import cut_files_reported, guarded, usable_streams
from ilgnet_repro.files import atomic_file, map_file

def work():
    {work}
    return 0

with usable_streams():
    status = guarded(work)
sys.exit(status)
"""


def run(work: str, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    code = DEFAULTS + COMMAND.format(work=work.replace("\n", "\n    "))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, text=True, check=False, timeout=60,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "ended by SIGTERM"),
        ("SIGHUP", 129, "ended by SIGHUP"),
    ],
)
def test_signals_leave_nothing_staged(tmp_path, number, status, line) -> None:
    work = f"with atomic_file('x') as file: os.kill(os.getpid(), signal.{number}); time.sleep(30)"
    done = run(work, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"ilgnet: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored(tmp_path) -> None:
    code = COMMAND.format(work="os.kill(os.getpid(), signal.SIGHUP); print('on')")
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}"
    done = subprocess.run([sys.executable, "-c", ignoring], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_while_importing(tmp_path, number) -> None:
    """As extension modules do: what is raised during an import becomes another exception."""
    (tmp_path / "slow.py").write_text(
        f"import os, signal, time\ntry: os.kill(os.getpid(), signal.{number}); time.sleep(30)\n"
        "except BaseException as e: raise ImportError('broken') from e\n"
    )
    done = run("sys.path.insert(0, '.'); import slow", tmp_path)
    assert done.returncode == 128 + getattr(signal, number)
    assert done.stderr.startswith("ilgnet: ") and done.stderr.count("\n") == 1


def test_handlers_are_restored(capsys) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert guarded(lambda: 0) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_signal_within_clean_up_leaves_nothing(tmp_path, monkeypatch, capsys) -> None:
    """The clean-up that the signal cut short is done in the end."""

    def work() -> int:
        with staged_file(tmp_path / "x"):
            raise Terminated(signal.SIGTERM)

    kept = []
    monkeypatch.setattr("ilgnet_repro.staging._release", kept.append)
    assert guarded(work) == 143
    assert kept[-1] == kept[0] and len(kept) >= 2  # once by the block, once at the end
    monkeypatch.undo()
    _ending.discard_staged()
    assert list(tmp_path.iterdir()) == []


CUT = {
    "a read": "view = map_file('x')\nos.truncate('x', 10)\nbytes(view)",
    "an array": "import numpy as np\nview = np.frombuffer(map_file('x'), np.float32)\nos.truncate('x', 5000)\nview.sum()",
}


@pytest.mark.skipif(sys.platform != "linux", reason="SIGBUS of mapped files")
@pytest.mark.parametrize("work", CUT.values(), ids=CUT)
def test_a_mapped_file_that_is_cut_short(tmp_path, work) -> None:
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    block = "with cut_files_reported(), atomic_file('out') as file:\n    " + work.replace("\n", "\n    ")
    done = run(block, tmp_path)
    assert (done.returncode, done.stderr) == (
        1, f"ilgnet: {tmp_path / 'x'}: was cut short while it was read; run again with the whole file\n",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


STREAMS = {
    "full": (
        "/dev/full",
        1,
        "ilgnet: standard output: cannot be written (No space left on device); free some space\n",
    ),
    "null": ("/dev/null", 0, ""),
}


@pytest.mark.parametrize(
    "work", ["print('text')", "for _ in range(20000): print('a line of text')"], ids=["buffered", "written"]
)
@pytest.mark.parametrize(("path", "status", "line"), STREAMS.values(), ids=STREAMS)
def test_stdout_that_cannot_be_written(tmp_path, work, path, status, line) -> None:
    with open(path, "w") as stream:
        done = run(work, tmp_path, stdout=stream)
    assert (done.returncode, done.stderr) == (status, line)


def test_a_reader_that_has_gone(tmp_path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("print('text')", tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_streams_take_no_file(tmp_path) -> None:
    """With descriptor 1 closed the first file opened would get it, and what is printed."""
    code = COMMAND.format(
        work="file = open('x', 'w'); print('text'); os.write(1, b'raw'); file.write('own'); file.close()"
    )
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "x").read_text() == "own"


def test_ascii_streams(tmp_path) -> None:
    done = run(
        "print('é'); print('ü', file=sys.stderr)", tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\n", "\\xfc\n")


SHORT = {
    "disk": (OSError(28, "No space left on device", "x"), "x (No space left on device); free some space"),
    "files": (OSError(24, "Too many open files", "x"), "x (Too many open files); raise the limit on open files"),
    "memory": (MemoryError("9 TiB\nmore"), "out of memory (9 TiB); use a machine with more memory"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "line"), SHORT.values(), ids=SHORT)
def test_a_system_that_is_short_of_something(capsys, error, line) -> None:
    def work() -> int:
        raise error

    assert guarded(work) == 1
    assert capsys.readouterr().err == f"ilgnet: {line}\n"


def test_an_error_of_this_package_is_internal(capsys) -> None:
    def work() -> int:
        raise FileNotFoundError(2, "No such file or directory", "x")

    assert guarded(work) == 3


def test_interrupted_while_starting(tmp_path) -> None:
    """At any moment from the start of `main` on: one line or none, no traceback."""
    for wait in (0.0, 0.1, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", "print(1, flush=True)\nfrom ilgnet_repro.cli.main import main\nmain(['audit', 'x'])"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(0.1 + wait)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
        assert ("internal error" not in err and err.count("\n") <= 1) or "import" in err, err
