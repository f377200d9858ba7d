"""The folders that the page may read, named when the server starts, and nothing outside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from ..errors import DataError, IlgnetError, excerpt
from ..image_paths import SUFFIXES, ImagePaths
from ..reading.photos import read_file

MOST_LISTED = 10_000  # images of a folder
LONGEST_PATH = 4096


def path_of(quoted: str) -> str:
    """Return a path that `Folders.listed` wrote."""
    return os.fsdecode(unquote_to_bytes(quoted))


class MissingError(DataError):
    """What was asked for is not there."""


class Folders:
    """The allowed folders: each is called by its number, what is in it by its path below it."""

    def __init__(self, given: Sequence[str] = ()) -> None:
        self.shown = tuple(given)
        self._roots = tuple(Path(folder).resolve() for folder in given)
        for folder, root in zip(given, self._roots, strict=True):
            if not root.is_dir():
                raise IlgnetError(f"--folder {folder}: is not a folder; give one that exists")

    def listed(self, number: int, below: str) -> tuple[list[str], bool]:
        """Return the images of a folder and its subfolders, and whether there are more.

        Each is its path below the allowed folder, as `quote` writes its bytes: a name may be no UTF-8.
        """
        root = self._root(number)
        folder = self._inside(root, below)
        if not os.path.isdir(folder):  # of a name that is too long, Path.is_dir raises the system's error
            raise MissingError(f"{excerpt(below) or '.'}: no such folder below {self.shown[number]}")
        paths = [
            quote(os.fsencode(os.path.relpath(path, root)))
            for path in islice(ImagePaths((str(folder),)), MOST_LISTED + 1)
        ]
        return paths[:MOST_LISTED], len(paths) > MOST_LISTED

    def read(self, number: int, quoted: str) -> bytes:
        """Return the bytes of an image by a path of `listed`.  Raises DataError for anything else."""
        root, path = self._root(number), path_of(quoted)
        found = self._inside(root, path)
        if found.suffix.lower() not in SUFFIXES or not os.path.isfile(found):
            raise MissingError(f"{excerpt(path)}: no such image below {self.shown[number]}")
        try:
            return read_file(found)
        except DataError as error:  # by the path that was asked for
            raise DataError(str(error).replace(str(found), excerpt(path), 1)) from error

    def _root(self, number: int) -> Path:
        if not 0 <= number < len(self._roots):
            raise MissingError(
                f"folder {number} is not served; there are {len(self._roots)}"
                if self._roots
                else "no folder is served; start with --folder DIR"
            )
        return self._roots[number]

    @staticmethod
    def _inside(root: Path, below: str) -> Path:
        """Return a path below ``root``, links followed.  Raises MissingError for one that leads outside."""
        is_plain = len(below) <= LONGEST_PATH and "\0" not in below and not os.path.isabs(below)
        try:
            found = (root / below).resolve() if is_plain else root.parent
        except (OSError, ValueError, RuntimeError):  # a loop of links, a name that is too long, no UTF-8
            found = root.parent
        if not found.is_relative_to(root):
            raise MissingError(f"{excerpt(below)}: is not below an allowed folder")
        return found
