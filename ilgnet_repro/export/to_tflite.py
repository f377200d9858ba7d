"""The format tflite: LiteRT's (TensorFlow Lite's) file, which litert-torch makes of the exported net."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import IlgnetError, excerpt
from ..files import json_text, utf8_path
from ..runtime.pt2_file import METADATA_FILE
from ..runtime.python_names import argument_name
from ..runtime.runnable import FileNet, Runnable
from ..runtime.seeded_inputs import draw_inputs
from . import to_pt2
from .fixed_sizes import own_inputs, size_note
from .formats import Format
from .saving import Saving
from .verify import verify_files


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.tflite``, inputs and outputs by name, sizes fixed; what is known of the net is in a zip archive at its end.

    That is where TensorFlow Lite's own metadata tools put files; interpreters do not read it.
    """
    hidden = io.StringIO()  # it shows its progress, also where it is imported
    try:
        with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
            litert_torch = import_module("litert_torch")
    except ImportError as error:
        raise IlgnetError(
            "litert-torch is not installed, so tflite files cannot be written; pip install 'ilgnet_repro[tflite]'"
        ) from error
    net = saving.net
    program = to_pt2.export(net, open_batch=False)
    shapes = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
    inputs = {argument_name(name): value for name, value in draw_inputs(net.plan, net.graph, shapes).items()}
    try:
        with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden), torch.no_grad():
            content = litert_torch.convert(program.module(), sample_kwargs=inputs).model_content()
    except Exception as error:  # of torch, of MLIR, and its own
        reason = excerpt(" ".join(str(error).split()), 200)
        raise IlgnetError(
            f"net {net.graph.name!r}: litert-torch cannot convert it ({type(error).__name__}: {reason}); use to='onnx'",
            option="to",
        ) from error
    path.write_bytes(content)
    entry = zipfile.ZipInfo(METADATA_FILE)  # dated 1980: the same net gives the same bytes
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, json_text(saving.metadata()))
    # Always: litert-torch 0.10 converts the indices of max pooling to zeros, and says nothing.
    check = verify_files(FORMAT, saving, [path])
    if check.differs:
        raise IlgnetError(
            f"net {net.graph.name!r}: what litert-torch makes of it computes output {check.blob!r} otherwise than the "
            f"net, {check.how}; use to='onnx'",
            option="to",
        )
    return [path]


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Run what was written in LiteRT's interpreter."""
    net = saving.net
    inputs = net.inputs_for(net.outputs)
    interpreter = import_module("ai_edge_litert.interpreter")
    with utf8_path(paths[0]) as name:
        runner = interpreter.Interpreter(model_path=name).get_signature_runner()

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        found = runner(**{argument_name(name): given[name].numpy() for name in inputs})
        return {name: torch.from_numpy(np.array(found[name])) for name in net.outputs}

    return FileNet(paths[0].name, "LiteRT", saving.about, inputs, net.outputs, {}, run)


def notes(saving: Saving) -> tuple[str, ...]:
    """Return what a tflite file fixes."""
    return (f"tflite: {size_note(saving)}",)


FORMAT = Format("tflite", ".tflite", write, reopen, feed=own_inputs, notes=notes)
