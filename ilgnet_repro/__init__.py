"""Caffe nets on PyTorch with Caffe's own numbers."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import aesthetics, errors, zoo
    from .engines.fast import FastNet, fast
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
        ValuesError,
        WeightsError,
    )
    from .export.convert import convert
    from .export.save import save
    from .features import Features, extract_features
    from .layers.python_layer import PythonLayer, register_python_layer
    from .layers.support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, SourceCode
    from .layers.support.registry import register_layer
    from .process import tune_process
    from .reading.preprocessing import Preprocessing
    from .runtime.load import load, load_net
    from .runtime.net import CaffeNet
    from .runtime.runnable import FileNet, Runnable
    from .scored import Score
    from .scoring import score
    from .training import Solved, Solver, batches, solve

# Imported on first use, so that `ilgnet --help` does not wait for torch.
_MODULES = ("aesthetics", "errors", "zoo")
_EXPORTS = {
    name: module
    for module, names in {
        "engines.fast": ("FastNet", "fast"),
        "errors": (
            "DataError", "DivergedError", "DownloadError", "FormatError", "GraphError", "IlgnetError", "LayerError",
            "ParseError", "SolverError", "ValuesError", "WeightsError",
        ),
        "export.convert": ("convert",),
        "export.save": ("save",),
        "features": ("Features", "extract_features"),
        "layers.python_layer": ("PythonLayer", "register_python_layer"),
        "layers.support.base": ("BlobSpec", "Layer", "LayerPlan", "OnnxGraph", "SourceCode"),
        "layers.support.registry": ("register_layer",),
        "process": ("tune_process",),
        "reading.preprocessing": ("Preprocessing",),
        "runtime.load": ("load", "load_net"),
        "runtime.net": ("CaffeNet",),
        "runtime.runnable": ("FileNet", "Runnable"),
        "scored": ("Score",),
        "scoring": ("score",),
        "training": ("Solved", "Solver", "batches", "solve"),
    }.items()
    for name in names
}  # fmt: skip

__all__ = [
    "BlobSpec",
    "CaffeNet",
    "DataError",
    "DivergedError",
    "DownloadError",
    "FastNet",
    "Features",
    "FileNet",
    "FormatError",
    "GraphError",
    "IlgnetError",
    "Layer",
    "LayerError",
    "LayerPlan",
    "OnnxGraph",
    "ParseError",
    "Preprocessing",
    "PythonLayer",
    "Runnable",
    "Score",
    "Solved",
    "Solver",
    "SolverError",
    "SourceCode",
    "ValuesError",
    "WeightsError",
    "__version__",
    "batches",
    "convert",
    "errors",
    "extract_features",
    "fast",
    "load",
    "load_net",
    "register_layer",
    "register_python_layer",
    "save",
    "score",
    "solve",
    "tune_process",
    "zoo",
]
if find_spec(f"{__name__}.aesthetics") is not None:  # the core runs without the study
    __all__ += ["aesthetics"]


def __getattr__(name: str) -> Any:
    if name in _MODULES and name in __all__:
        return import_module(f".{name}", __name__)
    if name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
