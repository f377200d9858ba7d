"""The format onnx: one file for any runtime, with an open batch and, on request, open height and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..files import json_text
from ..runtime.onnx_net import open_net
from ..runtime.runnable import Runnable
from ..runtime.seeded_inputs import SEED
from .formats import Format
from .onnx_file import write_onnx
from .onnx_graph import OnnxModel, Prepare, plan_onnx
from .onnx_half import compute_in_float16
from .onnx_opsets import DEFAULT
from .onnx_preprocess import IMAGE_INPUT, add_preprocessing, find_image_input
from .open_shapes import size_notes
from .saving import Saving, dense_notes

_IMAGE_SIZE = (240, 320)


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.onnx``, and past 2 GB ``STEM.onnx.data``."""
    return write_onnx(path, _model(saving), progress=saving.progress)


def _model(saving: Saving) -> OnnxModel:
    net, options = saving.net, saving.options
    prepare = None
    if options.with_preprocessing:
        shapes = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
        how, blob = find_image_input(shapes, saving.about.preprocessing, net.name)
        prepare = Prepare(blob, lambda writer: add_preprocessing(writer, blob, how, options.input_order))
    model = plan_onnx(
        net, metadata=_metadata(saving), dynamic_size=options.dynamic_size,
        fast_lrn=options.fast_lrn, prepare=prepare, open_batch=options.batch is None,
        opset=options.opset or DEFAULT,
    )  # fmt: skip
    return model if saving.half is None else compute_in_float16(model, saving.half.layers)


def _metadata(saving: Saving) -> dict[str, str]:
    """Return the file's metadata, and the image input of a graph with preprocessing."""
    if not saving.options.with_preprocessing:
        return saving.metadata()
    image = {"name": IMAGE_INPUT, "type": "uint8", "layout": "NHWC", "order": saving.options.input_order}
    return {**saving.metadata(), "picture": json_text(image)}


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Open what was written in ONNX Runtime.  Raises IlgnetError where that is not installed."""
    return open_net(paths[0])


def prepared_inputs(
    saving: Saving, inputs: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return seeded images for a graph with preprocessing, and the same inputs as the net takes them."""
    if not saving.options.with_preprocessing:
        return dict(inputs), dict(inputs)
    net = saving.net
    shapes = {name: net.shapes[name] for name in inputs}
    how, blob = find_image_input(shapes, saving.about.preprocessing, net.name)
    size = how.mean_image.shape[1:] if how.mean_image is not None and how.resize is None else _IMAGE_SIZE
    size = tuple(max(side, least) for side, least in zip(size, how.size, strict=True))
    pixels = np.random.default_rng(SEED).integers(0, 256, (len(inputs[blob]), *size, 3), dtype=np.uint8)
    ordered = pixels if saving.options.input_order == "BGR" else pixels[..., ::-1]
    made = torch.from_numpy(np.stack([how(np.ascontiguousarray(image)) for image in ordered]))
    others = {name: value for name, value in inputs.items() if name != blob}
    return {**others, IMAGE_INPUT: torch.from_numpy(pixels)}, {**inputs, blob: made}


def notes(saving: Saving) -> tuple[str, ...]:
    """Return what the file lacks: quantized weights, and sizes between those that the net takes."""
    sizes = size_notes(saving.net) if saving.options.dynamic_size else ()
    arithmetic = saving.half.notes if saving.half is not None else ()
    return (*dense_notes(saving), *arithmetic, *sizes)


FORMAT = Format(
    "onnx", ".onnx", write, reopen,
    options=("precision", "dynamic_size", "with_preprocessing", "fast_lrn", "opset", "arithmetic"), feed=prepared_inputs,
    notes=notes,
)  # fmt: skip
