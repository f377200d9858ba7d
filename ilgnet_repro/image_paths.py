"""The images that files, folders, patterns and lists name, one after the other, and what was skipped."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .caffe.expected_kind import expect
from .caffe.kinds import Kind, kind_of
from .errors import DataError
from .files import open_input

# What OpenCV decodes, and so data layers and databases take.
DECODED = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm", ".pnm")
)  # fmt: skip
SUFFIXES = DECODED | {".heic", ".heif"}
_LABEL = re.compile(r"\s+[-+]?\d+(?:\.\d*)?$")
_LISTS = (".txt", ".lst")
_PATTERN = re.compile(r"[*?\[]")


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_list_name(path: str) -> bool:
    """Whether a path among images may be a list of images, by its suffix."""
    return path.lower().endswith(_LISTS)


@dataclass
class ImagePaths:
    """Images by their paths, read again in each iteration; ``given`` are files, folders with their subfolders and patterns.

    ``lists`` are files with a path per line, which may be followed by a label; relative ones are below ``root``. A text
    among ``given`` whose name ends in .txt or .lst is such a list.
    In folders, files with other ``suffixes`` are left out, and what begins with a dot unless ``hidden``.
    ``skipped`` counts, after an iteration, the other files of each folder by their suffixes.
    """

    given: tuple[str, ...]
    lists: tuple[str, ...] = ()
    root: str = ""
    suffixes: frozenset[str] = SUFFIXES
    hidden: bool = True
    skipped: dict[str, Counter[str]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        self.skipped = {}
        for path in self.given:
            yield from self._of(path)
        for path in self.lists:
            yield from self._listed(path)

    def _of(self, path: str) -> Iterator[str]:
        if os.path.isdir(path):
            yield from self._in_folder(path, path)
        elif _PATTERN.search(path) and not os.path.lexists(path):
            found = sorted(glob.glob(path, recursive=True))
            if not found:
                raise DataError(f"{path}: matches no file; check the pattern")
            for one in found:
                yield from self._in_folder(one, one) if os.path.isdir(one) else (one,)
        elif is_list_name(path) and os.path.isfile(path) and kind_of(path) is Kind.TEXT:
            yield from self._listed(path)
        else:
            yield path

    def _in_folder(self, folder: str, top: str) -> Iterator[str]:
        """The images of a folder by name, then those of its subfolders; links to folders are not followed."""
        others = self.skipped.setdefault(top, Counter())
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
        folders = []
        for entry in listed:
            suffix = suffix_of(entry.name)
            if entry.name.startswith(".") and not self.hidden:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_dir():
                others["links to folders"] += 1
            elif entry.name.startswith(
                "._"
            ):  # macOS keeps a file's attributes there, on disks of other systems
                others["._*"] += 1
            elif suffix in self.suffixes:
                yield entry.path
            else:
                others[suffix or "no suffix"] += 1
        for inner in folders:
            yield from self._in_folder(inner, top)

    def _listed(self, path: str) -> Iterator[str]:
        expect(path, Kind.TEXT, what="a list of images")
        with open_input(path, "r", encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from self.of_lines(file)

    def of_lines(self, lines: Iterable[str]) -> Iterator[str]:
        """The paths of lines: each a path, or a path and a label; the separators of Windows are looked up as slashes too."""
        for line in lines:
            text = line.strip()
            if not text:
                continue
            bare = _LABEL.sub("", text)
            forms = dict.fromkeys((text, bare, text.replace("\\", "/"), bare.replace("\\", "/")))
            places = [os.path.join(self.root, form) for form in forms]
            there = None if len(places) == 1 else next(filter(os.path.lexists, places), None)
            yield there or os.path.join(self.root, bare)

    def notes(self) -> list[str]:
        """What was skipped, one line per folder."""
        return [
            f"{folder}: {counts.total():,} {_are_no_images(counts.total())} skipped "
            f"({', '.join(f'{suffix} {number:,}' for suffix, number in counts.most_common(8))})"
            for folder, counts in self.skipped.items()
            if counts
        ]


def _are_no_images(count: int) -> str:
    return "file that is not an image was" if count == 1 else "files that are not images were"
