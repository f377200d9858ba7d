"""The multipliers of a net's parameters: `lr_mult` and `decay_mult` of its `param` rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..caffe.graph import Node
from ..caffe.param_sharing import param_spec
from ..layers.norm import BatchNorm
from ..layers.support.base import Layer
from .plan import NetPlan


@dataclass(frozen=True)
class Learnable:
    """One parameter blob that a solver updates, with the multipliers of its `param` row."""

    name: str
    tensor: Tensor
    lr_mult: float = 1.0
    decay_mult: float = 1.0


def learnables(plan: NetPlan, layers: Iterable[tuple[Node, Any]]) -> list[Learnable]:
    """Return the parameters of a net's present layers with their multipliers, in the order of Caffe's `learnable_params`.

    Shared parameters count once, with the multipliers of the first `param` row that states them.  Statistics have a
    rate of 0.  The parameters of a module that replaced a layer have the default multipliers, 1.
    """
    found: dict[tuple[str, int], tuple[Tensor, dict[str, float]]] = {}
    for node, layer in layers:
        is_caffe = isinstance(layer, Layer)
        if is_caffe:
            layer.check_param_rows(len(layer.blobs))
        for index, blob in enumerate(layer.blobs):
            owner = plan.owners.get((node.name, index)) if is_caffe else None
            key = (owner.layer, owner.index) if owner else (node.name, index)
            _, multipliers = found.setdefault(key, (blob, {}))
            if not is_caffe:
                continue
            spec = param_spec(node, index)
            for field in ("lr_mult", "decay_mult"):
                if spec.HasField(field):
                    multipliers.setdefault(field, getattr(spec, field))
            if not plan.blobs[node.name][index].learned:
                # NVIDIA's BatchNorm sets the rates of its statistics to 0, whatever the text says.
                must_be_zero = isinstance(layer, BatchNorm) and not layer.is_nvidia
                if must_be_zero and multipliers.get("lr_mult"):
                    raise layer.error("lr_mult must be 0: its blobs are statistics; remove the param rows")
                multipliers["lr_mult"] = 0.0
    return [
        Learnable(f"{name}[{index}]", blob, **multipliers)
        for (name, index), (blob, multipliers) in found.items()
    ]


def param_groups(
    found: Iterable[Learnable], lr: float | None, weight_decay: float | None
) -> list[dict[str, Any]]:
    """Return parameters as groups for a torch optimizer; see `CaffeNet.param_groups`."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for one in found:
        if isinstance(one.tensor, nn.Parameter) and one.tensor.requires_grad:
            groups.setdefault((one.lr_mult, one.decay_mult), []).append(one.tensor)
    result = []
    for (lr_mult, decay_mult), tensors in groups.items():
        group: dict[str, Any] = {"params": tensors, "lr_mult": lr_mult, "decay_mult": decay_mult}
        if lr is not None:
            group["lr"] = lr * lr_mult
        if weight_decay is not None:
            group["weight_decay"] = weight_decay * decay_mult
        result.append(group)
    return result
