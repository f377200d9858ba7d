"""A model that is not a Caffe net as a program of torch.export: what its ONNX and pt2 files are made of."""

from __future__ import annotations

import contextlib
import copy
import io

import torch
from torch import Tensor, nn

from ..errors import IlgnetError
from ..process import environment
from ..runtime.model import Model
from ..runtime.python_names import argument_name
from .pt2_program import LARGEST_BATCH, reason_of, with_arguments, without_samples

TRACED_BATCH = 3  # torch takes an open axis of one for a fixed one


class _ByName(nn.Module):
    """A model as a module whose argument has the name of its input."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        name = model.input_name

        def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            found: dict[str, Tensor] = model.forward(inputs[name])
            return found

        self.forward = with_arguments({name: argument_name(name)}, run)


def trace(model: Model, batch: int | None = None) -> torch.export.ExportedProgram:
    """Return a model's program in evaluation mode, in float32 on the CPU, without what only training needs.

    The batch is open unless stated; the other axes are those of `Model.row`.  Raises IlgnetError where torch.export
    cannot trace it.
    """
    made = _float_on_cpu(model.for_inference()).eval()
    name = model.input_name
    given = {argument_name(name): torch.zeros(batch or TRACED_BATCH, *model.row)}
    axes = {} if batch else {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    try:
        # On failure torch prints the whole graph; the reason is in the exception.
        with (
            torch.no_grad(), contextlib.redirect_stderr(io.StringIO()), environment("TORCHINDUCTOR_CACHE_DIR"),
        ):  # fmt: skip
            program = torch.export.export(
                _ByName(made), (), given, dynamic_shapes={argument_name(name): axes}
            )
    except Exception as error:  # torch raises many kinds, UserError and its own assertions among them
        raise IlgnetError(
            f"model {model.name}: cannot be exported by torch.export ({reason_of(error)}); use to='safetensors'",
            option="to",
        ) from error
    return without_samples(program)


def _float_on_cpu(model: Model) -> Model:
    held = [*model.parameters(), *model.buffers()]
    if all(
        one.device.type == "cpu" and one.dtype in (torch.float32, torch.int64, torch.bool) for one in held
    ):
        return model
    return copy.deepcopy(model).to("cpu", torch.float32)
