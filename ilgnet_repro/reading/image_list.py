"""Image lists: rows of ``path label``, kept on disk, read by index, shuffled by a seed."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..caffe.kinds import naming_kind
from ..errors import DataError, IlgnetError
from ..files import check_output
from .datum import INT32


class ListRow(NamedTuple):
    """A row of a list: the image's path as written, and its label."""

    path: str
    label: int


class ImageList:
    """The rows of a list file, by index. Only the row offsets are in memory: 8 bytes per row.

    As in convert_imageset the label follows the last space, so paths may contain spaces. Blank lines at the
    end are ignored; one in the middle is an error, because it would shift every key after it.
    ``seed`` shuffles the rows (Caffe's ``--shuffle``, which takes its seed from the clock).
    Raises DataError with file and line if the file or a row cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], seed: int | None = None) -> None:
        if seed is not None and not 0 <= seed < 1 << 32:
            raise DataError(f"seed {seed}: is not an integer from 0 to 2**32 - 1")
        self.path = Path(path)
        self.seed = seed
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); give an image list") from error
        end = len(self._text)
        while end and self._text[end - 1] in b" \t\r\n":
            end -= 1
        starts = [np.zeros(1, np.int64)] if end else []
        for begin in range(0, end, 1 << 20):
            block = np.frombuffer(self._text[begin : min(begin + (1 << 20), end)], np.uint8)
            starts.append(np.flatnonzero(block == ord("\n")) + begin + 1)
        self._starts = np.concatenate([*starts, np.array([end + 1], np.int64)])
        self._order = None if seed is None else np.random.RandomState(seed).permutation(len(self))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> ListRow:
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: row {number} of {len(self)}")
        line = int(number if self._order is None else self._order[number])
        text = self._text[int(self._starts[line]) : int(self._starts[line + 1]) - 1].rstrip()
        path, separator, label = text.replace(b"\t", b" ").rpartition(b" ")
        path = text[: len(path)].rstrip()
        where = f"{self.path}:{line + 1}"
        if not separator or not path:
            raise self._wrong(f"{where}: {os.fsdecode(text)[:80]!r} is not a row; write `path label`")
        try:
            value = int(label)
        except ValueError:
            value = INT32.stop
        if value not in INT32:
            shown = os.fsdecode(label)[:80]
            raise self._wrong(f"{where}: label {shown!r} is not an integer; write `path label`")
        return ListRow(os.fsdecode(path), value)

    def _wrong(self, message: str) -> IlgnetError:
        return naming_kind(DataError(message), self.path, "an image list")

    def __iter__(self) -> Iterator[ListRow]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> tuple[type[ImageList], tuple[Path, int | None]]:
        return ImageList, (self.path, self.seed)

    def check_output(
        self, output: str | os.PathLike[str], root: str | os.PathLike[str] = "", option: str = ""
    ) -> None:
        """Raise IlgnetError where ``output`` is the list itself or, under ``root``, one of its images.

        Images are compared by file name; a link is followed to the file it points to.
        """
        check_output(output, [self.path], option)
        name = os.path.basename(os.path.realpath(output))
        if self._text.find(os.fsencode(name)) >= 0:
            named = (image_path(root, row.path) for row in self if os.path.basename(row.path) == name)
            check_output(output, named, option)

    def digest(self) -> str:
        """SHA-256 of the file's bytes, to check that two builds use the same list."""
        return hashlib.sha256(self._text).hexdigest()


def image_path(root: str | os.PathLike[str], name: str) -> str:
    """The path of a list's image: ``root`` before the name, as convert_imageset joins them."""
    base = os.fspath(root)
    return base + name if not base or base.endswith(("/", os.sep)) else f"{base}/{name}"
