"""A model that is not a Caffe net as torch.export's archive, which `torch.export.load` opens without this package."""

from __future__ import annotations

from pathlib import Path

from ..runtime.model import Model
from .model_program import trace
from .model_safetensors import metadata
from .pt2_program import write_program
from .saving import Options, Progress


def write(model: Model, path: Path, options: Options, progress: Progress = None) -> list[Path]:
    """Write one file with the metadata of the model's safetensors file; its batch is open unless the options state one."""
    return write_program(path, trace(model, options.batch), metadata(model))
