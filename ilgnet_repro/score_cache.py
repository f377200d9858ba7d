"""Kept scores: by the content of the image and the model, so that a run resumes and a second one takes no net."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache as cached
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from .errors import DataError, FormatError, IlgnetError
from .files import file_sha256, json_text, parse_json
from .reading.parallel import ordered_map
from .reading.photos import read_file
from .scored import Score

if TYPE_CHECKING:
    from .scoring import Prepared, Scorer

_MARK = 0x494C4753  # of SQLite's header: "ILGS"
_FORMAT = 1
_SETTLED = 2_000_000_000  # nanoseconds after which a file's time would show a later change
_LARGEST = 1 << 20  # bytes of a record that is kept
_LONGEST = 1 << 26  # bytes of any value that is read
_DIGEST = re.compile("[0-9a-f]{64}")
_FACTS = ("labels", "notes")  # of a model: lists of texts
_TABLES = """
create table if not exists files (path text primary key, size int, time int, inode int, digest text) without rowid;
create table if not exists scores (model text, digest text, record text, primary key (model, digest)) without rowid;
create table if not exists models (model text primary key, facts text) without rowid;
"""
Stamp = tuple[int, int, int]


class ScoreCache:
    """A file of kept scores, used with ``with``.  Raises IlgnetError for a file that is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._check_plain()
        with self._errors():
            self._base = sqlite3.connect(self.path, timeout=60)
            self._base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
            found = self._base.execute("pragma application_id").fetchone()[0]
            version = self._base.execute("pragma user_version").fetchone()[0]
            # A run that was killed at its very beginning leaves a database without tables.
            is_new = (found, version) == (0, 0) and not self._base.execute(
                "select 1 from sqlite_master"
            ).fetchone()
        if not is_new and (found, version) != (_MARK, _FORMAT):
            self._base.close()
            raise IlgnetError(
                f"{path}: is not a cache of scores of this version; give another name", option="cache"
            )
        with self._errors():
            if is_new:
                self._base.executescript(
                    f"begin; pragma application_id = {_MARK}; pragma user_version = {_FORMAT}; {_TABLES} commit;"
                )
            if _schema(self._base) != _own_schema():  # a view or a trigger runs what its author wrote
                self._base.close()
                raise IlgnetError(
                    f"{path}: has other tables than a cache of scores; give another name", option="cache"
                )
            self._base.execute("pragma journal_mode = wal")
            self._base.execute("pragma synchronous = normal")
        self._saved = time.monotonic()

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors():
            self._base.commit()
            self._base.close()

    def _check_plain(self) -> None:
        """Refuse what is there and no plain file: SQLite would write to a device, and beside it."""
        try:
            is_plain = stat.S_ISREG(os.stat(self.path).st_mode)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise IlgnetError(
                f"{self.path}: cannot be used as a cache ({reason}); give another name", option="cache"
            ) from error
        if not is_plain:
            raise IlgnetError(f"{self.path}: is not a plain file; give another name", option="cache")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IlgnetError(
                f"{self.path}: cannot be used as a cache ({error}); give another name"
            ) from error

    def _one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        with self._errors():
            found: tuple[Any, ...] | None = self._base.execute(query, values).fetchone()
        return found

    def _store(self, query: str, *values: Any) -> None:
        with self._errors():
            self._base.execute(query, values)
            if time.monotonic() - self._saved > 1:
                self._base.commit()
                self._saved = time.monotonic()

    def digest(self, path: str) -> str | None:
        """Return the kept digest of a file whose size, time and place are those it had."""
        stamp = file_stamp(path)
        found = self._one("select size, time, inode, digest from files where path = ?", _key(path))
        if stamp is None or found is None or found[:3] != stamp:
            return None
        digest = found[3]
        return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None

    def keep_digest(self, path: str, digest: str, stamp: Stamp | None) -> None:
        """Keep the digest of a file that had this stamp before it was read."""
        if stamp is not None and time.time_ns() - stamp[1] > _SETTLED:
            self._store("insert or replace into files values (?, ?, ?, ?, ?)", _key(path), *stamp, digest)

    def file_digest(self, path: str) -> str:
        """Return the digest of a file, from the cache where the file is as it was."""
        if (kept := self.digest(path)) is not None:
            return kept
        stamp = file_stamp(path)
        try:
            found = file_sha256(path)
        except DataError as error:
            raise DataError(f"{error}; check the path") from error
        self.keep_digest(path, found, stamp)
        return found

    def score(self, model: str, digest: str, path: str) -> Score | None:
        """Return the kept score of an image; None also for a record that is damaged: it is computed again."""
        found = self._one("select record from scores where model = ? and digest = ?", model, digest)
        if found is None:
            return None
        try:
            score = Score.from_json(found[0], path)
        except FormatError:
            return None
        return replace(score, error=f"{path}{score.error}") if score.error else score

    def kept(self, model: str, path: str) -> Score | None:
        """Return the kept score of a file that is as it was, found without reading it."""
        digest = self.digest(path)
        return None if digest is None else self.score(model, digest, path)

    def keep(self, model: str, digest: str, score: Score) -> None:
        """Keep the score of an image, unless it is very large, or why its content has none."""
        if score.error:
            if not score.error.startswith(f"{score.path}: ") or "pip install" in score.error:
                return
            score = replace(score, error=score.error.removeprefix(score.path))
        if len(record := score.to_json()) <= _LARGEST:
            self._store("insert or replace into scores values (?, ?, ?)", model, digest, record)

    def facts(self, model: str) -> dict[str, list[str]] | None:
        """Return what is kept of a model: its ``labels`` and ``notes``.

        Where that is absent or damaged, scores that are kept of the model are removed: their classes would have no names.
        """
        found = self._one("select facts from models where model = ?", model)
        facts = None if found is None else _facts(found[0])
        if facts is None:
            self._store("delete from scores where model = ?", model)
        return facts

    def keep_facts(self, model: str, facts: dict[str, list[str]]) -> None:
        """Keep facts of a model."""
        self._store("insert or replace into models values (?, ?)", model, json_text(facts))


def _schema(base: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(base.execute("select type, name, tbl_name, sql from sqlite_master"))


@cached
def _own_schema() -> set[tuple[str, ...]]:
    base = sqlite3.connect(":memory:")
    base.executescript(_TABLES)
    found = _schema(base)
    base.close()
    return found


def _facts(text: Any) -> dict[str, list[str]] | None:
    """Read what `ScoreCache.keep_facts` wrote; None for anything else."""
    try:
        kept = parse_json(text)
        facts = {name: kept[name] for name in _FACTS}
    except (ValueError, TypeError, KeyError):
        return None
    lists = facts.values()
    is_right = all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists)
    return facts if is_right else None


def model_key(cache: ScoreCache, files: Iterable[str | None], facts: dict[str, Any]) -> str:
    """Return the key of a model: of its files' contents and of all options that change a score."""
    contents = [None if path is None else cache.file_digest(path) for path in files]
    return hashlib.sha256(json_text([contents, facts], sort_keys=True).encode()).hexdigest()


def score_cached(
    paths: Iterable[str],
    cache: ScoreCache,
    model: str,
    make: Callable[[], Scorer],
    workers: int | None = None,
) -> Iterator[Score]:
    """Yield the record of each image in order, a kept one where there is one; ``make`` is called for the first other."""
    looked_up = ((path, cache.kept(model, path)) for path in paths)
    for number, (path, kept) in enumerate(looked_up):
        if kept is None:  # from here on files are read, on threads
            yield from _score_others(chain([(path, None)], looked_up), number, cache, model, make, workers)
            return
        yield kept


def _score_others(
    looked_up: Iterable[tuple[str, Score | None]],
    number: int,
    cache: ScoreCache,
    model: str,
    make: Callable[[], Scorer],
    workers: int | None,
) -> Iterator[Score]:
    """As `score_cached`, from this number on, of paths with the records that were found without reading them."""
    made: list[Scorer] = []
    digests: dict[str, str] = {}

    def read(item: tuple[str, Score | None]) -> tuple[str, Score | None, bytes, str, Stamp | None]:
        path, kept = item
        if kept is not None:
            return path, kept, b"", "", None
        stamp = file_stamp(path)
        try:
            data = read_file(path)
        except DataError as error:
            return path, Score(path, {}, error=str(error)), b"", "", None
        return path, None, data, hashlib.sha256(data).hexdigest(), stamp

    def found_by_content() -> Iterator[tuple[str, Score | None, bytes]]:
        for path, kept, data, digest, stamp in ordered_map(read, looked_up, workers, 2):
            if kept is None:
                cache.keep_digest(path, digest, stamp)
                kept = cache.score(model, digest, path)
                if kept is None:
                    digests[path] = digest
                    if not made:
                        made.append(make())
            yield path, kept, data

    def prepare(item: tuple[str, Score | None, bytes]) -> Prepared | Score:
        path, kept, data = item
        return kept if kept is not None else made[0].read_in_turn(path, path, data)

    prepared = iter(ordered_map(prepare, found_by_content(), workers, 2))
    for first in prepared:
        if not made and isinstance(first, Score):
            yield first
            number += 1
            continue
        for score in made[0].score_read(chain([first], prepared), count(number)):
            digest = digests.pop(score.path, None)
            if digest is not None:
                cache.keep(model, digest, score)
            yield score


def _key(path: str) -> str:
    return os.path.abspath(path).encode(errors="surrogateescape").hex()


def file_stamp(path: str) -> Stamp | None:
    """Return what shows that a file was changed: its size, time and place; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
