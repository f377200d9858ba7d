"""Filling a net's layers with their parameters: loaded, shared, or drawn by fillers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from ..caffe.graph import Node
from ..layers.support.base import Layer
from ..layers.support.fillers import fill, machine_memory
from .plan import NetPlan


def check_memory(plan: NetPlan, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Refuse a net whose blobs, without memory-mapped ones, would not fit the machine's memory."""
    own = {name: specs for name, specs in plan.blobs.items() if name not in weights}
    needed = sum(4 * prod(spec.shape) for specs in own.values() for spec in specs)
    held = machine_memory()
    if held is not None and needed > held:
        largest = max(own, key=lambda name: sum(prod(spec.shape) for spec in own[name]))
        raise plan.layers[largest].error(
            f"the net's parameters need {needed / 2**30:,.1f} GiB, most of it here; "
            f"the machine has {held / 2**30:,.1f}; check num_output and the input's shape"
        )


def register_blobs(
    plan: NetPlan,
    layers: Iterable[tuple[Node, Layer]],
    weights: Mapping[str, Sequence[np.ndarray]],
    seed: int | None,
) -> None:
    """Register every blob on its layer: from ``weights``, or drawn by its filler from ``seed``."""
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    else:
        generator.seed()
    # A shared blob may be given under any of its layers; the owner's copy is used, otherwise the last one.
    given: dict[tuple[str, int], np.ndarray] = {}
    for name, arrays in weights.items():
        for index, array in enumerate(arrays):
            owner = plan.owners.get((name, index))
            if owner is None or owner.layer not in weights:
                given[(owner.layer, owner.index) if owner else (name, index)] = array
    parameters: dict[tuple[str, int], nn.Parameter] = {}
    for node, layer in layers:
        for index, spec in enumerate(plan.blobs[node.name]):
            owner = plan.owners.get((node.name, index))
            if owner:
                parameter = parameters[owner.layer, owner.index]
            else:
                if (node.name, index) in given:
                    values = as_float32(given[node.name, index]).reshape(spec.shape)
                    if not spec.learned:  # a pass may update statistics; never those of the caller
                        values = values.clone()
                else:
                    values = fill(spec, generator, layer.error)
                parameter = nn.Parameter(values, requires_grad=spec.learned)
            parameters[node.name, index] = parameter
            layer.register_blob(spec, parameter)


def as_float32(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, without a copy where it is float32."""
    return torch.from_numpy(np.asarray(array, dtype=np.float32))
