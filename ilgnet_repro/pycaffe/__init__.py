"""pycaffe: the Python interface of Caffe 1.0, for scripts that say `import caffe`."""

from __future__ import annotations

from ..version import __version__
from . import alias
from .modes import (
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from .net import Net
from .phases import TEST, TRAIN
from .python_layer import Layer

__all__ = [
    "TEST",
    "TRAIN",
    "Layer",
    "Net",
    "__version__",
    "has_nccl",
    "init_log",
    "layer_type_list",
    "log",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
]

alias.answer_submodules()
