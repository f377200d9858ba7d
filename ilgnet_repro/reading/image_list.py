"""Image lists: rows of ``path label``, kept on disk, read by index, shuffled by a seed."""

from __future__ import annotations

import codecs
import hashlib
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..caffe.expected_kind import naming_kind
from ..caffe.kinds import Kind, encoding_of, kind_of
from ..errors import DataError, IlgnetError
from ..files import check_output, open_input, read_input
from .datum import INT32


class ListRow(NamedTuple):
    """A row of a list: the image's path as written, and its label."""

    path: str
    label: int


_ATOI = re.compile(rb"[-+]?\d+")
_UNLABELLED = re.compile(rb"(?m)^[^ \t\r\n\0]+[ \t\r]*$")
_NUMBERS = re.compile(r".*?\.\w+((?:[ \t,;]+[-+]?\d+(?:\.\d*)?)+)")
_ONE_LABEL = "give one label per row, or store them as HDF5Data"
_FLOAT = re.compile(rb"[-+]?\d+\.(\d*)")


class ImageList:
    """The rows of a list file, by index. Only the row offsets are in memory: 8 bytes per row.

    As in convert_imageset the label follows the last space, so paths may contain spaces, and a row without a space
    has the label that Caffe's atoi finds at its start, mostly 0; `notes` says so. A byte order mark is skipped. Blank
    lines at the end are ignored; one in the middle is an error, because it would shift every key after it.
    ``seed`` shuffles the rows (Caffe's ``--shuffle``, which takes its seed from the clock).
    Raises DataError with file and line if the file or a row cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], seed: int | None = None) -> None:
        if seed is not None and not 0 <= seed < 1 << 32:
            raise DataError(f"seed {seed}: is not an integer from 0 to 2**32 - 1")
        self.path = Path(path)
        self.seed = seed
        self._is_list: bool | None = None
        try:
            with open_input(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); give an image list") from error
        begin = len(_byte_order_mark(self.path, self._text[:4]))
        end = len(self._text)
        while end and self._text[end - 1] in b" \t\r\n":
            end -= 1
        starts = [np.array([begin], np.int64)] if end > begin else []
        end = max(begin, end)
        for start in range(begin, end, 1 << 20):
            block = np.frombuffer(self._text[start : min(start + (1 << 20), end)], np.uint8)
            starts.append(np.flatnonzero(block == ord("\n")) + start + 1)
        if len(starts) > 1 and self._text.find(b"\n") < 0 <= self._text.find(b"\r", begin, end):
            raise DataError(f"{self.path}: its lines end in carriage returns alone; end them in line feeds")
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
        if b"\0" in text:
            raise self._wrong(f"{where}: has a zero byte; save the list as UTF-8 text")
        if not separator and text and self._is_text():
            found = _ATOI.match(text)  # as in Caffe, where the whole row is then both the path and the label
            path, label = text, found[0] if found else b"0"
        elif not separator or not path:
            raise self._wrong(f"{where}: {os.fsdecode(text)[:80]!r} is not a row; write `path label`")
        whole = _FLOAT.fullmatch(label)
        if whole and not whole[1].strip(b"0"):
            label = label[: label.index(b".")]
        try:
            value = int(label)
        except ValueError:
            value = INT32.stop
        if value not in INT32:
            shown = os.fsdecode(label)[:80]
            remedy = "round it, or store such labels as HDF5Data" if whole else "write `path label`"
            if len(_numbers(os.fsdecode(text))) > 1:
                remedy = _ONE_LABEL
            raise self._wrong(f"{where}: label {shown!r} is not an integer; {remedy}")
        return ListRow(os.fsdecode(path), value)

    def _is_text(self) -> bool:
        """Whether the file may be a list, by its content: any line of a text reads as a row without a label."""
        if self._is_list is None:
            self._is_list = kind_of(self.path) in (Kind.TEXT, Kind.UNKNOWN)
        return self._is_list

    def notes(self) -> list[str]:
        """What users should know about the rows, one line each: how many have no label, and which is taken."""
        if (found := self._unlabelled()) is None:
            return []
        line, end = found
        first = self[line if self._order is None else int(np.flatnonzero(self._order == line)[0])]
        count = 1 + sum(1 for _ in _UNLABELLED.finditer(self._text, end))
        why = f"the number that its name starts with, {first.label}" if first.label else "0"
        return [
            f"{self.path}: {count:,} rows have no label, the first in line {line + 1} ({first.path}); "
            f"its label is {why}, as in Caffe"
        ]

    def check_labels(self) -> None:
        """Raise DataError if a row has no label."""
        if found := self._unlabelled():
            line = found[0]
            text = self._text[int(self._starts[line]) : int(self._starts[line + 1]) - 1].rstrip()
            raise DataError(
                f"{self.path}:{line + 1}: {os.fsdecode(text)[:80]!r} is not a row; write `path label`"
            )

    def _unlabelled(self) -> tuple[int, int] | None:
        """The first line without a label, and where it ends; None if there is none."""
        found = _UNLABELLED.search(self._text)
        if found is None or not len(self) or not self._is_text():
            return None
        return int(np.searchsorted(self._starts, found.end(), side="right")) - 1, found.end()

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
            named = (find_image(root, row.path) for row in self if os.path.basename(row.path) == name)
            check_output(output, named, option)

    def digest(self) -> str:
        """SHA-256 of the file's bytes, to check that two builds use the same list."""
        return hashlib.sha256(self._text).hexdigest()


def image_path(root: str | os.PathLike[str], name: str) -> str:
    """The path of a list's image: ``root`` before the name, as convert_imageset joins them."""
    base = os.fspath(root)
    return base + name if not base or base.endswith(("/", os.sep)) else f"{base}/{name}"


def find_image(root: str | os.PathLike[str], name: str, base: str | os.PathLike[str] = ".") -> str:
    """The path of a list's image: without ``root`` relative to ``base``.

    ``root`` is put before the name without a separator, as in Caffe, or with one where no such file is there; and the
    separators of Windows are looked up as slashes too.
    """
    path = image_path(root, name)
    if not os.fspath(root) and os.fspath(base) != ".":
        path = os.path.join(base, path)
    forms = [path] if not os.fspath(root) else [os.fspath(root) + name, path]
    forms = list(dict.fromkeys([*forms, *(form.replace("\\", "/") for form in forms)]))
    return path if len(forms) == 1 else next(filter(os.path.lexists, forms), path)


def why_missing(row: ListRow, root: str | os.PathLike[str]) -> str:
    """Why a row's image file does not exist, if the row shows it: several labels, quotes, a comma, an absolute path."""
    if labels := _numbers(row.path):
        if " " not in row.path and "\t" not in row.path:
            return "write a space between path and label"
        return f"its row has several labels ({' '.join([*labels, str(row.label)])}): {_ONE_LABEL}"
    if row.path[:1] in ("'", '"'):
        return "its path is in quotation marks: remove them from the list"
    if os.path.isabs(row.path) and os.fspath(root).strip("/") and os.path.lexists(row.path):
        return "its path in the list is absolute: give / as the folder of the images"
    return ""


def _numbers(text: str) -> list[str]:
    """The numbers after the file name at the start of a row."""
    found = _NUMBERS.fullmatch(text)
    return re.split(r"[ \t,;]+", found[1].strip(" \t,;")) if found else []


def read_list(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a list of files without a byte order mark. Raises OSError, and DataError for UTF-16."""
    data = read_input(path)
    return data[len(_byte_order_mark(path, data[:4])) :]


def _byte_order_mark(path: str | os.PathLike[str], head: bytes) -> bytes:
    """The byte order mark of UTF-8, or nothing. Raises DataError for that of UTF-16 and UTF-32."""
    if (encoding := encoding_of(head)) in ("utf-16", "utf-32"):
        raise DataError(f"{path}: is {encoding.upper()} text; save it as UTF-8")
    return codecs.BOM_UTF8 if head.startswith(codecs.BOM_UTF8) else b""
