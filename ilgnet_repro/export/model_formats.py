"""The formats of models that are no Caffe nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from ..errors import IlgnetError
from ..runtime.model import Model
from . import model_safetensors
from .saving import Options, Progress

Writer = Callable[[Path, Progress], list[Path]]
# The writer of each format, and the options that it takes.
_WRITERS: dict[str, tuple[Callable[[Model, Path, Options, Progress], list[Path]], tuple[str, ...]]] = {
    "safetensors": (
        lambda model, path, options, progress: model_safetensors.write(model, path, progress),
        (),
    ),
}


def find_writer(model: Model, format_: str, options: Options) -> Writer:
    """Return what writes a model in a format, checked before anything is written.

    Raises IlgnetError for a format that only holds Caffe nets, or an option that does not apply.
    """
    if format_ not in _WRITERS:
        raise IlgnetError(
            f"model {model.name}: is no Caffe net, so it has no {format_} file; use {', '.join(_WRITERS)}",
            option="to",
        )
    write, taken = _WRITERS[format_]
    default = Options()
    for field in fields(Options):
        if field.name not in taken and getattr(options, field.name) != getattr(default, field.name):
            raise IlgnetError(
                f"model {model.name}: {field.name}= does not apply to a {format_} file of it; leave it out",
                option=field.name,
            )
    return lambda path, progress: write(model, path, options, progress)
