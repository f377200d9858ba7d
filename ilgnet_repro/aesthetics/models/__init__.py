"""The study's models that are no Caffe nets: NIMA, TANet, GSFL-Net and the attributes network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from ...errors import IlgnetError, did_you_mean, excerpt
from ...runtime.model import Model
from .attributes import ATTRIBUTES, AttributesNet
from .backbones import BACKBONES
from .gsfl import Gsfl
from .nima import Nima
from .tanet import BRANCHES, TANet

MODELS: Mapping[str, type[Model]] = {
    "nima": Nima,
    "tanet": TANet,
    "gsfl": Gsfl,
    "attributes": AttributesNet,
}
# The values that an option may have, beside its type.
CHOICES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("nima", "backbone"): Nima.backbones,
    ("tanet", "data"): ("tad66k", "ava"),
    ("tanet", "branches"): BRANCHES,
    ("attributes", "data"): tuple(ATTRIBUTES),
    ("attributes", "tasks"): ("score", *dict.fromkeys(chain.from_iterable(ATTRIBUTES.values()))),
}


def _are_texts(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(one, str) for one in value)


# Of an option that is a number: more is no size of a layer that fits in memory.
LARGEST = 1 << 20
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda value: isinstance(value, str)),
    "int": ("an integer", lambda value: type(value) is int),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "tuple[str, ...]": ("several texts", _are_texts),
    "tuple[str, ...] | None": ("several texts", lambda value: value is None or _are_texts(value)),
}


def create(name: str, /, **options: Any) -> Model:
    """Return a model with drawn weights, in evaluation mode.

    ``name`` is "nima" (``backbone``), "tanet" (``data``, ``branches``), "gsfl" (``features``, ``classes``, ``groups``,
    ``hidden``, ``is_decomposed``) or "attributes" (``data``, ``tasks``, ``hidden``).  Called with N x 3 x H x W (GSFL:
    N x features), a model returns a dict of named tensors with N rows.  Raises IlgnetError for another name, option or
    value.
    """
    if name not in MODELS:
        raise IlgnetError(
            f"model {name!r} is unknown{did_you_mean(name, MODELS)}; choose one of {', '.join(MODELS)}"
        )
    known = {
        key: _KINDS[one.annotation]
        for key, one in inspect.signature(MODELS[name]).parameters.items()
        if key != "self"
    }
    for option, value in options.items():
        if option not in known:
            raise IlgnetError(f"model {name}: option {option!r} is unknown; it takes {', '.join(known)}")
        kind, is_kind = known[option]
        if not is_kind(value):
            raise IlgnetError(f"model {name}: {option} {excerpt(repr(value))} must be {kind}")
        choices = CHOICES.get((name, option))
        values = value if isinstance(value, (tuple, list)) else (value,)
        wrong = [one for one in values if choices and one not in choices]
        if wrong or not values:
            raise IlgnetError(
                f"model {name}: {option} {excerpt(repr(value))} is unknown; choose from {', '.join(choices or ())}"
            )
        if len(set(values)) < len(values):
            raise IlgnetError(
                f"model {name}: {option} {excerpt(repr(value))} states one twice; give each once"
            )
        if type(value) is int and value < 1:
            raise IlgnetError(f"model {name}: {option} {value} must be at least 1")
        if type(value) is int and value > LARGEST:
            raise IlgnetError(f"model {name}: {option} {value} must be at most {LARGEST}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    model = MODELS[name](**options).eval()
    model.mark_drawn()
    return model


__all__ = ["BACKBONES", "CHOICES", "MODELS", "create"]
