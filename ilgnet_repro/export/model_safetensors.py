"""A model that is not a Caffe net as safetensors: every tensor, its name and options, and what is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..runtime.model import Model
from ..runtime.model_file import model_metadata
from ..runtime.net_file import FORMAT, MEAN_TENSOR
from ..runtime.safetensors_file import write_safetensors
from ..version import __version__
from .saving import Options, Progress


def write(model: Model, path: Path, options: Options, progress: Progress = None) -> list[Path]:
    """Write one file, from which `load` makes the same model; weights of other types are stored as float32."""
    tensors: dict[str, np.ndarray | torch.Tensor] = {}
    for name, value in model.state_dict().items():
        tensors[name] = value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    how = model.about.preprocessing
    if how is not None and how.mean_image is not None:
        tensors[MEAN_TENSOR] = how.mean_image
    write_safetensors(path, tensors, metadata(model), progress=progress)
    return [path]


def metadata(model: Model) -> dict[str, str]:
    """Return the metadata of a model's files, in any format."""
    return {
        "ilgnet_repro.format": FORMAT,
        "ilgnet_repro.version": __version__,
        **model_metadata(model),
    }
