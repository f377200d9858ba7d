"""LMDB files open for reading: one per process and path, shared by its readers."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from .lmdb_pages import PageFile

_open_environments: WeakValueDictionary[tuple[Path, str], PageFile] = WeakValueDictionary()


def open_environment(path: Path, name: str = "") -> PageFile:
    """The open file of a database at an absolute path, opened if no reader of this process uses it."""
    environment = _open_environments.get((path, name)) or PageFile(path, name)
    _open_environments[path, name] = environment
    return environment
