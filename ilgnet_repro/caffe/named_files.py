"""Finding the files that solvers, prototxts and solver states name: as written, as in Caffe, else beside the text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath

PathLike = str | os.PathLike[str]
READ_INSTEAD = "is read instead"


class NamedFiles:
    """Finds named files in ``root``, Caffe's working directory, and where they are missing beside the texts.

    A name is looked up as written, then beside each text (its folder and the name, last the bare file name), each
    also with the separators of Windows. ``notes`` says of each file found elsewhere than its name says where it was;
    those of `beside` add to the same list.
    """

    def __init__(self, root: PathLike = ".") -> None:
        self.root = Path(root)
        self.folders: tuple[Path, ...] = ()
        self.notes: list[str] = []

    @classmethod
    def of(cls, root: PathLike | NamedFiles) -> NamedFiles:
        """``root`` itself, or the files named relative to it."""
        return root if isinstance(root, NamedFiles) else cls(root)

    def beside(self, *texts: PathLike) -> NamedFiles:
        """The same, with names also looked up in the folders of ``texts``, those before the ones known so far."""
        files = NamedFiles(self.root)
        folders = [Path(text).parent for text in texts if os.fspath(text)]
        files.folders = tuple(dict.fromkeys([*folders, *self.folders]))
        files.notes = self.notes
        return files

    def find(self, name: str) -> Path:
        """The path of a named file or folder; that of the name as written if there is none anywhere."""
        path = self.first(name, Path.exists)
        if path != self.root / name:
            self.note(f"{name} does not exist; {path} {READ_INSTEAD}")
        return path

    def first(self, name: str, holds: Callable[[Path], bool]) -> Path:
        """The first place of a name at which ``holds`` is true; the name as written if there is none."""
        return next((path for path in self._places(name) if _is_true(holds, path)), self.root / name)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _places(self, name: str) -> Iterator[Path]:
        if not name:
            return
        forms = dict.fromkeys([name, name.replace("\\", "/")])
        yield from (place / form for form in forms for place in (self.root, *self.folders))
        bare = file_name(name)
        yield from (folder / bare for folder in self.folders if bare)


def file_name(path: str) -> str:
    """The last part of a path of any system: ``\\`` separates too, as in files written on Windows."""
    return PureWindowsPath(path).name


def _is_true(holds: Callable[[Path], bool], path: Path) -> bool:
    try:
        return holds(path)
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero byte
        return False
