"""The journal of an unfinished LMDB build, from which the next run resumes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..files import atomic_file, check_replaced, json_text, parse_json, starts_with
from ..staging import lock
from .image_list import ImageList


class BadRow(NamedTuple):
    """A row that was skipped, and why."""

    number: int
    path: str
    label: int
    reason: str


_BAD_HEAD = b"row\tpath\tlabel\treason\n"


def _is_temporary(path: Path) -> bool:
    """Whether a file of the folder is a temporary one that `atomic_file` left when the process was killed."""
    return re.fullmatch(r"\.(build\..+\.json|bad\..+\.jsonl)", path.name) is not None


def _is_left_over(path: Path) -> bool:
    """Whether a file is one that a build killed in its first or last step leaves."""
    if path.name != "bad.jsonl":
        return _is_temporary(path)
    row = path.read_bytes()[:1]
    return row in (b"", b"\n", b"[")


def bad_list(target: Path) -> Path:
    """The file that lists the rows a build skipped."""
    return target.with_name(target.name + ".bad.txt")


def read_bad_numbers(target: Path) -> frozenset[int]:
    """The numbers of the rows that ``TARGET.bad.txt`` lists; none if there is no such file."""
    path = bad_list(target)
    if not path.is_file():
        return frozenset()
    numbers = (line.partition(b"\t")[0] for line in path.read_bytes().splitlines()[1:])
    return frozenset(int(number) for number in numbers if number.isdigit())


class Journal:
    """The folder ``TARGET.partial`` of one build: the database so far, the build's arguments, and the bad rows.

    Entering it creates or reopens the folder and locks it. Raises DataError if the target exists, another
    process is building it, or the folder was begun with another list or flags.
    """

    def __init__(self, target: Path, images: ImageList, root: str, flags: Mapping[str, Any]) -> None:
        self.target = target
        self.folder = target.with_name(target.name + ".partial")
        self.database = self.folder / "db"
        self.list_name = os.fspath(images.path)
        self.plan = {"list": images.digest(), "rows": len(images), "root": root, **flags}
        self.bad: list[BadRow] = []
        self.complete = False
        self._lock = -1

    def __enter__(self) -> Journal:
        # Killed between the rename of the database and the end: only the clean-up is left.
        self.complete = (
            self.target.exists() and (self.folder / "build.json").exists() and not self.database.exists()
        )
        if os.path.lexists(self.target) and not self.complete:
            raise DataError(f"{self.target}: already exists; remove it or give another name")
        check_replaced(
            bad_list(self.target), starts_with(_BAD_HEAD), "`ilgnet lmdb make`",
            "remove it or give another name for the database",
        )  # fmt: skip
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.target}: cannot be created ({error.strerror}); give another folder"
            ) from error
        self._lock_folder()
        try:
            self._check_plan()
            if self.complete:
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
        if os.name == "nt":
            return  # Windows opens no folders: concurrent builds are not detected
        self._lock = os.open(self.folder, os.O_RDONLY)
        if lock(self._lock) is False:
            self.__exit__()
            raise DataError(f"{self.folder}: another process is building it; wait or give another name")

    def _check_plan(self) -> None:
        """Write the plan of a new build, or compare ours with that of the build to resume."""
        path = self.folder / "build.json"
        if not path.exists() and all(map(_is_left_over, self.folder.iterdir())):
            with atomic_file(path, "w") as file:
                file.write(json_text(self.plan))
            return
        try:
            begun = parse_json(path.read_text(encoding="utf-8"))
            changed = [name for name in self.plan if begun[name] != self.plan[name]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.folder}: is not an unfinished build by this program; remove it"
            ) from error
        if changed:
            was = ", ".join(f"{name} {begun[name]!r}, now {self.plan[name]!r}" for name in changed)
            raise DataError(
                f"{self.folder}: was begun with {was}; give the same arguments or remove the folder"
            )

    def add_bad(self, row: BadRow) -> None:
        """Record a bad row. It is on disk before any later row is stored, so a resumed run has it."""
        self.bad.append(row)
        try:
            with open(self.folder / "bad.jsonl", "a", encoding="utf-8") as file:
                file.write(json_text(row) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space"
            ) from error

    def keep_bad_before(self, start: int) -> None:
        """Keep the recorded bad rows below ``start``; later ones, and an incomplete line, will be read again."""
        self.bad = []
        path = self.folder / "bad.jsonl"
        if path.exists():
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
                try:
                    row = BadRow(*parse_json(line))
                except (ValueError, TypeError, RecursionError):
                    row = None
                if row is None or [type(value) for value in row] != [int, str, int, str]:
                    raise DataError(
                        f"{self.folder}: its bad.jsonl is damaged (line {number}); remove the folder"
                    )
                if row.number < start:
                    self.bad.append(row)
        with atomic_file(path, "w") as file:
            file.writelines(json_text(row) + "\n" for row in self.bad)

    def _write_bad_list(self) -> Path:
        """Write ``TARGET.bad.txt``, or remove an old one."""
        listed = bad_list(self.target)
        if self.bad:
            with atomic_file(listed, "wb") as file:
                file.write(_BAD_HEAD)
                file.writelines(os.fsencode("\t".join(map(str, row)) + "\n") for row in self.bad)
        else:
            listed.unlink(missing_ok=True)
        return listed

    def give_up(self) -> Path:
        """Write ``TARGET.bad.txt``, whose path is returned, and remove the database, which has no rows."""
        listed = self._write_bad_list()
        shutil.rmtree(self.database, ignore_errors=True)
        self._finish(rename=False)
        return listed

    def finish(self) -> None:
        """Write ``TARGET.bad.txt`` (or remove an old one) and rename the database to its final name."""
        self._write_bad_list()
        self._finish(rename=not self.complete)

    def _finish(self, *, rename: bool) -> None:
        try:
            if rename:
                os.rename(self.database, self.target)
            # The plan is removed first: what remains after a kill is then not taken for a build.
            (self.folder / "build.json").unlink()
            (self.folder / "bad.jsonl").unlink(missing_ok=True)
            for left in filter(_is_temporary, self.folder.iterdir()):
                left.unlink()
            with suppress(OSError):  # other files there are kept
                os.rmdir(self.folder)
        except OSError as error:
            raise DataError(
                f"{self.target}: cannot be finished ({error.strerror}); run the command again"
            ) from error
