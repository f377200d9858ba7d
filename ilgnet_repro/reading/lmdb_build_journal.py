"""What an unfinished LMDB build knows of itself, so that the next run can go on with it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..files import atomic_file, check_replaced, json_text, starts_with
from .image_list import ImageList


class BadRow(NamedTuple):
    """A row left out of a database, and why."""

    number: int
    path: str
    label: int
    reason: str


_BAD_HEAD = b"row\tpath\tlabel\treason\n"


def _is_temporary(path: Path) -> bool:
    """Whether a file of the folder is one that `atomic_file` had begun when the process was killed."""
    return re.fullmatch(r"\.(build\..+\.json|bad\..+\.jsonl)", path.name) is not None


def _is_left_over(path: Path) -> bool:
    """Whether a file is one that a build killed within its first or last step leaves behind."""
    if path.name != "bad.jsonl":
        return _is_temporary(path)
    row = path.read_text(encoding="utf-8").partition("\n")[0]
    return not row or row.startswith("[")


def bad_list(target: Path) -> Path:
    """Where a build names the rows it left out."""
    return target.with_name(target.name + ".bad.txt")


def read_bad_numbers(target: Path) -> frozenset[int]:
    """The numbers of the rows that ``TARGET.bad.txt`` names; none where there is no such file."""
    path = bad_list(target)
    if not path.is_file():
        return frozenset()
    numbers = (line.partition(b"\t")[0] for line in path.read_bytes().splitlines()[1:])
    return frozenset(int(number) for number in numbers if number.isdigit())


class Journal:
    """The folder ``TARGET.partial`` of one build: the database so far, what is being built, and the bad rows.

    Entering it makes or reopens the folder and keeps other processes out. Raises DataError if the target is
    there already, another process is building it, or the folder was begun with another list or flags.
    """

    def __init__(self, target: Path, images: ImageList, root: str, flags: Mapping[str, Any]) -> None:
        self.target = target
        self.folder = target.with_name(target.name + ".partial")
        self.database = self.folder / "db"
        self.list_name = os.fspath(images.path)
        self.plan = {"list": images.digest(), "rows": len(images), "root": root, **flags}
        self.bad: list[BadRow] = []
        self.whole = False
        self._lock = -1

    def __enter__(self) -> Journal:
        # Killed between the rename of the database and the end: nothing is left to do but to tidy up.
        self.whole = (
            self.target.exists() and (self.folder / "build.json").exists() and not self.database.exists()
        )
        if os.path.lexists(self.target) and not self.whole:
            raise DataError(f"{self.target}: is already there; remove it or give another name")
        check_replaced(
            bad_list(self.target), starts_with(_BAD_HEAD), "`ilgnet lmdb make`",
            "remove it or give another name for the database",
        )  # fmt: skip
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.target}: cannot be made ({error.strerror}); give another folder"
            ) from error
        self._lock_folder()
        try:
            self._agree()
            if self.whole:
                self.keep_bad_before(self.plan["rows"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _lock_folder(self) -> None:
        self._lock = -1
        try:
            import fcntl
        except (
            ImportError
        ):  # Windows has no advisory locks on folders; two builds at once are then unguarded.
            return
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.__exit__()
            raise DataError(
                f"{self.folder}: another process is building it; wait or give another name"
            ) from error

    def _agree(self) -> None:
        """Write the plan of a new build, or compare ours with that of the one begun."""
        path = self.folder / "build.json"
        if not path.exists() and all(map(_is_left_over, self.folder.iterdir())):
            with atomic_file(path, "w") as file:
                file.write(json_text(self.plan))
            return
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in self.plan if begun[name] != self.plan[name]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.folder}: is not an unfinished build of this program; remove it"
            ) from error
        if other:
            was = ", ".join(f"{name} {begun[name]!r}, now {self.plan[name]!r}" for name in other)
            raise DataError(f"{self.folder}: was begun with {was}; give the same again or remove the folder")

    def add_bad(self, row: BadRow) -> None:
        """Note a bad row. It is on file before any later row is stored, so a resumed run knows it."""
        self.bad.append(row)
        try:
            with open(self.folder / "bad.jsonl", "a", encoding="utf-8") as file:
                file.write(json_text(row) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space"
            ) from error

    def keep_bad_before(self, start: int) -> None:
        """Take over the bad rows numbered below ``start``; those after it, and a torn line, are met again."""
        self.bad = []
        path = self.folder / "bad.jsonl"
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and (row := BadRow(*json.loads(line))).number < start:
                    self.bad.append(row)
        with atomic_file(path, "w") as file:
            file.writelines(json_text(row) + "\n" for row in self.bad)

    def finish(self) -> None:
        """Write ``TARGET.bad.txt`` (or remove an old one) and give the database its name."""
        listed = bad_list(self.target)
        if self.bad:
            with atomic_file(listed, "wb") as file:
                file.write(_BAD_HEAD)
                file.writelines(os.fsencode("\t".join(map(str, row)) + "\n") for row in self.bad)
        else:
            listed.unlink(missing_ok=True)
        try:
            if not self.whole:
                os.rename(self.database, self.target)
            # The plan goes first: what a kill leaves behind is then no longer taken for a build.
            (self.folder / "build.json").unlink()
            (self.folder / "bad.jsonl").unlink(missing_ok=True)
            for left in filter(_is_temporary, self.folder.iterdir()):
                left.unlink()
            with suppress(OSError):  # what someone else put there stays
                os.rmdir(self.folder)
        except OSError as error:
            raise DataError(f"{self.target}: cannot be finished ({error.strerror}); run it again") from error
