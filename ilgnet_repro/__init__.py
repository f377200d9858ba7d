"""Caffe nets on PyTorch with Caffe's own numbers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import errors
    from .errors import (
        DataError,
        DivergedError,
        DownloadError,
        FormatError,
        GraphError,
        IlgnetError,
        LayerError,
        ParseError,
        SolverError,
        WeightsError,
    )
    from .export.convert import convert
    from .export.save import save
    from .layers.support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, SourceCode
    from .layers.support.registry import register_layer
    from .process import tune_process
    from .runtime.fast import fast
    from .runtime.load import load, load_net
    from .runtime.net import CaffeNet
    from .scoring import score

_ERRORS = (
    "DataError", "DivergedError", "DownloadError", "FormatError", "GraphError", "IlgnetError", "LayerError",
    "ParseError", "SolverError", "WeightsError",
)  # fmt: skip
# Imported on first use, so that `ilgnet --help` does not wait for torch.
_EXPORTS = {
    **dict.fromkeys(_ERRORS, "errors"),
    "BlobSpec": "layers.support.base",
    "CaffeNet": "runtime.net",
    "Layer": "layers.support.base",
    "LayerPlan": "layers.support.base",
    "OnnxGraph": "layers.support.base",
    "SourceCode": "layers.support.base",
    "convert": "export.convert",
    "fast": "runtime.fast",
    "load": "runtime.load",
    "load_net": "runtime.load",
    "register_layer": "layers.support.registry",
    "save": "export.save",
    "score": "scoring",
    "tune_process": "process",
}

__all__ = [
    "BlobSpec",
    "CaffeNet",
    "DataError",
    "DivergedError",
    "DownloadError",
    "FormatError",
    "GraphError",
    "IlgnetError",
    "Layer",
    "LayerError",
    "LayerPlan",
    "OnnxGraph",
    "ParseError",
    "SolverError",
    "SourceCode",
    "WeightsError",
    "__version__",
    "convert",
    "errors",
    "fast",
    "load",
    "load_net",
    "register_layer",
    "save",
    "score",
    "tune_process",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module(f".{name}", __name__)
    if name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
