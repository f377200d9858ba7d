"""OpenCV is imported when an image needs it; without it, one line says what to install."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro import opencv
from ilgnet_repro.cli.main import COMMANDS, main
from ilgnet_repro.reading.images import decode

INSTALL = (
    "run pip uninstall opencv-python opencv-python-headless, then pip install opencv-python-headless "
    "(or opencv-python, not both)"
)
# What stands in the place of cv2, and what is said: None is Python's own way to say that a module is not there.
BROKEN = {
    "not installed": (
        None,
        f"OpenCV cannot be imported (import of cv2 halted; None in sys.modules); {INSTALL}",
    ),
    "half uninstalled": (ModuleType("cv2"), f"OpenCV is incomplete: cv2 has no function imdecode; {INSTALL}"),
}


@pytest.fixture(params=BROKEN)
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    module, message = BROKEN[request.param]
    monkeypatch.setitem(sys.modules, "cv2", module)
    return message


def test_its_names_are_those_of_cv2() -> None:
    import cv2

    assert (opencv.imdecode, opencv.error, opencv.__version__) == (cv2.imdecode, cv2.error, cv2.__version__)
    with pytest.raises(AttributeError, match="no attribute 'imred'"):
        opencv.imred  # noqa: B018


def test_an_image_says_what_to_install(said: str) -> None:
    with pytest.raises(ir.IlgnetError) as error:
        decode(b"\xff\xd8", 1)
    assert str(error.value) == said
    assert not isinstance(error.value, ir.DataError)  # it would be taken for one bad image of many


# Each command that reads images; `score`, `lmdb make` and `partition check` continue after a bad image.
READERS = {
    "score": ["score", "a.png", "--weights", "small.caffemodel", "--mean-value", "1,2,3"],
    "lmdb make": ["lmdb", "make", "./", "list.txt", "db"],
    "partition check": ["partition", "check", "list.txt", "--pictures", "."],
    "sheet": ["sheet", "list.txt", "--out", "sheet.html"],
    "synthetic": ["synthetic", "drawn"],
    "compare with OpenCV": ["compare", "small.caffemodel", "opencv:small.caffemodel"],
}


@pytest.mark.parametrize("name", [name for name, (command, *_) in READERS.items() if command in COMMANDS])
def test_a_command_that_reads_images_ends_with_that_line(name, said, folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    (folder / "a.png").write_bytes(b"\x89PNG")
    (folder / "list.txt").write_text("a.png 0\na.png 1\n")
    assert main(READERS[name]) == 1
    assert said in capsys.readouterr().err


def test_what_reads_no_image_runs_without_it(said, folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert main(["convert", "small.caffemodel", "--to", "safetensors", "--verify"]) == 0
    net = ir.load("small.safetensors")
    (name,) = net.inputs
    x = np.zeros(net.blob_shapes()[name], np.float32)
    assert set(net(x)) == set(net.outputs)
