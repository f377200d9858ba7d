"""InnerDistance: the distance of each item to each of several vectors."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .dense import unit_rows
from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers
from .support.registry import register_layer


def inner_distance(x: Tensor, rows: Tensor, power: int) -> Tensor:
    """Return the sum of |x - row|^power for each item and each row."""
    mode = "donot_use_mm_for_euclid_dist"  # exact where an item is near a row
    distance = torch.cdist(x, rows.to(x.dtype), p=float(power), compute_mode=mode)
    return distance.square() if power == 2 else distance


MISPLACED = "inner_product_param.distance_type"


@register_layer("InnerDistance")
class InnerDistance(Layer):
    """The squared distance (L2), or the sum of absolute differences (L1), of each item to each row of the weights.

    The axes from `axis` on are one vector, those before are items.  A second bottom is the weights.  With ``normalize`` the
    rows of learned weights have length 1, and training stores them so.  ``update_center_only`` takes the labels as third
    bottom: weights get a gradient from the items of their own class only.  Older versions of the layer added a bias; it is
    read where the text states ``bias_term: true`` or a ``bias_filler``.  The fork's gradient of L1 counts each
    negative difference as 1, whatever gradient arrives; such a net is refused in training.
    Source: happynear/caffe-windows, inner_distance_layer.cpp (NormFace; Wang et al., 2017).
    """

    message = "inner_distance_param"
    fields = (
        *("num_output", "bias_term", "weight_filler", "bias_filler", "axis", "transpose"),
        *("distance_type", "normalize", "update_center_only"),
    )
    # NormFace's texts state it where this layer does not read it, with the value that is the default of both.
    fork_fields = (MISPLACED,)
    bottom_count = (1, 3)
    index_bottoms = (2,)

    def setup(self, rank: int, *given: int) -> None:
        p = self.param
        misplaced = (self.fork_field(MISPLACED) or p.distance_type).strip("\"'")
        if misplaced != p.distance_type:
            raise self.error(
                f"{MISPLACED} {misplaced!r} is not read; state inner_distance_param {{ distance_type }}"
            )
        self.start = self.axis(p.axis, rank)
        self.is_flat = self.start == rank - 1
        self.is_given = bool(given)
        self.own_only: bool = p.update_center_only
        self.is_normalized: bool = p.normalize and not given
        states_bias = p.bias_term if p.HasField("bias_term") else p.HasField("bias_filler")
        self.has_bias: bool = states_bias and not given
        if p.distance_type not in ("L1", "L2"):
            raise self.error(f"distance_type {p.distance_type!r} is unknown; use L1 or L2")
        self.power = int(p.distance_type[1])
        if self.power == 1 and self.is_train:
            raise self.error("distance_type L1 has no true gradient in the fork; train with L2")
        if p.transpose:
            raise self.error("transpose mixes rows and columns in the fork; store one row per output")
        if len(given) != (2 if self.own_only else min(len(given), 1)):
            raise self.error(
                f"has {1 + len(given)} bottoms; with update_center_only it takes items, weights and labels, "
                "otherwise items, or items and weights"
            )
        if not p.num_output and not given:
            raise self.error("num_output is 0 or absent; state the number of outputs")

    def plan(self, x: Shape, *given: Shape) -> LayerPlan:
        inputs = prod(x[self.start :])
        blobs = []
        if given:
            weight = given[0]
            if not weight or prod(weight[1:]) != inputs:
                raise self.error(f"weights {list(weight)} must have one row per output, of {inputs} values")
            outputs = weight[0]
        else:
            outputs = self.param.num_output
            blobs = [BlobSpec("weight", (outputs, inputs), self.param.weight_filler)]
            if self.has_bias:
                blobs.append(BlobSpec("bias", (outputs,), self.param.bias_filler))
        top = (*x[: self.start], outputs)
        if self.own_only and prod(given[1]) != prod(x[: self.start]):
            raise self.error(f"needs one label per item, not {list(given[1])} for {list(x)}")
        return LayerPlan([top], blobs, prod(top) * inputs)

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor]:
        flat = x if self.is_flat else x.flatten(self.start)
        items = flat.reshape(-1, flat.shape[-1])
        rows = given[0].flatten(1) if given else self._rows(stores=self.training)
        distances = inner_distance(items, rows, self.power)
        if self.own_only:
            own = given[1].reshape(-1, 1).long() == torch.arange(rows.shape[0], device=x.device)
            distances = torch.where(own, distances, inner_distance(items, rows.detach(), self.power))
        top = distances.reshape(*flat.shape[:-1], rows.shape[0])
        return (top + self.blob("bias") if self.has_bias else top,)

    def _rows(self, *, stores: bool) -> Tensor:
        weight = self.blob("weight")
        if not self.is_normalized:
            return weight
        if stores and not torch.compiler.is_exporting():
            with torch.no_grad():
                weight.copy_(unit_rows(weight))
            return weight
        return unit_rows(weight)

    def onnx(self, graph: OnnxGraph, x: str, *given: str) -> list[str]:
        if not self.is_flat:
            x = graph.node("Reshape", [x, graph.constant(integers(*[0] * self.start, -1))])
        x = graph.node("Unsqueeze", [x, graph.constant(integers(-2))])
        if given:
            rows = given[0] if len(graph.shape(given[0])) == 2 else graph.node("Flatten", [given[0]], axis=1)
        elif self.is_normalized:
            rows = graph.constant(numbers(unit_rows(self.blob("weight"))))
        else:
            rows = graph.parameter("weight")
        difference = graph.node("Sub", [x, rows])
        each = (
            graph.node("Mul", [difference, difference])
            if self.power == 2
            else graph.node("Abs", [difference])
        )
        total = graph.node("ReduceSum", [each, graph.constant(integers(-1))], keepdims=0)
        return [graph.node("Add", [total, graph.parameter("bias")]) if self.has_bias else total]

    def source(self, code: SourceCode, x: str, *given: str) -> list[str]:
        flat = x if self.is_flat else f"{x}.flatten({self.start or ''})"
        if given:
            rows = given[0] if len(code.shape(1)) == 2 else f"{given[0]}.flatten(1)"
        else:
            weight = self.blob("weight")
            rows = code.parameter("weight", unit_rows(weight) if self.is_normalized else weight)
        call = f"{code.helper(inner_distance)}({flat}, {rows}, {self.power})"
        if len(code.shape(0)[: self.start]) != 1:
            items = f"{flat}.reshape(-1, {prod(code.shape(0)[self.start :])})"
            lead = ", ".join(f"{x}.shape[{axis}]" for axis in range(self.start))
            call = f"{code.helper(inner_distance)}({items}, {rows}, {self.power}).reshape({lead}{', ' if lead else ''}-1)"
        return [f"{call} + {code.parameter('bias', self.blob('bias'))}" if self.has_bias else call]
