"""pycaffe: the Python interface of Caffe 1.0, for scripts that say `import caffe`."""

from __future__ import annotations

from . import alias
from .phases import TEST, TRAIN

__all__ = ["TEST", "TRAIN"]

alias.answer_submodules()
