"""A converted file back as a net: the graph, the weights and the preprocessing are all in it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.preprocess import Preprocessing
from ..errors import FormatError, WeightsError
from ..formats.prototxt import parse_net
from ..graph.build import build_graph
from ..graph.node import Node
from ..graph.sharing import show_shape
from ..layers.base import Shape
from ..net import CaffeNet
from ..plan import NetPlan, plan_net
from .job import MEAN_TENSOR
from .precision import DENSE, SCALE_SUFFIX, STORED, WEIGHT, Reduced, hold_reduced, output_axis
from .safetensors_file import TensorFile, open_safetensors


@dataclass(frozen=True)
class Converted:
    """What a converted file says of itself."""

    metadata: dict[str, str]
    preprocessing: Preprocessing | None
    source: dict[str, Any]


def load(path: str | os.PathLike[str], *, carry_state: bool = False, crop: str | None = None) -> CaffeNet:
    """Return the net of a file that `convert` wrote; its weights are mapped from it, not copied.

    ``net.converted`` holds the preprocessing and provenance.  ``carry_state`` and ``crop`` are those of `load_net`.
    Raises FormatError if the file is another one's, WeightsError if its tensors do not fit its net.
    """
    file = open_safetensors(path)
    if "caffe.net" not in file.metadata:
        raise FormatError(f"{path}: holds no Caffe net; only files written by `ilgnet convert` can be loaded")
    try:
        shapes = {
            name: tuple(shape) for name, shape in json.loads(file.metadata["caffe.input_shapes"]).items()
        }
        phase = file.metadata["caffe.phase"]
        source = json.loads(file.metadata["source"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path}: its metadata are not as `ilgnet convert` writes them ({error})"
        ) from error
    graph = build_graph(parse_net(file.metadata["caffe.net"], file=str(path)), phase, crop=crop)
    plan = plan_net(graph, shapes)
    net = CaffeNet(plan, _arrays(file, plan), carry_state=carry_state)
    for node in graph:
        if _is_reduced(file, node):
            hold_reduced(net.layer(node.name), _reduced(file, node))
    net.converted = Converted(file.metadata, _preprocessing(file), source)
    return net


def _arrays(file: TensorFile, plan: NetPlan) -> dict[str, list[np.ndarray]]:
    reduced = {node.name for node in plan.graph if _is_reduced(file, node)}
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
            elif spec.name == WEIGHT and name in reduced:
                values = _stand_in(spec.shape)
            else:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise WeightsError(
                    f"{file.path}: tensor {name}.{spec.name} is {kind}, not float32; convert the weights again"
                )
            arrays.setdefault(name, []).append(values)
    return arrays


def _is_reduced(file: TensorFile, node: Node) -> bool:
    tensor = file.tensors.get(f"{node.name}.{WEIGHT}")
    return node.type == DENSE and tensor is not None and tensor.dtype in STORED


def _stand_in(shape: Shape) -> np.ndarray:
    """An array of a shape that takes no memory, until the reduced weights take its place."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))


def _reduced(file: TensorFile, node: Node) -> Reduced:
    key = f"{node.name}.{WEIGHT}"
    values, scale, axis = file.tensors[key], file.tensors.get(key + SCALE_SUFFIX), output_axis(node.layer)
    if values.dtype == torch.int8 and (scale is None or scale.shape != values.shape[axis : axis + 1]):
        raise WeightsError(
            f"{file.path}: holds no scales {key + SCALE_SUFFIX} for its {values.shape[axis]} outputs; "
            "convert the weights again"
        )
    return Reduced(values, scale, axis)


def _preprocessing(file: TensorFile) -> Preprocessing | None:
    if "preprocessing" not in file.metadata:
        return None
    mean = file.tensors.get(MEAN_TENSOR)
    return Preprocessing.from_json(file.metadata["preprocessing"], None if mean is None else mean.numpy())
