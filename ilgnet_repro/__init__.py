"""Caffe nets on PyTorch with Caffe's own numbers; ILGNet is the worked proof."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .conversion.convert import convert
    from .conversion.load import load
    from .fastnet.net import fast
    from .loading import load_net
    from .net import CaffeNet
    from .scoring import score

# Imported when first used, so that `ilgnet --help` does not wait for torch.
_EXPORTS = {
    "CaffeNet": "net",
    "convert": "conversion.convert",
    "fast": "fastnet.net",
    "load": "conversion.load",
    "load_net": "loading",
    "score": "scoring",
}

__all__ = ["CaffeNet", "__version__", "convert", "fast", "load", "load_net", "score"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
