"""LMDB files open for reading: one per process and path, shared by its readers."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from .lmdb_pages import PageFile

_open_environments: WeakValueDictionary[Path, PageFile] = WeakValueDictionary()


def open_environment(path: Path) -> PageFile:
    """The open file of the database at an absolute path, opened if no reader of this process uses it."""
    environment = _open_environments.get(path) or PageFile(path)
    _open_environments[path] = environment
    return environment
