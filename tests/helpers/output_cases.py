"""What a command may overwrite: a folder of its inputs, every way to name one, and a refusal that changes no byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import main

MINE = b"mine, and nowhere else\n"  # a file that no command wrote


def make_inputs(folder: Path) -> None:
    """Write images, their list, a database, a mean and a net, all small."""
    (folder / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (14, 11, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(4)))
    write_weights(folder / "small.caffemodel")
    (folder / "small.prototxt").write_text(SMALL_TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ["lmdb", "make", "images/", "list.txt", "db"],
            ["mean", "db", "mean.npy"],
            ["convert", "small.caffemodel", "--out", "."],
        ):
            assert main(arguments) == 0


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, with what it holds."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder"
    return found


def refused(capsys, folder: Path, arguments: list[str]) -> str:
    """Run a command that must be refused in one line and leave every byte as it was; the line."""
    before = contents(folder)
    capsys.readouterr()
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("ilgnet: ") and err.count("\n") == 1, err
    assert contents(folder) == before
    return err.removeprefix("ilgnet: ").rstrip()


def linked(link: Callable[[str, str], None], path: str) -> str:
    """A second name of a file, with the same suffix."""
    name = f"elsewhere/linked{Path(path).suffix}"
    link(os.path.abspath(path), name)
    return name


# The ways to name a file that is an input already: how a second name is made of it.
NAMES = {
    "same": str,
    "absolute": lambda path: str(Path(path).resolve()),
    "roundabout": lambda path: os.path.join("elsewhere", "..", path),
    "symlink": lambda path: linked(os.symlink, path),
    "hard-link": lambda path: linked(os.link, path),
}


def check_input_is_no_output(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], output: str
) -> None:
    """Assert that a command refuses ``output``, its last argument, because it is its input."""
    message = refused(capsys, folder, [*arguments, output])
    assert "is the input" in message and message.endswith("itself; give another name")


def check_accepted(arguments: list[str], again: list[str]) -> None:
    """Assert that a command runs, and with ``again`` runs over its own output, and changes no other file."""
    before = contents(Path())
    assert main(arguments) == 0
    assert main(again) == 0
    after = contents(Path())
    assert {name: after[name] for name in before if name not in arguments} == {
        name: before[name] for name in before if name not in arguments
    }


def check_files_of_others_stay(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    names: list[str],
    arguments: list[str],
    message: str | None,
) -> None:
    """Assert that a command runs, or refuses with ``message``, and leaves the user's files of these names; remove them."""
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(MINE)
    if message is None:
        assert main(arguments) == 0
    else:
        assert refused(capsys, folder, arguments) == message
    assert all(Path(name).read_bytes() == MINE for name in names)
    for name in names:
        Path(name).unlink()


def enter_copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy made inputs, with an empty folder ``elsewhere`` beside them, and change the working directory there."""
    folder = tmp_path / "w"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    (folder / "elsewhere").mkdir()
    return folder
