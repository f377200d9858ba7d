"""The operators of torch that models use, as ONNX nodes: a table by name, for programs of torch.export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layers.support.base import integers
from .onnx_graph import OnnxWriter

OpenShape = tuple[int | None, ...]


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by the schema's names, with handles of values in place of tensors.

    ``shapes`` are those of its tensors, ``result`` that of its result; None is the open batch.
    """

    graph: OnnxWriter
    given: Mapping[str, Any]
    shapes: Mapping[str, OpenShape]
    result: OpenShape

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def node(self, op: str, *inputs: str | None, **attributes: Any) -> str:
        """Add a node; inputs that are None are left out at the end, and empty before others."""
        listed = ["" if one is None else one for one in inputs]
        while listed and not listed[-1]:
            listed.pop()
        return self.graph.node(op, listed, **attributes)

    def floats(self, values: Any) -> str:
        """A float32 constant."""
        return self.graph.constant(np.asarray(values, np.float32))

    def integers(self, *values: int) -> str:
        """An int64 constant of one axis."""
        return self.graph.constant(integers(*values))

    def number_or_value(self, name: str) -> str:
        """Return an argument that is a tensor or a number as a value."""
        value = self[name]
        return value if isinstance(value, str) else self.floats(value)

    def expect(self, **wanted: Any) -> None:
        """Raise NotImplementedError where an argument has another value than the one that is supported."""
        for name, value in wanted.items():
            if self.given.get(name, value) != value:
                raise NotImplementedError(f"{name}={self.given[name]!r}")


Writer = Callable[[Call], str]


def _pair(values: Sequence[int] | int) -> list[int]:
    listed = [values] if isinstance(values, int) else list(values)
    return listed * 2 if len(listed) == 1 else listed


def _window(call: Call) -> dict[str, Any]:
    """The attributes that pooling layers share."""
    return {
        "kernel_shape": _pair(call["kernel_size"]), "strides": _pair(call["stride"] or call["kernel_size"]),
        "pads": _pair(call["padding"]) * 2, "ceil_mode": int(call["ceil_mode"]),
    }  # fmt: skip


def _conv2d(call: Call) -> str:
    return call.node(
        "Conv", call["input"], call["weight"], call["bias"], kernel_shape=list(call.shapes["weight"][2:]),
        strides=_pair(call["stride"]), pads=_pair(call["padding"]) * 2, dilations=_pair(call["dilation"]),
        group=call["groups"],
    )  # fmt: skip


def _batch_norm(call: Call) -> str:
    call.expect(training=False)
    names = ("input", "weight", "bias", "running_mean", "running_var")
    return call.node("BatchNormalization", *(call[name] for name in names), epsilon=call["eps"])


def _linear(call: Call) -> str:
    if len(call.shapes["input"]) != 2:
        raise NotImplementedError(f"{len(call.shapes['input'])} axes")
    return call.node("Gemm", call["input"], call["weight"], call["bias"], transB=1)


def _max_pool2d(call: Call) -> str:
    return call.node("MaxPool", call["self"], **_window(call), dilations=_pair(call["dilation"]))


def _avg_pool2d(call: Call) -> str:
    call.expect(divisor_override=None)
    window = _window(call)
    if window["ceil_mode"]:
        raise NotImplementedError("ceil_mode=True")
    return call.node("AveragePool", call["self"], **window, count_include_pad=int(call["count_include_pad"]))


def _adaptive_average(call: Call) -> str:
    """Each output is the mean of a range of its axis: products with matrices of these means, from either side."""
    value, shape = call["self"], call.shapes["self"]
    sizes = call["output_size"]
    lengths = shape[-len(sizes) :]
    if None in lengths:
        raise NotImplementedError("an open size")
    for axis, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        assert length is not None
        if length == size:
            continue
        means = np.zeros((size, length), np.float32)
        for index in range(size):
            start, end = index * length // size, -(-(index + 1) * length // size)
            means[index, start:end] = 1 / (end - start)
        is_last = axis == len(sizes) - 1
        value = (
            call.node("MatMul", value, call.floats(means.T))
            if is_last
            else call.node("MatMul", call.floats(means), value)
        )
    result: str = value
    return result


def _reduced(op: str, axes: str = "dim") -> Writer:
    def write(call: Call) -> str:
        if not call[axes]:
            raise NotImplementedError("all axes at once")
        return call.node(op, call["self"], call.integers(*call[axes]), keepdims=int(call["keepdim"]))

    return write


def _norm(call: Call) -> str:
    call.expect(ord=2, dtype=None)
    return _reduced("ReduceL2")(call)


def _flatten(call: Call) -> str:
    start, axes = call["start_dim"], len(call.shapes["self"])
    if start < 0 or call["end_dim"] not in (-1, axes - 1):
        raise NotImplementedError(f"start_dim={start}, end_dim={call['end_dim']}")
    if start == 1:
        return call.node("Flatten", call["self"], axis=1)
    return call.node("Reshape", call["self"], call.integers(*[0] * start, -1))


def _reshape(call: Call) -> str:
    """To a shape of which only the batch, first, may be open."""
    if None in call.result[1:]:
        raise NotImplementedError("an open length after the first")
    lengths = [-1 if length is None else length for length in call.result]
    return call.node("Reshape", call["self"], call.integers(*lengths))


def _arithmetic(op: str) -> Writer:
    def write(call: Call) -> str:
        call.expect(alpha=1)
        return call.node(op, call.number_or_value("self"), call.number_or_value("other"))

    return write


def _clip(low: str, high: str) -> Writer:
    def write(call: Call) -> str:
        limits = [None if call.given.get(name) is None else call.floats(call[name]) for name in (low, high)]
        return call.node("Clip", call["self"], *limits)

    return write


def _transpose(call: Call) -> str:
    order = list(range(len(call.shapes["self"])))
    first, second = call["dim0"], call["dim1"]
    order[first], order[second] = order[second], order[first]
    return call.node("Transpose", call["self"], perm=order)


def _unsqueeze(call: Call) -> str:
    axis = call["dim"]
    return call.node("Unsqueeze", call["self"], call.integers(axis if axis >= 0 else axis + len(call.result)))


def _select(call: Call) -> str:
    return call.node("Gather", call["self"], call.graph.constant(np.int64(call["index"])), axis=call["dim"])


def _slice(call: Call) -> str:
    start, end, length = call["start"] or 0, call["end"], call.shapes["self"][call["dim"]]
    is_whole = start == 0 and call["step"] == 1 and (end is None or end >= (length or 1 << 31))
    if is_whole:
        return _unchanged("self")(call)
    cuts = (start, (1 << 63) - 1 if end is None else end, call["dim"], call["step"])
    return call.node("Slice", call["self"], *(call.integers(cut) for cut in cuts))


def _cat(call: Call) -> str:
    return call.node("Concat", *call["tensors"], axis=call["dim"])


def _expand_as(call: Call) -> str:
    return call.node("Expand", call["self"], call.node("Shape", call["other"]))


def _prelu(call: Call) -> str:
    """The slopes are of axis 1; ONNX aligns axes at the end."""
    slope = call["weight"]
    if call.shapes["weight"] != (1,) and len(call.shapes["self"]) > 2:
        slope = call.node("Reshape", slope, call.integers(-1, *[1] * (len(call.shapes["self"]) - 2)))
    return call.node("PRelu", call["self"], slope)


def _softmax(call: Call) -> str:
    call.expect(dtype=None)
    return call.node("Softmax", call["self"], axis=call["dim"])


def _arange(call: Call) -> str:
    return call.floats(np.arange(call["start"], call["end"]))


def _unchanged(name: str) -> Writer:
    def write(call: Call) -> str:
        value: str = call[name]
        return value

    return write


def _dropout(call: Call) -> str:
    call.expect(train=False)
    return _unchanged("input")(call)


_ATEN: Mapping[str, Writer] = {
    "conv2d.default": _conv2d,
    "batch_norm.default": _batch_norm,
    "linear.default": _linear,
    "dropout.default": _dropout,
    "feature_dropout.default": _dropout,
    "relu.default": lambda call: call.node("Relu", call["self"]),
    "sigmoid.default": lambda call: call.node("Sigmoid", call["self"]),
    "tanh.default": lambda call: call.node("Tanh", call["self"]),
    "sign.default": lambda call: call.node("Sign", call["self"]),
    "abs.default": lambda call: call.node("Abs", call["self"]),
    "sqrt.default": lambda call: call.node("Sqrt", call["self"]),
    "relu6.default": lambda call: call.node("Clip", call["self"], call.floats(0), call.floats(6)),
    "hardtanh.default": _clip("min_val", "max_val"),
    "clamp.default": _clip("min", "max"),
    "clamp_min.default": _clip("min", ""),
    "prelu.default": _prelu,
    "softmax.int": _softmax,
    "max_pool2d.default": _max_pool2d,
    "avg_pool2d.default": _avg_pool2d,
    "adaptive_avg_pool1d.default": _adaptive_average,
    "adaptive_avg_pool2d.default": _adaptive_average,
    "mean.dim": _reduced("ReduceMean"),
    "sum.dim_IntList": _reduced("ReduceSum"),
    "linalg_vector_norm.default": _norm,
    "matmul.default": lambda call: call.node("MatMul", call["self"], call["other"]),
    **{
        f"{name}.{kind}": _arithmetic(op)
        for name, op in (("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div"))
        for kind in ("Tensor", "Scalar")
    },
    "arange.start": _arange,
    "cat.default": _cat,
    "flatten.using_ints": _flatten,
    "reshape.default": _reshape,
    "view.default": _reshape,
    "transpose.int": _transpose,
    "unsqueeze.default": _unsqueeze,
    "select.int": _select,
    "slice.Tensor": _slice,
    "expand_as.default": _expand_as,
    **dict.fromkeys(
        ("alias.default", "clone.default", "contiguous.default", "detach.default", "lift_fresh_copy.default"),
        _unchanged("self"),
    ),
}  # fmt: skip


def find_writer(target: str) -> Writer | None:
    """Return what writes an operator (``aten.conv2d.default``), or None."""
    return _ATEN.get(target.removeprefix("aten."))
