"""This package's safetensors files: a net's text, its weights, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..about import About
from ..caffe.graph import Node
from ..caffe.param_sharing import show_shape
from ..caffe.prototxt import parse_net
from ..errors import FormatError, WeightsError
from ..files import parse_json
from ..layers.support.base import Shape
from ..schema import caffe_pb2 as pb
from .net import CaffeNet
from .plan import NetPlan
from .quantize import DENSE, SCALE_SUFFIX, STORED, WEIGHT, QuantizedWeight, attach_quantized, output_axis
from .safetensors_file import TensorFile, open_safetensors

FORMAT = "1"
NET = "caffe.net"  # the key of the net's text
MODEL = "model"  # the key of a model's name and options (model_file.py)
MEAN_TENSOR = "preprocessing/mean_image"


@dataclass(frozen=True, eq=False)
class NetFile:
    """The content of such a file; its tensors are memory-mapped."""

    file: TensorFile
    text: pb.NetParameter
    phase: str
    input_shapes: Mapping[str, Shape]
    about: About

    def arrays(self, plan: NetPlan) -> dict[str, list[np.ndarray]]:
        """Return every blob as the plan needs it.  Raises WeightsError, by tensor, where the file does not fit."""
        return _arrays(self.file, plan)

    def attach_quantized(self, net: CaffeNet) -> None:
        """Attach the weights that the file stores quantized to the layers of ``net``."""
        for node in net.graph:
            if _is_quantized(self.file, node):
                attach_quantized(net.layer(node.name), _read_quantized(self.file, node))


def read_net_file(path: str | os.PathLike[str]) -> NetFile:
    """Read what `save` wrote as safetensors.

    Raises FormatError for any other file.
    """
    file = open_safetensors(path)
    if NET not in file.metadata and MODEL in file.metadata:
        raise FormatError(
            f"{path}: holds a model that is not a Caffe net, so it cannot be used as one; give Caffe weights, or a file "
            "that `ilgnet convert` wrote of them"
        )
    if NET not in file.metadata:
        raise FormatError(f"{path}: holds no Caffe net; only files written by `ilgnet convert` can be loaded")
    return net_file(file, file.metadata)


def net_file(file: TensorFile, metadata: Mapping[str, str]) -> NetFile:
    """Read the metadata of a file.  Raises FormatError where they are not as this package writes them."""
    try:
        shapes = {name: tuple(shape) for name, shape in parse_json(metadata["caffe.input_shapes"]).items()}
        phase = metadata["caffe.phase"]
        text = metadata[NET]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{file.path}: its metadata are not as `ilgnet convert` writes them ({error})"
        ) from error
    mean = file.tensors.get(MEAN_TENSOR)
    about = About.from_metadata(metadata, None if mean is None else mean.numpy())
    return NetFile(file, parse_net(text, file=file.path), phase, shapes, about)


def _arrays(file: TensorFile, plan: NetPlan) -> dict[str, list[np.ndarray]]:
    quantized = {node.name for node in plan.graph if _is_quantized(file, node)}
    arrays: dict[str, list[np.ndarray]] = {}
    for name, blobs in plan.blobs.items():
        for index, spec in enumerate(blobs):
            owner = plan.owners.get((name, index))
            if owner is not None:
                arrays.setdefault(name, []).append(arrays[owner.layer][owner.index].reshape(spec.shape))
                continue
            tensor = file.tensors.get(f"{name}.{spec.name}")
            if tensor is None:
                raise WeightsError(
                    f"{file.path}: holds no tensor {name}.{spec.name}; convert the weights again"
                )
            if tuple(tensor.shape) != spec.shape:
                raise WeightsError(
                    f"{file.path}: tensor {name}.{spec.name} is {show_shape(tuple(tensor.shape))}, "
                    f"the net needs {show_shape(spec.shape)}; convert the weights again"
                )
            if tensor.dtype == torch.float32:
                values = tensor.numpy()
            elif spec.name == WEIGHT and name in quantized:
                values = _placeholder(spec.shape)
            else:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise WeightsError(
                    f"{file.path}: tensor {name}.{spec.name} is {kind}, not float32; convert the weights again"
                )
            arrays.setdefault(name, []).append(values)
    return arrays


def _is_quantized(file: TensorFile, node: Node) -> bool:
    tensor = file.tensors.get(f"{node.name}.{WEIGHT}")
    if tensor is None or tensor.dtype not in STORED:
        return False
    return node.type == DENSE or tensor.dtype == torch.float16  # of any layer (export/half_precision.py)


def _placeholder(shape: Shape) -> np.ndarray:
    """Return an array of a shape that takes no memory; the quantized weights replace it."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))


def _read_quantized(file: TensorFile, node: Node) -> QuantizedWeight:
    key = f"{node.name}.{WEIGHT}"
    values, scale, axis = file.tensors[key], file.tensors.get(key + SCALE_SUFFIX), output_axis(node.layer)
    if values.dtype == torch.int8 and (scale is None or scale.shape != values.shape[axis : axis + 1]):
        raise WeightsError(
            f"{file.path}: holds no scales {key + SCALE_SUFFIX} for its {values.shape[axis]} outputs; "
            "convert the weights again"
        )
    return QuantizedWeight(values, scale, axis)
