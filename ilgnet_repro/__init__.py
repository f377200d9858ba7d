"""Caffe nets on PyTorch with Caffe's own numbers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .export.convert import convert
    from .export.save import save
    from .layers.support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, SourceCode
    from .layers.support.registry import register_layer
    from .process import tune_process
    from .runtime.fast import fast
    from .runtime.load import load, load_net
    from .runtime.net import CaffeNet
    from .scoring import score

# Imported when first used, so that `ilgnet --help` does not wait for torch.
_EXPORTS = {
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
    "Layer",
    "LayerPlan",
    "OnnxGraph",
    "SourceCode",
    "__version__",
    "convert",
    "fast",
    "load",
    "load_net",
    "register_layer",
    "save",
    "score",
    "tune_process",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
