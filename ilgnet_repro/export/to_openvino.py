"""The format openvino: the intermediate representation (``STEM.xml``, ``STEM.bin``) that OpenVINO makes of our ONNX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import IlgnetError
from ..files import utf8_path
from ..process import openvino_core
from ..runtime.runnable import FileNet, Runnable
from . import to_onnx
from .formats import Format
from .saving import Saving


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.xml`` and ``STEM.bin``, in the precision of the weights; what is known of the net is in ``rt_info``."""
    openvino = _openvino()
    made = path.with_name(f"{path.name}.onnx")
    files = to_onnx.write(saving, made)
    try:
        with utf8_path(path.parent) as folder:
            model = _guarded(path, lambda: openvino_core().read_model(f"{folder}/{made.name}"))
            _check_names(saving, model)
            for key, value in saving.metadata().items():
                model.set_rt_info(_without_controls(value), ["ilgnet_repro", key.replace(".", "_")])
            target = f"{folder}/{path.name}"
            _guarded(path, lambda: openvino.save_model(model, target, compress_to_fp16=False))
            model = None  # it maps the weights
    finally:
        for file in files:
            file.unlink()
    return [path, path.with_suffix(".bin")]


def _openvino() -> Any:
    try:
        return import_module("openvino")
    except ImportError as error:
        raise IlgnetError(
            "OpenVINO is not installed, so its files cannot be written; pip install 'ilgnet_repro[openvino]'"
        ) from error


def _guarded(path: Path, call: Any) -> Any:
    try:
        return call()
    except RuntimeError as error:  # all that OpenVINO raises
        reason = " ".join(str(error).split())[-200:]
        raise IlgnetError(
            f"{path}: OpenVINO cannot convert this net ({reason}); use to='onnx'", option="to"
        ) from error


def _check_names(saving: Saving, model: Any) -> None:
    """Raise IlgnetError where OpenVINO has lost the name of an input or output: it separates names by commas."""
    kept = {name for port in (*model.inputs, *model.outputs) for name in port.get_names()}
    for name in saving.net.outputs:
        if name not in kept:
            raise IlgnetError(
                f"net {saving.net.graph.name!r}: OpenVINO does not keep the name of output {name!r}; rename it, or "
                "use to='onnx'",
                option="to",
            )


def _without_controls(text: str) -> str:
    """Return a text that XML can hold."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Run what was written in OpenVINO on the CPU, in float32: its default is less on some processors."""
    net = saving.net
    with utf8_path(paths[0].parent) as folder:
        read = _guarded(paths[0], lambda: openvino_core().read_model(f"{folder}/{paths[0].name}"))
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = _guarded(paths[0], lambda: openvino_core().compile_model(read, "CPU", exact))

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        found = _guarded(paths[0], lambda: compiled({name: value.numpy() for name, value in given.items()}))
        return {name: torch.from_numpy(np.array(found[name])) for name in net.outputs}

    inputs = tuple(port.get_any_name() for port in read.inputs)
    return FileNet(paths[0].name, "OpenVINO", saving.about, inputs, net.outputs, {}, run)


FORMAT = Format(
    "openvino", ".xml", write, reopen, made_of="onnx",
    options=[option for option in to_onnx.FORMAT.options if option not in ("opset", "arithmetic")],
    feed=to_onnx.prepared_inputs, notes=to_onnx.FORMAT.notes,
)  # fmt: skip
