"""The formats caffemodel and hdf5: Caffe's own files, each with its prototxt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..caffe.caffemodel import open_caffemodel, write_caffemodel
from ..caffe.hdf5_model import write_hdf5_model
from ..caffe.prototxt import format_message
from ..files import atomic_file
from ..runtime.net import float_arrays
from ..runtime.runnable import Runnable
from ..runtime.weights import take_weights
from .formats import Format
from .saving import Saving
from .stated_text import shape_notes, stated_text


def write(saving: Saving, path: Path) -> list[Path]:
    """Write the weights as Caffe 1.0 does, whatever generation was read, and the net's text beside them."""
    text, arrays = stated_text(saving.net), float_arrays(saving.net)
    write_caffemodel(path, text, arrays)
    return [path, _write_text(saving, path)]


def write_hdf5(saving: Saving, path: Path) -> list[Path]:
    """Write the weights in Caffe's HDF5 form, shared blobs once, and the net's text beside them."""
    write_hdf5_model(path, stated_text(saving.net), float_arrays(saving.net), owners=saving.net.plan.owners)
    return [path, _write_text(saving, path)]


def _write_text(saving: Saving, path: Path) -> Path:
    text = path.with_name(f"{path.name.removesuffix('.h5').removesuffix('.caffemodel')}.prototxt")
    with atomic_file(text, "w") as file:
        file.write(format_message(stated_text(saving.net)))
    return text


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Return the written net with the arrays of the file."""
    plan = saving.net.plan
    layers = open_caffemodel(paths[0]).layers
    return saving.with_arrays(take_weights(plan.blobs, layers, source=paths[0].name, owners=plan.owners))


def notes(saving: Saving) -> tuple[str, ...]:
    """Return how the prototxt differs from the net's text."""
    return shape_notes(saving.net)


FORMAT = Format("caffemodel", ".caffemodel", write, reopen, notes=notes)
HDF5 = Format("hdf5", ".caffemodel.h5", write_hdf5, reopen, notes=notes)
