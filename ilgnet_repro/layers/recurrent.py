"""RNN and LSTM over T×N×… blobs, with Caffe's continuation markers: 0 where a new sequence starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode, integers
from .support.registry import register_layer

# ---------------------------------------------------------------------- torch, also for written source


def caffe_rnn(
    inputs: Tensor, cont: Tensor, state: tuple[Tensor, ...], w_hh: Tensor, *projection: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Caffe's RNN: h = tanh(input + W_hh · cont h), o = tanh(W_ho · h + b_o); the inputs are already projected."""
    (h,), (w_ho, b_o) = state, projection
    outputs = []
    for x, continues in zip(inputs, cont, strict=True):
        h = torch.tanh(x + (h * continues[:, None]) @ w_hh.T)
        outputs.append(torch.tanh(h @ w_ho.T + b_o))
    return torch.stack(outputs), (h,)


def caffe_lstm(
    inputs: Tensor, cont: Tensor, state: tuple[Tensor, ...], w_hc: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Caffe's LSTM, gates in the order i, f, o, g; the inputs are already projected."""
    h, c = state
    outputs = []
    for x, continues in zip(inputs, cont, strict=True):
        i, f, o, g = (x + (h * continues[:, None]) @ w_hc.T).chunk(4, dim=1)
        c = torch.sigmoid(f) * c * continues[:, None] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def with_states(top: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the output and the last states, which get a time axis of one step."""
    return (top, *(state[None] for state in states))


def _readable(kept: Tensor) -> Tensor:
    """Return a copy of a tensor of inference mode, which autograd cannot read."""
    return kept.clone() if kept.is_inference() and not torch.is_inference_mode_enabled() else kept


# ---------------------------------------------------------------------- layers


class _Recurrent(Layer):
    """Bottoms: values T×N×…, markers T×N, a static input N×… where given, and with `expose_hidden` the state.

    Caffe's `RecurrentLayer` copies the last state of one pass to the first of the next unless the state is
    exposed; the markers of step 0 decide whether it is used.  So do the commands.  In Python a net is a function
    of its inputs, and a pass starts from zeros, unless it was loaded with ``carry_state=True``; after `reset_state`
    the next pass starts from zeros.  ONNX, written source and fast nets start each pass from zeros.
    """

    message = "recurrent_param"
    fields: ClassVar[tuple[str, ...]] = ("num_output", "weight_filler", "bias_filler", "expose_hidden")
    ignored_fields = ("debug_info",)
    bottom_count: ClassVar[tuple[int, int | None]] = (2, 5)
    top_count: ClassVar[tuple[int, int | None]] = (1, 3)
    # Rows of a projection for each output, state blobs, and one pass over all steps.
    gates: ClassVar[int]
    states: ClassVar[int]
    run: ClassVar[Callable[..., tuple[Tensor, tuple[Tensor, ...]]]]
    # The same step in ONNX: operator, inputs, outputs, attributes; from `h`, `c` to `h'`, `c'` and `o`.
    step_onnx: ClassVar[tuple[tuple[str, str, str, dict[str, Any]], ...]]
    carry_state = False  # set by the net
    is_unrolled = True

    def setup(self, *ranks: int) -> None:
        self.outputs: int = self.param.num_output
        if not self.outputs:
            raise self.error("num_output is 0 or absent; state the number of outputs per step")
        self.exposed = self.states if self.param.expose_hidden else 0
        bottoms, tops = len(self.node.bottoms), len(self.node.tops)
        if tops != 1 + self.exposed or bottoms not in (2 + self.exposed, 3 + self.exposed):
            raise self.error(
                f"has {bottoms} bottoms and {tops} tops; it takes {2 + self.exposed} bottoms "
                f"(one more with a static input) and {1 + self.exposed} tops"
            )
        self.has_static = bottoms == 3 + self.exposed
        self.has_state = not self.exposed
        # The state moves with the net (`to`, `half`) and is not one of its weights.
        for name in self._state_names:
            self.register_buffer(name, None, persistent=False)

    @property
    def _state_names(self) -> tuple[str, ...]:
        return ("last_h", "last_c")[: self.states]

    def reset_state(self) -> None:
        """Start the next pass from zeros."""
        for name in self._state_names:
            setattr(self, name, None)

    def plan(self, x: Shape, cont: Shape, *others: Shape) -> LayerPlan:
        if len(x) < 3:
            raise self.error(f"values {list(x)} need at least the axes time, stream and value")
        if not x[0]:
            raise self.error("the values have no time steps; give at least one")
        if cont != x[:2]:
            raise self.error(f"marks {list(cont)} must be time × stream of the values {list(x)}")
        if self.has_static and (len(others[0]) < 2 or others[0][0] != x[1]):
            raise self.error(f"static input {list(others[0])} must hold values for each of {x[1]} streams")
        steps, streams = x[:2]
        state = (1, streams, self.outputs)
        for shape in others[self.has_static :]:
            if shape != state:
                raise self.error(f"state {list(shape)} must be {list(state)}")
        blobs = self._blobs(prod(x[2:]), prod(others[0][1:]) if self.has_static else None)
        sizes = {blob.name: prod(blob.shape) for blob in blobs if blob.name.endswith("weight")}
        once = sizes.pop("static_weight", 0)
        tops = [(steps, streams, self.outputs), *(state,) * self.exposed]
        return LayerPlan(tops, blobs, streams * (steps * sum(sizes.values()) + once))

    def _blobs(self, inputs: int, static: int | None) -> list[BlobSpec]:
        weight, bias = self.param.weight_filler, self.param.bias_filler
        rows = self.gates * self.outputs
        blobs = [BlobSpec("weight", (rows, inputs), weight), BlobSpec("bias", (rows,), bias)]
        if static is not None:
            blobs.append(BlobSpec("static_weight", (rows, static), weight))
        return [*blobs, BlobSpec("hidden_weight", (rows, self.outputs), weight)]

    # ------------------------------------------------------------------ forward, ONNX and source

    @property
    def _step_blobs(self) -> list[str]:
        """The names of the blobs that a step uses."""
        return [name for name in self.blob_names if name not in ("weight", "bias", "static_weight")]

    def _initial_state(self, x: Tensor, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if given:
            return tuple(state[0] for state in given)
        kept = [getattr(self, name) for name in self._state_names]
        # As in Caffe's blobs, more streams than ever before get new memory, which is zero; fewer read the first rows.
        if self.carry_state and kept[0] is not None and len(kept[0]) >= x.shape[1]:
            return tuple(_readable(state[: x.shape[1]]).to(x) for state in kept)
        return (x.new_zeros(x.shape[1], self.outputs),) * self.states

    def _store_state(self, state: Sequence[Tensor]) -> None:
        """Store the last state; later rows, of an earlier pass with more streams, stay as in Caffe's memory."""
        for name, value in zip(self._state_names, state, strict=True):
            kept = getattr(self, name)
            value = value.detach()
            if kept is not None and len(kept) > len(value):
                value = torch.cat([value, _readable(kept[len(value) :]).to(value)])
            setattr(self, name, value)

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        inputs = x.flatten(2) @ self.blob("weight").T + self.blob("bias")
        if self.has_static:
            inputs = inputs + others[0].flatten(1) @ self.blob("static_weight").T
        initial = self._initial_state(x, others[self.has_static :])
        top, state = type(self).run(inputs, cont, initial, *(self.blob(name) for name in self._step_blobs))
        if self.carry_state and self.has_state:
            self._store_state(state)
        return with_states(top, state[: self.exposed])

    def onnx(self, graph: OnnxGraph, x: str, cont: str, *others: str) -> list[str]:
        """Project all inputs at once, then Scan over the steps, so that their number stays dynamic."""

        def projected(x: str, blob: str) -> str:
            return graph.node("MatMul", [x, graph.node("Transpose", [graph.parameter(blob)], perm=[1, 0])])

        flat = x
        if len(graph.shape(x)) > 3:
            flat = graph.node("Reshape", [x, graph.constant(integers(0, 0, -1))])
        inputs = graph.node("Add", [projected(flat, "weight"), graph.parameter("bias")])
        if self.has_static:
            static = projected(graph.node("Flatten", [others[0]], axis=1), "static_weight")
            inputs = graph.node("Add", [inputs, static])
        zero = graph.constant(integers(0))
        given = [graph.node("Squeeze", [state, zero]) for state in others[self.has_static :]]
        if not given:
            streams = graph.node("Shape", [x], start=1, end=2)
            shape = graph.node("Concat", [streams, graph.constant(integers(self.outputs))], axis=0)
            given = [graph.node("ConstantOfShape", [shape])] * self.states
        marks = graph.node("Unsqueeze", [cont, graph.constant(integers(2))])
        blobs = {name: graph.parameter(name) for name in self._step_blobs}

        def step(*given: str) -> list[str]:
            values = blobs | dict(zip([*"hc"[: self.states], "x", "mark"], given, strict=True))
            for op, inputs, outputs, attributes in self.step_onnx:
                names = outputs.split()
                made = graph.nodes(op, [values[name] for name in inputs.split()], len(names), **attributes)
                values.update(zip(names, made, strict=True))
            return [values[name] for name in [*("h'", "c'")[: self.states], "o"]]

        *last, top = graph.scan(given, [inputs, marks], step)
        return [top, *(graph.node("Unsqueeze", [state, zero]) for state in last[: self.exposed])]

    def source(self, code: SourceCode, x: str, cont: str, *others: str) -> list[str]:
        blob = {name: code.parameter(name, self.blob(name)) for name in self.blob_names}
        inputs = f"{x}.flatten(2) @ {blob['weight']}.T + {blob['bias']}"
        if self.has_static:
            inputs += f" + {others[0]}.flatten(1) @ {blob['static_weight']}.T"
        given = [f"{state}[0]" for state in others[self.has_static :]]
        zeros = f"{x}.new_zeros({x}.shape[1], {self.outputs})"
        states = given or [zeros] * self.states
        state = ", ".join(states) if len(states) > 1 else f"{states[0]},"
        weights = ", ".join(blob[name] for name in self._step_blobs)
        call = f"{code.helper(type(self).run)}({inputs}, {cont}, ({state}), {weights})"
        if not self.exposed:
            return [f"{call}[0]"]
        return [f"{code.helper(with_states)}(*{call})"]


@register_layer("RNN")
class RNN(_Recurrent):
    """A plain recurrent net with tanh, whose output is a projection of its state."""

    gates, states = 1, 1
    run = staticmethod(caffe_rnn)
    step_onnx = (
        ("Mul", "h mark", "kept", {}),
        ("Gemm", "kept hidden_weight x", "sum", {"transB": 1}),
        ("Tanh", "sum", "h'", {}),
        ("Gemm", "h' output_weight output_bias", "projected", {"transB": 1}),
        ("Tanh", "projected", "o", {}),
    )
    no_float16 = "a state that is carried on"

    def _blobs(self, inputs: int, static: int | None) -> list[BlobSpec]:
        return [
            *super()._blobs(inputs, static),
            BlobSpec("output_weight", (self.outputs, self.outputs), self.param.weight_filler),
            BlobSpec("output_bias", (self.outputs,), self.param.bias_filler),
        ]


@register_layer("LSTM")
class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) with forget gates and no peepholes."""

    gates, states = 4, 2
    run = staticmethod(caffe_lstm)
    step_onnx = (
        ("Mul", "h mark", "kept", {}),
        ("Gemm", "kept hidden_weight x", "sum", {"transB": 1}),
        ("Split", "sum", "input forget output new", {"axis": 1, "num_outputs": 4}),
        ("Sigmoid", "input", "i", {}),
        ("Sigmoid", "forget", "f", {}),
        ("Sigmoid", "output", "out", {}),
        ("Tanh", "new", "g", {}),
        ("Mul", "f c", "remembered", {}),
        ("Mul", "remembered mark", "carried", {}),
        ("Mul", "i g", "added", {}),
        ("Add", "carried added", "c'", {}),
        ("Tanh", "c'", "tanh_c", {}),
        ("Mul", "out tanh_c", "h'", {}),
        ("Identity", "h'", "o", {}),
    )
    no_float16 = "a state that is carried on"
