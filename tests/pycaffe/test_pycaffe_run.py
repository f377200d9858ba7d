"""`ilgnet caffe run` and `python -m ilgnet_repro.pycaffe`: scripts written for pycaffe, unchanged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ilgnet_repro.cli.main import main as ilgnet
from ilgnet_repro.pycaffe import alias
from ilgnet_repro.pycaffe.__main__ import main

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


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(alias._finder, "is_installed", False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("caffe", "my_layers", "main"):
            del sys.modules[name]


@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs_as_python_runs_it(name: str, folder: Path, monkeypatch, capsys) -> None:
    arguments, status, out, err = RUNS[name]
    monkeypatch.chdir(folder)
    assert main(["scripts/main.py", *arguments]) == status
    said = capsys.readouterr()
    assert said.err == err
    assert out is None or said.out == out


def test_an_exception_of_the_script_is_shown_with_its_own_lines_only(
    folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(folder)
    assert ilgnet(["caffe", "run", "scripts/main.py", "fails"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if line.startswith("  File")] == [
        '  File "scripts/main.py", line 8, in <module>',
        f'  File "{folder / "scripts" / "my_layers.py"}", line 5, in fail',
    ]
    assert lines[-1] == "ValueError: a name: \\x1b"


def test_a_module_runs_in_the_current_folder(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder / "scripts")
    assert ilgnet(["caffe", "run", "-m", "main", "a", "-b"]) == 0
    assert capsys.readouterr().out == "__main__ ['a', '-b'] True True\n"


def test_in_a_process_of_its_own(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ilgnet_repro.pycaffe", "scripts/main.py", "--flag"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "__main__ ['--flag'] True True\n", "")


WRONG = {
    "no such script": (["gone.py"], 1, "ilgnet: gone.py: no such script; check the path\n"),
    "nothing to run": (
        [], 2, "usage: python -m ilgnet_repro.pycaffe (SCRIPT | -m MODULE) [ARGUMENTS ...]\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_run_is_one_line(name: str, folder: Path, capsys) -> None:
    arguments, status, err = WRONG[name]
    assert main(arguments) == status
    assert tuple(capsys.readouterr()) == ("", err)


def test_the_command_says_what_it_takes(folder: Path, capsys) -> None:
    for arguments, message in (
        (["gone.py"], "ilgnet: gone.py: cannot be read (No such file or directory); check the path\n"),
        ([], "ilgnet: caffe run: no script; give its path, or -m and the name of a module\n"),
    ):
        assert ilgnet(["caffe", "run", *arguments]) == 1
        assert tuple(capsys.readouterr()) == ("", message)
