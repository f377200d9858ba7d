"""Which files a conversion may replace: those that an earlier conversion wrote, and no user's own."""

from __future__ import annotations

import filecmp
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..files import PathLike, check_output, check_replaced
from ..runtime.pt2_file import METADATA_FILE

_HEAD = 4096  # bytes that contain each format's marker


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
        if target.suffix == ".pt2":
            if not zipfile.is_zipfile(target):
                return False
            with zipfile.ZipFile(target) as archive:
                return any(name.endswith(METADATA_FILE) for name in archive.namelist())
        if target.suffix in (".py", ".safetensors", ".onnx"):
            return _has_marker(target)
        if target.suffix == ".data":  # the weights of a large STEM.onnx
            return _has_marker(target.with_suffix(""))
        return filecmp.cmp(written, target, shallow=False)  # Caffe's own formats have no marker

    return is_ours


def _has_marker(path: Path) -> bool:
    with open(path, "rb") as file:
        return b"ilgnet_repro" in file.read(_HEAD)
