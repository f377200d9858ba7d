"""Lstm: the recurrent layer of the text recognizers (junhyukoh's caffe-lstm, CTPN, caffe_ocr)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .recurrent import LSTM
from .support.base import BlobSpec, LayerPlan, OnnxGraph, Shape, SourceCode, integers, literal
from .support.detections import node_writer
from .support.registry import register_layer


def fork_lstm(
    inputs: Tensor, cont: Tensor, state: tuple[Tensor, Tensor], weight: Tensor, clip: float = 0.0
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The forks' LSTM, gates in the order i, f, o, g; the inputs are already projected, and cont is 0 at a start.

    Their CPU code adds the hidden term of the first stream to every stream; the gradient of the weight takes each
    stream's own state, whatever the marks.
    ``clip`` over 0 bounds the gradients of the gates before their nonlinearities.
    """
    h, c = state
    outputs = []
    for x, continues in zip(inputs, cont, strict=True):
        gates = x + (h[:1] @ weight.detach().T) * continues[:, None]
        if weight.requires_grad:
            own = h.detach() @ weight.T
            gates = gates + (own - own.detach())
        if clip and gates.requires_grad:
            gates.register_hook(lambda gradient: gradient.clamp(-clip, clip))
        i, f, o, g = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c * continues[:, None] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), (h, c)


@register_layer("Lstm")
class Lstm(LSTM):
    """Long short-term memory over the first axis, from zeros: T×N×I to T×N×H, or T·N×I to T·N×H.

    Gates in the order i, f, o, g; blobs: weights 4H×I, hidden weights 4H×H, bias 4H.  For two axes `batch_size` is N.
    The second bottom, one marker per step, is 0 where a sequence starts; with it the state is carried from pass to pass,
    as in Caffe's LSTM.  `clipping_threshold` bounds the gradients of the gates before their nonlinearities.
    Source: caffe_ocr, src/caffe/layers/lstm_layer_Junhyuk.cpp, and junhyukoh/caffe-lstm, src/caffe/layers/lstm_layer.cpp.
    """

    message = "lstm_param"
    fields = ("num_output", "clipping_threshold", "weight_filler", "bias_filler", "batch_size")
    bottom_count = (1, 2)
    top_count = (1, 1)
    note = (
        "with several streams, each takes the hidden term of the first, as the CPU code of caffe_ocr, CTPN and caffe-lstm "
        "does; their GPU code takes each stream's own"
    )
    no_float16 = LSTM.no_float16

    def setup(self, *ranks: int) -> None:
        self.outputs: int = self.param.num_output
        if not self.outputs:
            raise self.error("num_output is 0 or absent; state the number of outputs per step")
        if ranks[0] < 2:
            raise self.error("values need at least the axes time and value")
        self.streams: int = self.param.batch_size if ranks[0] == 2 else 0  # 0: the second axis
        if ranks[0] == 2 and not self.streams:
            raise self.error("batch_size is 0; state how many streams the first axis holds")
        self.clip: float = self.param.clipping_threshold
        self.exposed, self.has_static = 0, False
        self.has_state = len(ranks) == 2
        for name in self._state_names:
            self.register_buffer(name, None, persistent=False)

    def plan(self, x: Shape, *marks: Shape) -> LayerPlan:
        if self.streams and x[0] % self.streams:
            raise self.error(f"{x[0]} rows are not a multiple of batch_size {self.streams}")
        steps, streams = (x[0] // self.streams, self.streams) if self.streams else x[:2]
        for shape in marks:
            if streams != 1:
                raise self.error(
                    f"markers go with one stream, not {streams}: the layer would read those of other steps"
                )
            if not shape or shape[0] != steps or prod(shape) != steps:
                raise self.error(f"markers {list(shape)} must be one per step, {steps}")
        weight, bias = self.param.weight_filler, self.param.bias_filler
        rows = self.gates * self.outputs
        blobs = [
            BlobSpec("weight", (rows, prod(x[1:] if self.streams else x[2:])), weight),
            BlobSpec("hidden_weight", (rows, self.outputs), weight),
            BlobSpec("bias", (rows,), bias),
        ]
        top = (x[0], self.outputs) if self.streams else (steps, streams, self.outputs)
        return LayerPlan([top], blobs, steps * streams * (prod(blobs[0].shape) + prod(blobs[1].shape)))

    def forward(self, x: Tensor, *marks: Tensor) -> tuple[Tensor, ...]:
        values = x.unflatten(0, (-1, self.streams)) if self.streams else x
        inputs = values.flatten(2) @ self.blob("weight").T + self.blob("bias")
        cont = (marks[0].reshape(-1, 1) != 0).to(inputs) if marks else inputs.new_ones(inputs.shape[:2])
        h, c = self._initial_state(values, ())
        top, state = fork_lstm(inputs, cont, (h, c), self.blob("hidden_weight"), self.clip)
        if self.carry_state and self.has_state:
            self._store_state(state)
        return (top.flatten(0, 1) if self.streams else top,)

    def source(self, code: SourceCode, x: str, *marks: str) -> list[str]:
        blob = {name: code.parameter(name, self.blob(name)) for name in self.blob_names}
        size, streams, values = f"{x}.shape[:2]", f"{x}.shape[1]", x
        if self.streams:
            streams, values = str(self.streams), f"{x}.unflatten(0, (-1, {self.streams}))"
            size = f"{x}.shape[0] // {streams}, {streams}"
        inputs = f"{values}.flatten(2) @ {blob['weight']}.T + {blob['bias']}"
        cont = f"({marks[0]} != 0).reshape(-1, 1).to({x})" if marks else f"{x}.new_ones({size})"
        state = f"({x}.new_zeros({streams}, {self.outputs}),) * 2"
        rest = f", {literal(self.clip)}" if self.clip else ""
        call = f"{code.helper(fork_lstm)}({inputs}, {cont}, {state}, {blob['hidden_weight']}{rest})[0]"
        return [f"{call}.flatten(0, 1)" if self.streams else call]

    def onnx(self, graph: OnnxGraph, x: str, *marks: str) -> list[str]:
        node = node_writer(graph)
        streams = self.streams or graph.shape(x)[1]
        if self.streams:
            x = node("Reshape", x, integers(-1, self.streams, graph.size(x, 1)))
        elif len(graph.shape(x)) > 3:
            x = node("Reshape", x, integers(0, 0, -1))
        if streams == 1 and not marks:
            found = graph.nodes("LSTM", [x, *self._weights_onnx(graph)], 1, hidden_size=self.outputs)
            top = node("Squeeze", found[0], integers(1))
        else:
            top = self._steps_onnx(graph, x, *marks)
        return [node("Reshape", top, integers(-1, self.outputs)) if self.streams else top]

    def _steps_onnx(self, graph: OnnxGraph, x: str, *marks: str) -> str:
        """Add a Scan over the steps."""
        from onnx import TensorProto

        node = node_writer(graph)
        hidden = graph.parameter("hidden_weight")
        inputs = node("MatMul", x, node("Transpose", graph.parameter("weight"), perm=[1, 0]))
        inputs = node("Add", inputs, graph.parameter("bias"))
        if marks:
            cont = node("Cast", node("Cast", marks[0], to=TensorProto.BOOL), to=TensorProto.FLOAT)
            sequences = [inputs, node("Reshape", cont, integers(-1, 1, 1))]
        else:
            sequences = [inputs]
        shape = node("Concat", node("Shape", x, start=1, end=2), integers(self.outputs), axis=0)
        first = graph.constant(integers(0))

        def step(h: str, c: str, x: str, *cont: str) -> list[str]:
            for mark in cont:
                h, c = node("Mul", h, mark), node("Mul", c, mark)
            own = node("Gemm", node("Gather", h, first, axis=0), hidden, transB=1)
            i, f, o, g = graph.nodes("Split", [node("Add", x, own)], 4, axis=1, num_outputs=4)
            c = node(
                "Add", node("Mul", node("Sigmoid", f), c), node("Mul", node("Sigmoid", i), node("Tanh", g))
            )
            h = node("Mul", node("Sigmoid", o), node("Tanh", c))
            return [h, c, node("Identity", h)]

        zeros = node("ConstantOfShape", shape)
        return graph.scan([zeros, zeros], sequences, step)[-1]

    def _weights_onnx(self, graph: OnnxGraph) -> list[str]:
        """Add the weights of ONNX's LSTM: gates in the order i, o, f, g, and a second bias, which is 0."""
        node = node_writer(graph)
        made = []
        for name in ("weight", "hidden_weight", "bias"):
            i, f, o, g = graph.nodes("Split", [graph.parameter(name)], 4, axis=0, num_outputs=4)
            made.append(node("Unsqueeze", node("Concat", i, o, f, g, axis=0), integers(0)))
        weight, hidden, bias = made
        return [weight, hidden, node("Pad", bias, integers(0, 0, 0, self.gates * self.outputs))]
