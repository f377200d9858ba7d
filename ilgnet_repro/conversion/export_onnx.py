"""``--to onnx``: one file a runtime takes without this package, the batch (and, asked for, the size) open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import strict_json
from ..errors import IlgnetError
from ..paths import utf8_path
from .drawn import SEED
from .job import PENDING, Job
from .onnx_file import write_onnx
from .onnx_preprocess import PICTURE, add_preprocessing, picture_input
from .onnx_writer import OnnxModel, Prepare, plan_onnx

_PICTURE_SIZE = (240, 320)


def to_onnx(job: Job) -> list[Path]:
    """``STEM.onnx``, and past 2 GB ``STEM.onnx.data``."""
    path = job.folder / f"{job.stem}.onnx"

    def late() -> dict[str, str]:
        return _metadata(job, job.metadata())

    return write_onnx(path, _model(job), late_metadata=late, progress=job.progress)


def _model(job: Job) -> OnnxModel:
    net, options = job.stored_net, job.options
    prepare = None
    if options.with_preprocessing:
        shapes = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
        how, blob = picture_input(shapes, job.preprocessing, net.graph.name)
        prepare = Prepare(blob, lambda writer: add_preprocessing(writer, blob, how, options.input_order))
    return plan_onnx(
        net, metadata=_metadata(job, job.metadata(PENDING)), dynamic_size=options.dynamic_size,
        fast_lrn=options.fast_lrn, prepare=prepare,
    )  # fmt: skip


def _metadata(job: Job, metadata: dict[str, str]) -> dict[str, str]:
    """The converted file's own metadata, and what the graph does to pictures itself."""
    if not job.options.with_preprocessing:
        return metadata
    picture = {"name": PICTURE, "type": "uint8", "layout": "NHWC", "order": job.options.input_order}
    return {**metadata, "picture": strict_json.dumps(picture)}


def run_onnx(paths: list[Path], inputs: Mapping[str, torch.Tensor], job: Job) -> dict[str, np.ndarray]:
    """Run a written file in ONNX Runtime.  Raises IlgnetError where that is not installed."""
    session = open_session(paths[0])
    names = {entry.name for entry in session.get_inputs()}
    given = {name: value.numpy() for name, value in inputs.items() if name in names}
    try:
        found = session.run(None, given)
    except Exception as error:  # its exceptions share no base class but Exception
        reason = str(error).strip().splitlines()[0]
        raise IlgnetError(f"{paths[0]}: ONNX Runtime cannot run it ({reason})") from error
    return dict(zip((entry.name for entry in session.get_outputs()), found, strict=True))


def open_session(model: Path | bytes, folder: Path | None = None):  # type: ignore[no-untyped-def]
    """An ONNX Runtime session on the CPU.  Raises IlgnetError where it cannot be opened."""
    try:
        import onnxruntime
    except ImportError as error:
        raise IlgnetError(
            "ONNX Runtime is not installed, so an ONNX file cannot be run; pip install 'ilgnet_repro[runtime]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    given: Any = model
    try:
        with ExitStack() as stack:
            if folder is not None:
                place = stack.enter_context(utf8_path(folder.resolve()))
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", place
                )
            if isinstance(model, Path):
                # By way of the folder: the weights of a model over 2 GB lie in a file beside it.
                given = os.path.join(stack.enter_context(utf8_path(model.parent)), model.name)
                given = stack.enter_context(utf8_path(given))
            return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class but Exception
        reason = str(error).strip().splitlines()[0]
        where = model if isinstance(model, Path) else "model"
        raise IlgnetError(f"{where}: ONNX Runtime cannot open it ({reason})") from error


def prepared_inputs(job: Job, inputs: Mapping[str, torch.Tensor]) -> tuple[dict, dict]:
    """Seeded pictures for a graph that prepares its own, and the inputs the net itself would be given."""
    net = job.stored_net
    shapes = {name: net.shapes[name] for name in inputs}
    how, blob = picture_input(shapes, job.preprocessing, net.graph.name)
    size = how.mean_image.shape[1:] if how.mean_image is not None and how.resize is None else _PICTURE_SIZE
    size = tuple(max(side, least) for side, least in zip(size, how.size, strict=True))
    pixels = np.random.default_rng(SEED).integers(0, 256, (len(inputs[blob]), *size, 3), dtype=np.uint8)
    turned = pixels if job.options.input_order == "BGR" else pixels[..., ::-1]
    made = torch.from_numpy(np.stack([how(np.ascontiguousarray(picture)) for picture in turned]))
    return {**inputs, PICTURE: torch.from_numpy(pixels)}, {**inputs, blob: made}
