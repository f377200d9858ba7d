"""The formats of models that are no Caffe nets."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from ..errors import IlgnetError
from ..runtime.model import Model
from .saving import Options, Progress

Writer = Callable[[Path, Progress], list[Path]]
# Format -> the module whose `write` writes it, imported when used, and the options that it takes.
_WRITERS: dict[str, tuple[str, Collection[str]]] = {
    "safetensors": ("model_safetensors", ()),
    "onnx": ("model_onnx", ("batch", "opset", "with_preprocessing", "input_order")),
    "pt2": ("model_pt2", ("batch",)),
}


def find_writer(model: Model, format_: str, options: Options) -> Writer:
    """Return what writes a model in a format, checked before anything is written.

    Raises IlgnetError for a format that only holds Caffe nets, or an option that does not apply.
    """
    if format_ not in _WRITERS:
        raise IlgnetError(
            f"model {model.name}: is not a Caffe net, so it has no {format_} file; use {', '.join(_WRITERS)}",
            option="to",
        )
    module, taken = _WRITERS[format_]
    default = Options()
    for field in fields(Options):
        if field.name not in taken and getattr(options, field.name) != getattr(default, field.name):
            raise IlgnetError(
                f"model {model.name}: {field.name}= does not apply to a {format_} file of it; leave it out",
                option=field.name,
            )
    write: Callable[[Model, Path, Options, Progress], list[Path]] = import_module(
        f"{__package__}.{module}"
    ).write
    return lambda path, progress: write(model, path, options, progress)
