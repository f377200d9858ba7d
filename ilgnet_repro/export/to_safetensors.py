"""The format safetensors: every blob, the net's text, and what is known of it; `ir.load` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.load import load_caffe
from ..runtime.net_file import MEAN_TENSOR
from ..runtime.runnable import Runnable
from ..runtime.safetensors_file import write_safetensors
from .formats import Format
from .saving import Saving, dense_notes, stored_tensors


def write(saving: Saving, path: Path) -> list[Path]:
    """Write one file; quantized dense weights stay quantized."""
    tensors = stored_tensors(saving)
    how = saving.about.preprocessing
    if how is not None and how.mean_image is not None:
        tensors[MEAN_TENSOR] = how.mean_image
    write_safetensors(path, tensors, saving.metadata(), progress=saving.progress)
    return [path]


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Load what was written."""
    return load_caffe(paths[0])


FORMAT = Format("safetensors", ".safetensors", write, reopen, options=("precision",), notes=dense_notes)
