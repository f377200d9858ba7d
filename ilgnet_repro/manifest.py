"""The manifests (``models.toml``): known models, and the nets and prototxts of packages built on this one."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import import_module, resources
from typing import Any

# The core's manifest, and those of optional packages, which are read as files and not imported by name.
_FOLDERS = (".", "aesthetics")


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    """Return the contents of every ``models.toml``, the core's first."""
    found = []
    for folder in _FOLDERS:
        path = resources.files(__package__).joinpath(folder, "models.toml")
        if path.is_file():
            found.append(tomllib.loads(path.read_text(encoding="utf-8")))
    return tuple(found)


def listed(table: str) -> dict[str, Any]:
    """Return the entries of a table from all manifests."""
    return {key: value for manifest in manifests() for key, value in manifest.get(table, {}).items()}


def model_rows() -> tuple[dict[str, Any], ...]:
    """Return the rows of known models, as they are in the manifests."""
    return tuple(row for manifest in manifests() for row in manifest.get("model", ()))


def resolve(function: str) -> Any:
    """Import and return the function named ``module:function``."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)
