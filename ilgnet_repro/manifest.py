"""What is listed as data: known models, and the nets and texts of packages that stand on this one."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import import_module, resources
from typing import Any

# The core's own list, and those of packages that may be absent: they are read as files, never imported by name.
_FOLDERS = (".", "aesthetics")


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    """The tables of every ``models.toml``, the core's first."""
    found = []
    for folder in _FOLDERS:
        path = resources.files(__package__).joinpath(folder, "models.toml")
        if path.is_file():
            found.append(tomllib.loads(path.read_text(encoding="utf-8")))
    return tuple(found)


def listed(table: str) -> dict[str, Any]:
    """The entries of a table, of every list together."""
    return {key: value for manifest in manifests() for key, value in manifest.get(table, {}).items()}


def named(function: str) -> Any:
    """The function that ``module:function`` names."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)
