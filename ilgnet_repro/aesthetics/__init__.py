"""The study: ILGNet, its ablations and releases, AVA, partitions, test protocols, verdicts and reports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import RunResult
    from .testing import test

# Imported on first use, so that reading lists and releases does not wait for torch.
_EXPORTS = {"RunResult": "results", "test": "testing"}

__all__ = ["RunResult", "test"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
