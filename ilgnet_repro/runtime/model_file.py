"""This package's safetensors files of models that are no Caffe nets: name and options, weights, what is known of them.

The model's own package makes it: the manifest says which function does (``[models]`` of a ``models.toml``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..about import About
from ..caffe.param_sharing import show_shape
from ..errors import FormatError, IlgnetError, WeightsError, did_you_mean
from ..files import json_text, parse_json
from ..manifest import listed, resolve
from .drawn import about_now, drawn_modules
from .model import Model
from .net_file import MEAN_TENSOR, MODEL
from .origin import Origin
from .safetensors_file import TensorFile, open_safetensors

_OWN = (MODEL, "source", "preprocessing", "about")


def model_metadata(model: Model) -> dict[str, str]:
    """Return what a file says of a model: its name and options, what is known of it, and its further metadata."""
    return {
        MODEL: json_text({"name": model.name, "options": model.options}),
        **about_now(model).to_metadata(),
        **model.extra_metadata,
    }


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load a model from the file that `save` wrote; its tensors are memory-mapped, and it is in evaluation mode.

    Raises FormatError where the metadata are not as this package writes them, WeightsError, by tensor, where the tensors
    are not the model's.
    """
    origin = Origin.of(path)
    file = open_safetensors(path)
    name, options = _read_spec(file)
    functions = listed("models")
    if name not in functions:
        known = ", ".join(functions) or "none"
        raise FormatError(
            f"{path}: model {name!r} is unknown{did_you_mean(name, functions)}; known are {known}"
        )
    try:
        with torch.device("meta"):  # no memory is taken before the file is known to fit
            model: Model = resolve(functions[name])(name, **options)
    except IlgnetError as error:
        raise FormatError(f"{path}: {error}") from error
    mean = file.tensors.get(MEAN_TENSOR)
    _take_tensors(model, {key: value for key, value in file.tensors.items() if key != MEAN_TENSOR}, file.path)
    try:
        model.about = About.from_metadata(file.metadata, None if mean is None else mean.numpy())
    except IlgnetError as error:
        raise type(error)(f"{path}: {error}") from error
    if model.about.drawn is not None:
        model.drawn = drawn_modules(model, model.about.drawn.layers, model.about.drawn.of)
    _check_score(model, file.path)
    model.extra_metadata = {
        key: value
        for key, value in file.metadata.items()
        if key not in _OWN and not key.startswith("ilgnet_repro.")
    }
    model.origin = origin
    return model.eval()


def _read_spec(file: TensorFile) -> tuple[str, dict[str, Any]]:
    try:
        found = parse_json(file.metadata[MODEL])
        if found.keys() != {"name", "options"}:
            raise ValueError(
                f"it states {', '.join(map(repr, found)) or 'nothing'}, not 'name' and 'options'"
            )
        name, options = found["name"], found["options"]
        if not isinstance(name, str) or not isinstance(options, dict):
            raise ValueError("its name is not text, or its options are not an object")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{file.path}: model: not as this package writes it ({error})") from error
    return name, options


def _take_tensors(model: Model, found: Mapping[str, Tensor], path: str) -> None:
    """Give a model the tensors of a file.  Raises WeightsError for one that is missing, unknown, or of another form."""
    own = model.state_dict()
    for key, value in own.items():
        if key not in found:
            raise WeightsError(
                f"{path}: holds no tensor {key}, which the model {model.name} needs; save it again"
            )
        for what, stated, needed in (
            ("", show_shape(tuple(found[key].shape)), show_shape(tuple(value.shape))),
            ("of ", _kind(found[key]), _kind(value)),
        ):
            if stated != needed:
                raise WeightsError(
                    f"{path}: tensor {key} is {what}{stated}, the model {model.name} needs {needed}; save it again"
                )
    unknown = [key for key in found if key not in own]
    if unknown:
        raise WeightsError(
            f"{path}: holds tensor {unknown[0]}, which the model {model.name} does not have; is it another model's file?"
        )
    model.load_state_dict(dict(found), assign=True)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_score(model: Model, path: str) -> None:
    score = model.about.score
    for name in (score.output, score.distribution) if score is not None else ():
        if name and name not in model.outputs:
            raise FormatError(
                f"{path}: about: the score is of {name!r}, which the model {model.name} does not return"
            )
