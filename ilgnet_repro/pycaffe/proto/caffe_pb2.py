"""The messages and enums of `caffe.proto`, those of schema/caffe_pb2 under pycaffe's name for the module.

Text of forks is typed too: their fields have private numbers, which no binary file of another Caffe has.
"""

from __future__ import annotations

from typing import Any

from ...schema import caffe_pb2 as _schema
from ...schema.caffe_pb2 import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Return a descriptor that a generated module also holds, such as ``_LAYERPARAMETER``."""
    return getattr(_schema, name)
