"""A LevelDB of Caffe's, copied row by row into an LMDB."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import DataError
from ..files import check_output, writing
from ..staging import partial_folder
from .lmdb_write import MAX_KEY, LmdbWriter

_ROWS, _BYTES = 256, 32 << 20  # of a transaction
_TABLES = (".ldb", ".sst")


def convert_leveldb(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Copy keys and values of a LevelDB to a new LMDB, byte for byte; return the number of rows.

    Both sort their keys alike, so Caffe reads the same rows in the same order. The LevelDB is not changed. Raises
    DataError, in one line, if it cannot be read or has no rows, or the target exists or cannot be written.
    """
    source, target = Path(source), Path(target)
    if not (source / "CURRENT").is_file():
        raise DataError(f"{source}: is not a LevelDB (no CURRENT); give its folder")
    check_output(target, [source])
    if os.path.lexists(target):
        raise DataError(f"{target}: already exists; remove it or give another name")
    with writing(target, DataError), partial_folder(target) as partial:
        rows = _copy(source, partial)
        if os.path.lexists(target):  # a rename would replace an empty folder
            raise DataError(f"{target}: was created meanwhile; remove it or give another name")
        partial.rename(target)
    return rows


def _copy(source: Path, folder: Path) -> int:
    writer = LmdbWriter(folder)
    try:
        rows, batch, size = 0, list[tuple[bytes, bytes]](), 0
        for key, value in _rows(source):
            if not 0 < len(key) <= MAX_KEY:
                raise DataError(
                    f"{source}: row {rows} has a key of {len(key)} bytes; LMDB takes 1 to {MAX_KEY}"
                )
            batch.append((key, value))
            rows, size = rows + 1, size + len(value)
            if len(batch) == _ROWS or size >= _BYTES:
                writer.write(batch)
                batch, size = [], 0
        writer.write(batch)
    finally:
        writer.close()
    if not rows:
        raise DataError(f"{source}: has no rows; give the database that was trained on")
    return rows


def _rows(source: Path) -> Iterator[tuple[bytes, bytes]]:
    plyvel = _plyvel()
    try:
        with (
            _linked(source) as folder,
            plyvel.DB(str(folder), create_if_missing=False, paranoid_checks=True) as database,
            database.iterator(verify_checksums=True) as rows,
        ):
            yield from rows
    except plyvel.Error as error:
        what = os.fsdecode(error.args[0]) if error.args else type(error).__name__
        raise DataError(f"{source}: cannot be read as LevelDB ({what}); copy it again") from error


@contextmanager
def _linked(source: Path) -> Iterator[Path]:
    """A folder that LevelDB may open in place of ``source``: opening one rewrites its log and its list of files."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in source.iterdir():
            if path.suffix in _TABLES:
                (folder / path.name).symlink_to(path.resolve())
            elif path.name == "CURRENT" or path.name.startswith("MANIFEST-") or path.suffix == ".log":
                shutil.copyfile(path, folder / path.name)
        yield folder


def _plyvel() -> Any:
    try:
        import plyvel
    except ImportError as error:
        raise DataError("LevelDB needs plyvel; pip install 'ilgnet_repro[leveldb]'") from error
    return plyvel
