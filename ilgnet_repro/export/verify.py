"""Verification: what was written is opened again and compared with the net within a tolerance, on seeded inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import IlgnetError
from ..layers.support.base import Shape
from ..runtime.difference import Difference, differ
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.seeded_inputs import SEED, draw_inputs
from .consumers import Job, run_consumer
from .formats import Format
from .half_arithmetic import LIMIT
from .saving import Saving

BATCH = 2
SAME = 1e-4  # of the largest value: another order of float32 sums


@dataclass(frozen=True)
class Verification:
    """The difference between a written file's outputs and the net's.

    ``blob`` is the output with the largest difference relative to the tolerance.  ``largest`` is None where no output
    could be compared; ``not_compared`` lists the outputs that were not fully compared, with the reason.
    """

    file: str
    blob: str
    largest: float | None
    scale: float  # the largest absolute value of that output
    inputs: str
    not_compared: tuple[str, ...] = ()
    allowed: float = SAME  # of the scale

    @property
    def differs(self) -> bool:
        """Whether the difference is more than another order of float32 sums can cause."""
        return self.largest is not None and not self.largest <= _tolerance(self.scale, self.allowed)

    @property
    def how(self) -> str:
        """The difference as text."""
        if self.largest is None or np.isinf(self.largest):
            return "in its shape or in which of its values are finite"
        return f"by {self.largest:.3g}"

    @property
    def is_equal(self) -> bool | None:
        """Whether the outputs are equal; None where none could be compared."""
        return None if self.largest is None else not self.differs


def _tolerance(scale: float, allowed: float) -> float:
    return 1e-5 + allowed * scale


def _compared(saving: Saving, outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Leave out of outputs in float16 arithmetic those whose rows are chosen by values: others may be chosen."""
    if saving.half is None:
        return outputs
    net = saving.net
    return {
        name: value
        for name, value in outputs.items()
        if not any(layer.sized_by_values for _, layer in net.steps((name,)))
    }


def _allowed(saving: Saving) -> float:
    """Return how far outputs may be off: the arithmetic of an engine in float16 is not that of the measurement."""
    return SAME if saving.half is None else 2 * LIMIT


def seeded_inputs(net: CaffeNet, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Return inputs for the net's outputs, drawn from a seed in the range that their readers accept.

    A net stated for one sample gets ``batch`` samples, unless it accepts only one.
    """
    shapes = _batched(net, batch)
    return draw_inputs(net.plan.at(shapes), net.graph, shapes)


def _batched(net: CaffeNet, batch: int) -> dict[str, Shape]:
    own = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
    if any(shape[:1] != (1,) for shape in own.values()):
        return own
    more = {name: (batch, *shape[1:]) for name, shape in own.items()}
    try:
        net.blob_shapes(more)
    except IlgnetError:
        return own
    return more


def verify_files(format_: Format, saving: Saving, paths: Sequence[Path]) -> Verification:
    """Run what was written and the net itself on the same seeded inputs.

    Quantized weights are compared with themselves, run by this package: their difference from the original
    is measured (`measure_deviation`), not checked.
    """
    if reason := format_.not_run(paths, saving):
        return Verification(paths[0].name, "", None, 0.0, "none: it is not run", (reason,))
    reference = format_.reference(saving)
    given, inputs = format_.feed(saving, seeded_inputs(reference, saving.options.batch or BATCH))
    with torch.inference_mode(), as_loaded(reference):
        expected = _compared(saving, reference(inputs))
        found = format_.reopen(paths, saving)(given)
    return compare(paths[0], expected, found, f"seed {SEED}: {show_inputs(given)}", _allowed(saving))


def verify_in_consumer(consumer: str, format_: Format, saving: Saving, path: Path) -> Verification:
    """Let a consumer run an ONNX file, in a process of its own, and compare what it computes with the net's outputs.

    Raises IlgnetError where it cannot run the file.
    """
    reference = format_.reference(saving)
    given, inputs = format_.feed(saving, seeded_inputs(reference, saving.options.batch or BATCH))
    with torch.inference_mode(), as_loaded(reference):
        expected = _compared(saving, reference(inputs))
    return compare_in_consumer(consumer, path, given, expected, _allowed(saving))


def compare_in_consumer(
    consumer: str,
    path: Path,
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    allowed: float = SAME,
) -> Verification:
    """Let a consumer run an ONNX file on these inputs.  Raises IlgnetError where it cannot, or computes otherwise."""
    arrays = {name: value.numpy() for name, value in given.items()}
    (ran,) = run_consumer(consumer, [Job(path, arrays, list(expected))])
    if ran.outputs is None:
        raise IlgnetError(
            f"{path.name}: {consumer} cannot run it ({ran.failed}); nothing was written; choose another consumer, "
            "or leave it out",
            option="verify",
        )
    check = compare(path, expected, ran.outputs, f"seed {SEED}: {show_inputs(given)}", allowed)
    blob, how = _other_kind(expected, ran.outputs) or (check.blob, check.how if check.differs else "")
    if how:
        raise IlgnetError(
            f"{path.name}: {consumer} {ran.version} computes output {blob!r} otherwise than the net, {how}; "
            "nothing was written; choose another consumer, or leave it out",
            option="verify",
        )
    return replace(check, file=f"{path.name} in {consumer} {ran.version}")


def _other_kind(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, np.ndarray]
) -> tuple[str, str] | None:
    """Return the first output that is absent, or is of another type or shape, with what it is."""
    for name, value in expected.items():
        wanted, other = value.numpy(), found.get(name)
        if other is None:
            return name, "it returns none of that name"
        if other.dtype != wanted.dtype:
            return name, f"in its type, {other.dtype} for {wanted.dtype}"
        if other.shape != wanted.shape:
            return name, f"in its shape, {list(other.shape)} for {list(wanted.shape)}"
    return None


def show_inputs(given: Mapping[str, torch.Tensor]) -> str:
    """Return the names and shapes of inputs as text."""
    return ", ".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in given.items())


def compare(
    file: Path,
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, np.ndarray | torch.Tensor],
    inputs: str,
    allowed: float = SAME,
) -> Verification:
    """Compare the outputs; return the one with the largest difference relative to its tolerance."""
    apart = {
        blob: differ(tensor.detach().double().numpy(), np.asarray(found[blob]))
        if blob in found
        else Difference(np.inf, np.inf, 0.0, tensor.numel(), 0)
        for blob, tensor in expected.items()
    }
    notes = tuple(f"{blob}: {one.left_out}" for blob, one in apart.items() if one.left_out)
    compared = {blob: one for blob, one in apart.items() if one.is_compared}
    if not compared:
        return Verification(file.name, "", None, 0.0, inputs, notes or ("the net has no outputs",), allowed)
    worst = max(compared, key=lambda blob: compared[blob].largest / _tolerance(compared[blob].scale, allowed))
    return Verification(
        file.name, worst, compared[worst].largest, compared[worst].scale, inputs, notes, allowed
    )
