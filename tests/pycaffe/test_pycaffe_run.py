"""`ilgnet caffe run` and `python -m ilgnet_repro.pycaffe`: scripts written for pycaffe, unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """\
import sys
import caffe
import my_layers
print(__name__, sys.argv[1:], my_layers.caffe is caffe, sys.path[0].endswith("scripts"))
if sys.argv[1:] == ["refused"]:
    caffe.Net("gone.prototxt", caffe.TEST)
if sys.argv[1:] == ["fails"]:
    my_layers.fail()
if sys.argv[1:] == ["ends"]:
    sys.exit(5)
if sys.argv[1:] == ["says"]:
    sys.exit("no more")
"""
MODULE = "import caffe\n\n\ndef fail():\n    raise ValueError('a name: \\x1b')\n"
RUNS = {
    # arguments: exit status, what is on stdout, and on stderr
    "done": (["-m", "--gpu"], 0, "__main__ ['-m', '--gpu'] True True\n", ""),
    "refused": (
        ["refused"],
        1,
        None,
        "ilgnet: scripts/main.py:6: Could not open file gone.prototxt; check the path\n",
    ),
    "ends": (["ends"], 5, None, ""),
    "says": (["says"], 1, None, "no more\n"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "main.py").write_text(SCRIPT)
    (tmp_path / "scripts" / "my_layers.py").write_text(MODULE)
    return tmp_path


def run(
    folder: Path, *arguments: str, program: str = "ilgnet_repro.pycaffe"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs_as_python_runs_it(name: str, folder: Path) -> None:
    arguments, status, out, err = RUNS[name]
    done = run(folder, "scripts/main.py", *arguments)
    assert (done.returncode, done.stderr) == (status, err)
    assert out is None or done.stdout == out


def test_an_exception_of_the_script_is_shown_with_its_own_lines_only(folder: Path) -> None:
    done = run(folder, "caffe", "run", "scripts/main.py", "fails", program="ilgnet_repro")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if line.startswith("  File")] == [
        '  File "scripts/main.py", line 8, in <module>',
        f'  File "{folder / "scripts" / "my_layers.py"}", line 5, in fail',
    ]
    assert lines[-1] == "ValueError: a name: \\x1b"


def test_a_module_runs_in_the_current_folder(folder: Path) -> None:
    done = run(folder / "scripts", "caffe", "run", "-m", "main", "a", "-b", program="ilgnet_repro")
    assert (done.returncode, done.stdout) == (0, "__main__ ['a', '-b'] True True\n")


WRONG = {
    "no such script": (["gone.py"], 1, "ilgnet: gone.py: no such script; check the path\n"),
    "nothing to run": (
        [], 2, "usage: python -m ilgnet_repro.pycaffe (SCRIPT | -m MODULE) [ARGUMENTS ...]\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_run_is_one_line(name: str, folder: Path) -> None:
    arguments, status, err = WRONG[name]
    done = run(folder, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", err)
