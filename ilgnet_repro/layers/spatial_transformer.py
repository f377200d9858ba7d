"""SpatialTransformer: the affine transformation of each image that the second bottom gives (Jaderberg et al., 2015)."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, OnnxGraph, Shape, SourceCode, exact, integers, numbers, uses
from .support.detections import node_writer
from .support.registry import register_layer
from .support.sampling import sample_bilinear, sample_bilinear_onnx

THETAS = tuple(f"theta_{row}_{column}" for row in (1, 2) for column in (1, 2, 3))


def spatial_transformer(
    x: Tensor, given: Tensor, stated: list[float | None], size: tuple[int, int]
) -> Tensor:
    """Return x at theta (row, column, 1) for each place of a grid; rows and columns run from -1 to below 1."""
    given = given.flatten(1)
    numbers = iter(range(given.shape[1]))
    columns = [
        given[:, next(numbers)] if value is None else torch.full_like(given[:, 0], value) for value in stated
    ]
    theta = torch.stack(columns, 1)
    row, column = (
        torch.arange(count, device=x.device, dtype=x.dtype) / count * 2 - 1 for count in (size[0], size[1])
    )
    grid = torch.stack(
        [row[:, None].expand(size), column.expand(size), torch.ones(size, device=x.device, dtype=x.dtype)]
    )
    places = theta.reshape(-1, 2, 3) @ grid.flatten(1)
    rows, cols = (places[:, 0] + 1) / 2 * x.shape[2], (places[:, 1] + 1) / 2 * x.shape[3]
    top: Tensor = sample_bilinear(x, rows, cols).unflatten(2, size)
    return top


uses(spatial_transformer, sample_bilinear)


@register_layer("SpatialTransformer")
class SpatialTransformer(Layer):
    """Bottoms: x N×C×H×W and theta N×6, or fewer where the text states the others (`theta_1_1` to `theta_2_3`).

    The top's pixel (i, j) is x at row (r' + 1) / 2 · H and column (c' + 1) / 2 · W, bilinearly, 0 outside, where
    (r', c') = theta (2 i / output_H - 1, 2 j / output_W - 1, 1): rows come first, and the last row is not at 1.
    With `to_compute_dU: false` x gets no gradient.
    Source: daerduoCarey/SpatialTransformerLayer, src/caffe/layers/st_layer.cu.
    """

    message = "st_param"
    fields = ("transform_type", "sampler_type", "output_H", "output_W", "to_compute_dU", *THETAS)
    bottom_count = (2, 2)

    def setup(self, x: int, theta: int) -> None:
        param = self.param
        if (param.transform_type, param.sampler_type) != ("affine", "bilinear"):
            raise self.error(
                f"transform_type {param.transform_type!r} and sampler_type {param.sampler_type!r} are not supported; "
                "use affine and bilinear"
            )
        self.stated = [getattr(param, name) if param.HasField(name) else None for name in THETAS]

    def _size(self, x: Shape) -> tuple[int, int]:
        param = self.param
        height = param.output_H if param.HasField("output_H") else x[2]
        return height, param.output_W if param.HasField("output_W") else x[3]

    def plan(self, x: Shape, theta: Shape) -> LayerPlan:
        if len(x) != 4 or theta[:1] != x[:1]:
            raise self.error(f"needs x N×C×H×W and theta of as many images, not {list(x)} and {list(theta)}")
        wanted = self.stated.count(None)
        if prod(theta[1:]) != wanted:
            raise self.error(
                f"theta {list(theta)} has {prod(theta[1:])} values per image; with {6 - wanted} stated in the text it "
                f"must have {wanted}"
            )
        size = self._size(x)
        if min(size) < 1:
            raise self.error(f"output_H {size[0]} and output_W {size[1]} must be over 0")
        return LayerPlan([(*x[:2], *size)])

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor]:
        if not self.param.to_compute_dU:
            x = x.detach()
        return (spatial_transformer(x, theta, self.stated, self._size(tuple(x.shape))),)

    def source(self, code: SourceCode, x: str, theta: str) -> list[str]:
        call = code.helper(spatial_transformer)
        kept = x if self.param.to_compute_dU else f"{x}.detach()"
        height, width = (
            str(getattr(self.param, name)) if self.param.HasField(name) else f"{x}.shape[{axis}]"
            for name, axis in (("output_H", 2), ("output_W", 3))
        )
        return [f"{call}({kept}, {theta}, {exact(self.stated)}, ({height}, {width}))"]

    def onnx(self, graph: OnnxGraph, x: str, theta: str) -> list[str]:
        node = node_writer(graph)
        shape = (0, 0, graph.size(x, 2), graph.size(x, 3))
        size = self._size(shape)
        given = node("Flatten", theta, axis=1)
        first = node("Slice", given, integers(0), integers(1), integers(1))
        columns, position = [], 0
        for value in self.stated:
            if value is None:
                column = node("Slice", given, integers(position), integers(position + 1), integers(1))
                position += 1
            else:
                column = node("Add", node("Mul", first, numbers(0)), numbers(value))
            columns.append(column)
        matrix = node("Reshape", node("Concat", *columns, axis=1), integers(-1, 2, 3))
        steps = [np.arange(count, dtype=np.float32) / np.float32(count) * 2 - 1 for count in size]
        grid = np.stack(
            [steps[0].repeat(size[1]), np.tile(steps[1], size[0]), np.ones(size[0] * size[1], np.float32)]
        )
        places = node("MatMul", matrix, grid.astype(np.float32))
        pixels = []
        for axis, extent in ((0, shape[2]), (1, shape[3])):
            place = node(
                "Squeeze", node("Slice", places, integers(axis), integers(axis + 1), integers(1)), integers(1)
            )
            half = node("Mul", node("Add", place, numbers(1)), numbers(0.5))
            pixels.append(node("Mul", half, numbers(extent)))
        sampled = sample_bilinear_onnx(node, x, *pixels)
        return [node("Reshape", sampled, integers(0, 0, *size))]
