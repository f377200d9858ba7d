"""Programs of torch.export, of nets and models alike: named arguments, no samples, written with their metadata."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files import deferred_file, json_text
from ..runtime.pt2_file import METADATA_FILE

LARGEST_BATCH = 1 << 14


def with_arguments(
    names: Mapping[str, str], run: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Callable[..., dict[str, Tensor]]:
    """Return a function whose arguments have the names of the mapping's values, as torch.export requires.

    ``run`` receives what they are given, under the mapping's keys.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names.values()])

    def forward(*values: Tensor, **named: Tensor) -> dict[str, Tensor]:
        given = signature.bind(*values, **named).arguments
        return run({blob: given[name] for blob, name in names.items()})

    vars(forward)["__signature__"] = signature  # torch.export reads it through inspect
    return forward


def without_samples(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove the example inputs, the only part that torch would pickle, and the paths of source files.

    With the latter a file's bytes would depend on where this package is installed.
    """
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def write_program(
    path: Path, program: torch.export.ExportedProgram, metadata: Mapping[str, str]
) -> list[Path]:
    """Write one file, from which `torch.export.load` reads the program without this package."""
    with deferred_file(path) as raw, io.BufferedWriter(raw) as file:
        torch.export.save(program, file, extra_files={METADATA_FILE: json_text(metadata)})
    return [path]


def reason_of(error: Exception) -> str:
    """Return the first sentence of torch's message, without the code and the advice that follow it."""
    text = re.sub(r"\s+", " ", str(error))
    text = re.split(
        r" \(unhinted| \(Size-like| consider using| Caused by|! For more| For more information", text
    )[0]
    return text.strip(" .!")[:200] or type(error).__name__
