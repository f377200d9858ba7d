"""`save`: writes a net to files, all of them or none, with what is still known of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from ..about import About
from ..errors import IlgnetError
from ..files import staged_results
from ..runtime.drawn import about_now
from ..runtime.load import open_weights
from ..runtime.model import Model
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet, expect_caffe_net
from ..runtime.origin import Origin
from ..runtime.runnable import FileNet
from ..runtime.weights import take_weights
from ..signatures import shows_options
from .coreml_package import is_package
from .formats import check_options, format_of, read_options
from .model_formats import find_writer
from .publish import publish
from .saving import Options, Progress, SaveOptions, make_saving

PathLike = str | os.PathLike[str]


@shows_options(SaveOptions, Options)
def save(
    net: CaffeNet | FileNet | Model,
    path: PathLike,
    *,
    progress: Progress = None,
    **options: Unpack[SaveOptions],
) -> tuple[Path, ...]:
    """Save a net in its present state in the format of the suffix of ``path``; return the paths written.

    ``.safetensors`` (all that `load` needs), ``.caffemodel`` and ``.caffemodel.h5`` (with the prototxt beside it),
    ``.onnx``, ``.pt2``, ``.tflite``, ``.py`` and OpenVINO's ``.xml`` (both with their weights beside them), and Core ML's
    ``.mlpackage``, a folder.
    Files are complete or absent; the file that ``net`` is mapped from may be replaced.

    ``outputs`` and ``inputs`` are blobs between which the net is cut: only what computes those outputs is written, and
    those inputs are fed instead of computed (`caffe.cut.cut`); ``batch`` fixes the batch, and ``states`` makes the
    states of RNN and LSTM inputs and outputs.
    ``fold`` multiplies BatchNorm and the like into the layers before them;
    ``precision`` is that of dense weights, float16 that of all weights (half_precision.py), and ``arithmetic`` that of an
    ONNX file's layers (half_arithmetic.py); ``dynamic_size`` leaves
    height and width open; ``with_preprocessing`` makes the input uint8 images in ``input_order``; ``fast_lrn`` writes LRN
    as a convolution; ``opset`` is that of an ONNX file.  Raises IlgnetError where the format cannot store the net, by
    layer, and where a different net's prototxt would be replaced.

    A `Model`, which is not a Caffe net, is saved as ``.safetensors``, ``.onnx`` or ``.pt2`` (model_formats.py).
    """
    target = Path(path)
    format_, chosen = format_of(target), read_options(options)
    if isinstance(net, Model):
        write_model = find_writer(net, format_.name, chosen)
        _check_place(target)
        with staged_results(target.parent, target.name) as stage, as_loaded(net):
            return publish(write_model(stage / target.name, progress), target.parent)
    check_options([format_], chosen)
    _check_place(target)
    net = expect_caffe_net(net, "saved")
    saving = make_saving(net, chosen, progress, present_about(net))
    with staged_results(target.parent, target.name) as stage, as_loaded(net):
        written = format_.write(saving, stage / target.name)
        return publish(written, target.parent)


def _check_place(target: Path) -> None:
    if not target.parent.is_dir():
        raise IlgnetError(f"{target.parent}: is not a folder; create it first")
    if target.is_dir() and not is_package(target):
        raise IlgnetError(f"{target}: is a folder; give a file's name")


def present_about(net: CaffeNet) -> About:
    """Return what is known of a net in its present state.

    If its weights have changed since loading, the file's digest and release no longer apply and are removed, and what
    they proved is marked as assumed.  Values are compared, because edits of `.data` change no version counter.
    """
    about = about_now(net)
    source = about.source
    if source is None or not (source.release or source.sha256) or _is_unchanged(net):
        return about
    return replace(
        about, source=replace(source, sha256=None, release=None).after("changed"),
        assumed=about.assumed or bool(about.model),
    )  # fmt: skip


def _is_unchanged(net: CaffeNet) -> bool:
    """Return whether every blob equals the one in the net's file, and that file is unchanged."""
    origin = net.origin
    if origin is None or Origin.of(origin.path) != origin:
        return False
    plan = net.plan
    try:
        layers = open_weights(origin.path).layers
        stored = take_weights(plan.blobs, layers, source=str(origin.path), owners=plan.owners)
    except IlgnetError:
        return False
    return all(
        np.array_equal(blob.detach().to("cpu", torch.float32).numpy(), array, equal_nan=True)
        for name, blobs in net.params.items()
        for blob, array in zip(blobs, stored[name], strict=True)
    )
