"""ONNX opsets: which ones a file may have, and how an operator is written in each of them.

Layers write operators as opset 20 defines them.  `adapt` returns their form in another opset, and in every opset the
forms that most consumers read (docs/consumers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..errors import IlgnetError
from ..layers.support.base import Attribute, OnnxGraph, integers
from .onnx_max_roi_pool import max_roi_pool_onnx

LOWEST = 13
# For reach: later opsets have no operator that our files need, and ONNX Runtime reads this one since 1.6 (2020).
DEFAULT = LOWEST
_END = 2**63 - 1  # a Slice's end, past any length


class Graph(OnnxGraph, Protocol):
    """The writer, which also knows its constants."""

    def value_of(self, name: str) -> np.ndarray | None:
        """Return the constant of that name; None for other values."""


@lru_cache
def newest() -> int:
    """Return the newest opset that the installed onnx and, where it is there, ONNX Runtime accept."""
    known: int = onnx.defs.onnx_opset_version()
    try:
        import onnxruntime
    except ImportError:
        return known
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(known, DEFAULT, -1):
        try:
            onnxruntime.InferenceSession(_identity(opset), options, providers=["CPUExecutionProvider"])
        except Exception:  # its exceptions share no base class but Exception
            continue
        return opset
    return DEFAULT


def _identity(opset: int) -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    return bytes(made.SerializeToString())


def check_opset(opset: object) -> None:
    """Raise IlgnetError unless a file may have this opset."""
    is_whole = isinstance(opset, int) and not isinstance(opset, bool)
    if not isinstance(opset, int) or not is_whole or opset < LOWEST or (opset > DEFAULT and opset > newest()):
        raise IlgnetError(
            f"opset={opset!r}: choose one from {LOWEST} to {newest()}, the newest that ONNX Runtime accepts here",
            option="opset",
        )


def ir_version(opset: int) -> int:
    """Return the IR version of the first release of ONNX with that opset."""
    version: int = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return version


# ---------------------------------------------------------------------- forms

Form = Callable[[Graph, list[str], dict[str, Attribute], int], str | None]
"""Changes inputs and attributes to those of the opset, or adds other nodes and returns their output."""


def adapt(
    graph: Graph, op: str, inputs: list[str], attributes: dict[str, Attribute], opset: int
) -> str | None:
    """Change ``inputs`` and ``attributes`` of an operator to its form in ``opset``.

    Where it takes other nodes they are added, and their output is returned.
    """
    opsets, form = _FORMS.get(op, (range(0), _as_given))
    return form(graph, inputs, attributes, opset) if opset in opsets else None


def needed_opset(op: str, inputs: Sequence[str], attributes: Mapping[str, Attribute], opset: int) -> int:
    """Return the first opset, from ``opset`` on, whose operator has these inputs and attributes.

    ``opset`` itself for an operator that ONNX does not have at all, which no opset would change.
    """
    known: int = onnx.defs.onnx_opset_version()
    return next((one for one in range(opset, known + 1) if _fits(op, len(inputs), attributes, one)), opset)


def _fits(op: str, inputs: int, attributes: Mapping[str, Attribute], opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return False
    if opset < 18 and op.startswith("Scatter") and attributes.get("reduction") in ("max", "min"):
        return False
    return inputs <= schema.max_input and attributes.keys() <= schema.attributes.keys()


def _axes_as_attribute(
    graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int
) -> str | None:
    """Reduce: the axes are an attribute before opset 18, so that they must be constant."""
    axes = graph.value_of(inputs[1]) if len(inputs) > 1 and inputs[1] else None
    if axes is not None:
        del inputs[1]
        attributes["axes"] = [int(axis) for axis in axes]
    return None


def _reduce(op: str) -> Form:
    """Reduce: OpenCV 4 and 5 read other values than those of axes that are not spatial, unless these come one by one."""

    def write(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
        axes = graph.value_of(inputs[1]) if len(inputs) > 1 and inputs[1] else None
        if axes is not None and axes.size > 1 and 0 <= axes.min() < 2:
            rest = "ReduceSum" if op == "ReduceSumSquare" else op
            spatial = axes[axes > 1]
            value, first = inputs[0], op
            for some in ([spatial] if spatial.size else []) + sorted(axes[axes < 2], reverse=True):
                value = graph.node(
                    first, [value, graph.constant(integers(*np.atleast_1d(some)))], **attributes
                )
                first = rest
            return value
        return (
            _axes_as_attribute(graph, inputs, attributes, opset) if opset < 18 and op != "ReduceSum" else None
        )

    return write


def _absolute_sum(
    graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int
) -> str | None:
    """ReduceL1: OpenVINO (2026.4) reduces all axes of that of opset 13, whatever it states."""
    return graph.node("ReduceSum", [graph.node("Abs", inputs[:1]), *inputs[1:]], **attributes)


def _equal_parts(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    """Split: without lengths the parts are equal, and their number is that of the outputs."""
    attributes.pop("num_outputs", None)
    return None


def _whole_shape(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    """Shape: of all axes, of which a Slice takes some; before opset 15 it has no attributes, and OpenCV 4 reads none."""
    if not attributes:
        return None
    cuts = [
        graph.constant(np.array([value]))
        for value in (attributes.get("start", 0), attributes.get("end", _END), 0)
    ]
    return graph.node("Slice", [graph.node("Shape", inputs), *cuts])


def _one_by_one(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    """Unsqueeze: OpenCV 4 adds one axis at a time."""
    axes = graph.value_of(inputs[1])
    if axes is None or axes.size < 2 or axes.min() < 0:
        return None
    value = inputs[0]
    for axis in sorted(axes.tolist()):
        value = graph.node("Unsqueeze", [value, graph.constant(integers(axis))])
    return value


def _all_axes(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    """Resize: ``axes`` exist from opset 18 on, and OpenCV 5 reads none; the sizes of all axes say the same."""
    axes = attributes.get("axes")
    if not isinstance(axes, Sequence) or len(inputs) < 4:
        return None
    first = int(axes[0])
    if list(axes) != list(range(first, first + len(axes))):
        return None
    del attributes["axes"]  # they are the last ones, as the layers give them
    kept = graph.node("Shape", [inputs[0]])
    cuts = [graph.constant(integers(value)) for value in (0, first, 0)]
    inputs[3] = graph.node("Concat", [graph.node("Slice", [kept, *cuts]), inputs[3]], axis=0)
    return None


def _stated_value(
    graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int
) -> str | None:
    """ConstantOfShape: OpenCV 5 does not know the default of its value, a float32 zero."""
    if "value" not in attributes:
        attributes["value"] = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    return None


def _hard_swish(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    return graph.node("Mul", [inputs[0], graph.node("HardSigmoid", inputs, alpha=1 / 6, beta=0.5)])


def _mish(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    return graph.node("Mul", [inputs[0], graph.node("Tanh", [graph.node("Softplus", inputs)])])


def _gelu(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    (x,) = inputs

    def number(value: float) -> str:
        return graph.constant(np.array(value, np.float32))

    if attributes.get("approximate", "none") == "tanh":
        cube = graph.node("Mul", [graph.node("Mul", [x, x]), graph.node("Mul", [x, number(0.044715)])])
        scaled = graph.node("Mul", [graph.node("Add", [x, cube]), number((2 / np.pi) ** 0.5)])
        gate = graph.node("Tanh", [scaled])
    else:
        gate = graph.node("Erf", [graph.node("Mul", [x, number(0.5**0.5)])])
    half = graph.node("Mul", [x, number(0.5)])
    return graph.node("Mul", [half, graph.node("Add", [gate, number(1)])])


def _roi_maxima(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    """MaxRoiPool: ONNX Runtime (1.32) has none of opset 22."""
    pooled, scale = attributes["pooled_shape"], attributes.get("spatial_scale", 1.0)
    assert isinstance(pooled, Sequence) and isinstance(scale, float | int)
    rows, columns = map(int, pooled)
    return max_roi_pool_onnx(graph, *inputs, pooled_shape=(rows, columns), spatial_scale=scale)


def _as_given(graph: Graph, inputs: list[str], attributes: dict[str, Attribute], opset: int) -> str | None:
    return None


_ALL = range(1 << 30)
# Operator -> the opsets that need another form than the layers', and what writes it.
_FORMS: dict[str, tuple[range, Form]] = {
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp"), (range(18), _axes_as_attribute)),
    **{
        op: (_ALL, _reduce(op))
        for op in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
    },
    "ReduceL1": (_ALL, _absolute_sum),
    "Split": (range(18), _equal_parts),
    "Shape": (_ALL, _whole_shape),
    "Unsqueeze": (_ALL, _one_by_one),
    "Resize": (_ALL, _all_axes),
    "ConstantOfShape": (_ALL, _stated_value),
    "MaxRoiPool": (range(22, _ALL.stop), _roi_maxima),
    "HardSwish": (range(14), _hard_swish),
    "Mish": (range(18), _mish),
    "Gelu": (range(20), _gelu),
}  # fmt: skip
