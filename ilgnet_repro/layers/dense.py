"""InnerProduct, a dense layer, and Embed, a lookup of rows by index."""

from __future__ import annotations

from math import prod

import torch.nn.functional as F
from torch import Tensor

from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.labels import indices_onnx, to_indices
from .support.registry import register_layer


@register_layer("InnerProduct")
class InnerProduct(Layer):
    """y = W·x + b over the flattened axes from `axis` on; the axes before it are batch axes."""

    message = "inner_product_param"
    fields = ("num_output", "bias_term", "weight_filler", "bias_filler", "axis", "transpose")

    def setup(self, rank: int) -> None:
        self.start = self.axis(self.param.axis, rank)
        # Whether there is nothing to flatten.
        self.is_flat = self.start == rank - 1
        self.outputs: int = self.param.num_output
        self.has_bias: bool = self.param.bias_term
        self.is_transposed: bool = self.param.transpose
        if not self.outputs:
            raise self.error("num_output is 0 or absent; state the number of outputs")

    def plan(self, x: Shape) -> LayerPlan:
        top, inputs = (*x[: self.start], self.outputs), prod(x[self.start :])
        shape = (inputs, self.outputs) if self.param.transpose else (self.outputs, inputs)
        blobs = [BlobSpec("weight", shape, self.param.weight_filler)]
        if self.param.bias_term:
            blobs.append(BlobSpec("bias", (self.outputs,), self.param.bias_filler))
        return LayerPlan([top], blobs, prod(top) * inputs)

    @property
    def _rows(self) -> Tensor:
        """The weights with one row per output, as in torch."""
        weight = self.blob("weight")
        return weight.t() if self.is_transposed else weight

    def forward(self, x: Tensor) -> tuple[Tensor]:
        flat = x if self.is_flat else x.flatten(self.start)
        return (F.linear(flat, self._rows, self.blob("bias") if self.has_bias else None),)

    def onnx(self, graph: OnnxGraph, x: str) -> list[str]:
        weight, *bias = (graph.parameter(name) for name in self.blob_names)
        if self.start == 1:
            x = x if self.is_flat else graph.node("Flatten", [x], axis=1)
            return [graph.node("Gemm", [x, weight, *bias], transB=int(not self.param.transpose))]
        if not self.is_flat:
            x = graph.node("Reshape", [x, graph.constant(integers(*[0] * self.start, -1))])
        columns = weight if self.param.transpose else graph.node("Transpose", [weight], perm=[1, 0])
        product = graph.node("MatMul", [x, columns])
        return [graph.node("Add", [product, *bias]) if bias else product]

    def source(self, code: SourceCode, x: str) -> list[str]:
        rows = self._rows
        blobs = {"weight": rows.contiguous()}
        if self.param.bias_term:
            blobs["bias"] = self.blob("bias")
        bias = "" if self.param.bias_term else ", bias=False"
        module = code.module(f"nn.Linear({rows.shape[1]}, {self.outputs}{bias})", **blobs)
        flat = "" if self.is_flat else f".flatten({self.start or ''})"
        return [f"{module}({x}{flat})"]


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
