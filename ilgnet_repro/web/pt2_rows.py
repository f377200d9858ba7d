"""An exported PyTorch program's operators as rows."""

from __future__ import annotations

from math import prod

from ..runtime.pt2_file import Pt2Program
from .rows import Blob, OpenShape, Row, Rows


def pt2_rows(program: Pt2Program, name: str) -> Rows:
    """Return the operators of a program; shapes are those of the file."""
    rows = [Row(given, "input", (shape,), writes=(given,)) for given, shape in program.inputs.items()]
    entry = {value: given for given, value in program.input_values().items()}
    counted: set[str] = set()
    for step in program.steps():
        held = {value: tensor for value in step.reads if (tensor := program.parameter(value)) is not None}
        reads = tuple(entry.get(value, value) for value in step.reads if value not in held)
        shapes = program.shapes
        rows.append(
            Row(
                step.writes[0] if step.writes else step.target, step.target.removeprefix("torch.ops.aten."),
                tuple(shapes[value] for value in step.writes if value in shapes),
                sum(tensor.numel() for value, tensor in held.items() if value not in counted),
                _multiply_adds(step.target, [shapes.get(value) for value in (*step.reads[:2], *step.writes[:1])]),
                reads=reads, writes=step.writes, fields=step.target,
                bottoms=tuple(shapes.get(value) for value in step.reads if value not in held),
                blobs=tuple(Blob(value, tuple(tensor.shape)) for value, tensor in held.items()),
            )
        )  # fmt: skip
        counted.update(held)
    batch = max((shape[0] or 1 for shape in program.inputs.values() if shape), default=1)
    return Rows(
        name, "torch.export", tuple(rows), sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows) // (batch or 1),
        tuple(Blob(given, shape) for given, shape in program.inputs.items()), program.outputs,
    )  # fmt: skip


def _multiply_adds(target: str, shapes: list[OpenShape | None]) -> int:
    """Return the multiply-adds of a convolution or dense layer, 0 of another operator."""
    if len(shapes) < 3 or any(shape is None for shape in shapes):
        return 0
    _, weight, top = ([1 if length is None else length for length in shape or ()] for shape in shapes)
    operator = target.removeprefix("torch.ops.aten.").partition(".")[0]
    return prod(top) * prod(weight[1:]) if operator in ("conv1d", "conv2d", "conv3d", "linear") else 0
