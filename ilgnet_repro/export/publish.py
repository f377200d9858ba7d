"""Finished files put into place: staged in a temporary folder, never over a file that no conversion wrote."""

from __future__ import annotations

import filecmp
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..caffe.prototxt import read_net
from ..caffe.upgrade import upgrade_net
from ..errors import IlgnetError
from ..files import PathLike, check_output, check_replaced, writing
from ..runtime.pt2_file import METADATA_FILE
from .coreml_package import MODEL, is_package

_HEAD = 4096  # bytes that contain each format's marker


def is_same_file(path: Path, text: Path) -> bool:
    """Return whether a path is the prototxt ``text``."""
    return path.suffix == ".prototxt" and path.is_file() and text.is_file() and path.samefile(text)


@contextmanager
def create_folder(folder: Path) -> Iterator[None]:
    """Create a folder if it does not exist; remove it again if the block fails and leaves it empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IlgnetError(
            f"{folder}: cannot be made ({error.strerror}); give another as out=", option="out"
        ) from error
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def check_replacing(written: Sequence[Path], folder: Path, inputs: Iterable[PathLike | None]) -> None:
    """Raise IlgnetError unless each of the files may replace the file of its name in ``folder``.

    A file is replaced if it has the marker of a conversion or the same bytes: names are derived from
    the weights' name, so a script or a net of that name may be the user's.
    """
    inputs = list(inputs)
    for path in written:
        target = folder / path.name
        check_output(target, inputs)
        check_replaced(
            target,
            _recognizer(path),
            "`ilgnet convert`",
            "give another folder as out= or remove it",
            option="out",
        )


def _recognizer(written: Path) -> Callable[[Path], bool]:
    def is_ours(target: Path) -> bool:
        if written.is_dir() or target.is_dir():
            return is_package(target) and b"ilgnet_repro" in (target / MODEL).read_bytes()
        if target.suffix in (".pt2", ".tflite"):
            if not zipfile.is_zipfile(target):
                return False
            with zipfile.ZipFile(target) as archive:
                return any(name.endswith(METADATA_FILE) for name in archive.namelist())
        if target.suffix in (".py", ".safetensors", ".onnx"):
            return _has_marker(target)
        if target.suffix == ".xml":
            return b"ilgnet_repro" in target.read_bytes()
        if target.suffix == ".bin":  # the weights of an .xml file
            text = target.with_suffix(".xml")
            return text.is_file() and b"ilgnet_repro" in text.read_bytes()
        if target.suffix == ".data":  # the weights of a large STEM.onnx
            return _has_marker(target.with_suffix(""))
        return filecmp.cmp(written, target, shallow=False)  # Caffe's own formats have no marker

    return is_ours


def _has_marker(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"ilgnet_repro" in file.read(_HEAD)


def publish(written: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Move finished files into place, each main file after those it needs; return their new paths.

    An existing prototxt with the same content is kept.  Raises IlgnetError where its content differs.
    """
    kept = {path for path in written if path.suffix == ".prototxt" and _is_same_net(path, folder / path.name)}
    for path in reversed(written):
        if path not in kept:
            with writing(folder / path.name):
                _move(path, folder / path.name)
    return tuple(folder / path.name for path in written)


def _move(path: Path, target: Path) -> None:
    """Rename a file or folder to its place.  A folder replaces no other, so the old one moves to where this one was made."""
    if not (path.is_dir() and target.is_dir()):
        os.replace(path, target)
        return
    old = path.with_name(f"{path.name}.old")
    os.rename(target, old)
    try:
        os.rename(path, target)
    except BaseException:
        os.rename(old, target)
        raise


def _is_same_net(path: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    try:
        same = upgrade_net(read_net(target)) == read_net(path)
    except (IlgnetError, OSError):
        same = False
    if not same:
        raise IlgnetError(
            f"{target}: already exists and holds another net than the one saved; give another name, or remove it"
        )
    return True
