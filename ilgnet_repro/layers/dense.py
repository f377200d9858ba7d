"""InnerProduct, a dense layer, and Embed, a lookup of rows by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers, numbers
from .support.labels import indices_onnx, to_indices
from .support.registry import register_layer

FEWEST_ROWS = 3  # from which oneDNN's product with many weights is faster than MKL's, by up to 1.8 times
FEWEST_WEIGHTS = (1 << 20) + 1


def is_large_product(rows: int, weights: int) -> bool:
    """Return whether `large_product` is the faster one for so many rows and weights."""
    return rows >= FEWEST_ROWS and weights >= FEWEST_WEIGHTS and torch.backends.mkldnn.is_available()


def large_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear of float32 on the CPU without gradients, by oneDNN, for weights as they are stored."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


def unit_rows(weight: Tensor) -> Tensor:
    """Return each row over the root of its sum of squares plus 1e-6; the gradient is that of the row itself."""
    rows = weight.detach()
    return rows / (rows.square().sum(1, keepdim=True) + 1e-6).sqrt() + (weight - rows)


@register_layer("InnerProduct")
class InnerProduct(Layer):
    """y = W·x + b over the flattened axes from `axis` on; the axes before it are batch axes.

    Of happynear's Caffe (inner_product_layer.cpp): ``normalize`` divides each row of the weights by its length, and in
    training stores it so; a second bottom is the weights, a third the bias, in place of blobs.  ``num_output`` and
    ``normalize`` are then not read.
    """

    message = "inner_product_param"
    fields = ("num_output", "bias_term", "weight_filler", "bias_filler", "axis", "transpose", "normalize")
    bottom_count = (1, 3)
    usual_axes = 2
    no_float16 = ""

    def setup(self, rank: int, *given: int) -> None:
        self.start = self.axis(self.param.axis, rank)
        # Whether there is nothing to flatten.
        self.is_flat = self.start == rank - 1
        self.outputs: int = self.param.num_output
        self.has_bias: bool = self.param.bias_term
        self.is_transposed: bool = self.param.transpose
        self.is_given = bool(given)
        self.is_normalized: bool = self.param.normalize and not given
        # Whether its outputs are those of its stored weights.
        self.is_plain = not (self.is_given or self.is_normalized)
        if not self.is_plain and self.is_transposed:
            raise self.error(
                "transpose with normalize, or with weights as a bottom, mixes rows and columns in the fork; "
                "remove transpose and store the weights with one row per output"
            )
        if self.is_given and self.has_bias != (len(given) == 2):
            raise self.error(
                "with weights as second bottom the bias is the third; state bias_term: false where there is none"
            )
        if not self.outputs and not given:
            raise self.error("num_output is 0 or absent; state the number of outputs")

    def plan(self, x: Shape, *given: Shape) -> LayerPlan:
        inputs = prod(x[self.start :])
        outputs = self._given_outputs(inputs, *given) if given else self.outputs
        top = (*x[: self.start], outputs)
        if given:
            return LayerPlan([top], multiply_adds=prod(top) * inputs)
        shape = (inputs, self.outputs) if self.param.transpose else (self.outputs, inputs)
        blobs = [BlobSpec("weight", shape, self.param.weight_filler)]
        if self.param.bias_term:
            blobs.append(BlobSpec("bias", (self.outputs,), self.param.bias_filler))
        return LayerPlan([top], blobs, prod(top) * inputs)

    def _given_outputs(self, inputs: int, weight: Shape, *bias: Shape) -> int:
        if not weight or prod(weight[1:]) != inputs:
            raise self.error(f"weights {list(weight)} must have one row per output, of {inputs} values")
        for shape in bias:
            if prod(shape) != weight[0]:
                raise self.error(f"bias {list(shape)} must have one value for each of {weight[0]} outputs")
        return weight[0]

    @property
    def _rows(self) -> Tensor:
        """The weights with one row per output, as in torch."""
        weight = self.blob("weight")
        return weight.t() if self.is_transposed else weight

    def _unit_rows(self, stored: bool) -> Tensor:
        """Return the weights with rows of length 1; ``stored``: the fork writes them over its weights in training."""
        weight = self.blob("weight")
        if not stored:
            return unit_rows(weight)
        with torch.no_grad():
            weight.copy_(unit_rows(weight))
        return weight

    def for_inference(self, *bottoms: Shape) -> Callable[..., Sequence[Tensor]]:
        is_own = type(self).forward is InnerProduct.forward and self.is_plain and not self.is_transposed
        count, width = prod(bottoms[0][: self.start]), prod(bottoms[0][self.start :])
        if not is_own or not is_large_product(count, self.outputs * width):
            return self.forward
        top = (*bottoms[0][: self.start], self.outputs)

        def multiply(x: Tensor) -> tuple[Tensor]:
            bias = self.blob("bias") if self.has_bias else None
            return (large_product(x.reshape(count, width), self.blob("weight"), bias).view(top),)

        return multiply

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor]:
        flat = x if self.is_flat else x.flatten(self.start)
        if given:
            weight, *bias = given
            return (F.linear(flat, weight.flatten(1), bias[0].flatten() if bias else None),)
        if self.is_normalized:
            rows = self._unit_rows(self.training and not torch.compiler.is_exporting())
        else:
            rows = self._rows
        return (F.linear(flat, rows, self.blob("bias") if self.has_bias else None),)

    def onnx(self, graph: OnnxGraph, x: str, *given: str) -> list[str]:
        if given:
            weight, *bias = given
            if len(graph.shape(weight)) != 2:
                weight = graph.node("Flatten", [weight], axis=1)
            bias = [graph.node("Reshape", [value, graph.constant(integers(-1))]) for value in bias]
        else:
            weight, *bias = (graph.parameter(name) for name in self.blob_names)
        if self.is_normalized:
            weight = graph.constant(numbers(unit_rows(self.blob("weight"))))
        if self.start == 1:
            x = x if self.is_flat else graph.node("Flatten", [x], axis=1)
            return [graph.node("Gemm", [x, weight, *bias], transB=int(not self.param.transpose))]
        if not self.is_flat:
            x = graph.node("Reshape", [x, graph.constant(integers(*[0] * self.start, -1))])
        columns = weight if self.param.transpose else graph.node("Transpose", [weight], perm=[1, 0])
        product = graph.node("MatMul", [x, columns])
        return [graph.node("Add", [product, *bias]) if bias else product]

    def source(self, code: SourceCode, x: str, *given: str) -> list[str]:
        flat = x if self.is_flat else f"{x}.flatten({self.start or ''})"
        if given:
            weight = given[0] if len(code.shape(1)) == 2 else f"{given[0]}.flatten(1)"
            return [f"F.linear({', '.join([flat, weight, *(f'{bias}.flatten()' for bias in given[1:])])})"]
        rows = self._rows
        blobs = {"weight": rows.contiguous()}
        if self.param.bias_term:
            blobs["bias"] = self.blob("bias")
        if self.is_normalized:
            weight, *bias = (code.parameter(name, value) for name, value in blobs.items())
            return [f"F.linear({', '.join([flat, f'{code.helper(unit_rows)}({weight})', *bias])})"]
        no_bias = "" if self.param.bias_term else ", bias=False"
        module = code.module(f"nn.Linear({rows.shape[1]}, {self.outputs}{no_bias})", **blobs)
        return [f"{module}({flat})"]


@register_layer("Embed")
class Embed(Layer):
    """One row of the weights per index in the bottom, which holds 0 to input_dim − 1 as floats."""

    index_bottoms = (0,)
    message = "embed_param"
    fields = ("num_output", "input_dim", "bias_term", "weight_filler", "bias_filler")

    def setup(self, rank: int) -> None:
        self.outputs: int = self.param.num_output
        self.rows: int = self.param.input_dim
        for field, value in (("num_output", self.outputs), ("input_dim", self.rows)):
            if not value:
                raise self.error(f"{field} is 0 or absent; it must be over 0")

    def plan(self, x: Shape) -> LayerPlan:
        blobs = [BlobSpec("weight", (self.rows, self.outputs), self.param.weight_filler)]
        if self.param.bias_term:
            blobs.append(BlobSpec("bias", (self.outputs,), self.param.bias_filler))
        return LayerPlan([(*x, self.outputs)], blobs)  # a lookup multiplies nothing

    def forward(self, x: Tensor) -> tuple[Tensor]:
        indices = to_indices(self, x, self.rows, "index")
        rows = F.embedding(indices, self.blob("weight"))
        return (rows + self.blob("bias") if self.param.bias_term else rows,)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        weight, *bias = (graph.parameter(name) for name in self.blob_names)
        rows = graph.node("Gather", [weight, indices_onnx(graph, x)], axis=0)
        return [graph.node("Add", [rows, *bias]) if bias else rows]

    def source(self, code: SourceCode, x: str) -> list[str]:
        module = code.module(f"nn.Embedding({self.rows}, {self.outputs})", weight=self.blob("weight"))
        bias = f" + {code.parameter('bias', self.blob('bias'))}" if self.param.bias_term else ""
        return [f"{module}({x}.long()){bias}"]
