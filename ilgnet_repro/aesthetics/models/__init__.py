"""The study's models that are no Caffe nets: NIMA, TANet, GSFL-Net and the attributes network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import IlgnetError, did_you_mean
from .attributes import ATTRIBUTES, AttributesNet
from .backbones import BACKBONES
from .gsfl import Gsfl
from .nima import Nima
from .tanet import BRANCHES, TANet

MODELS: Mapping[str, type[nn.Module]] = {
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
}


def create(name: str, **options: Any) -> nn.Module:
    """Return a model with drawn weights, in evaluation mode.

    ``name`` is "nima" (``backbone``), "tanet" (``data``, ``branches``), "gsfl" (``features``, ``classes``, ``groups``) or
    "attributes" (``data``, ``tasks``).  Called with N x 3 x H x W (GSFL: N x features), a model returns a dict of named
    tensors with N rows.  Raises IlgnetError for another name, option or value.
    """
    if name not in MODELS:
        raise IlgnetError(
            f"model {name!r} is unknown{did_you_mean(name, MODELS)}; choose one of {', '.join(MODELS)}"
        )
    known = [key for key in inspect.signature(MODELS[name]).parameters if key != "self"]
    for option, value in options.items():
        if option not in known:
            raise IlgnetError(f"model {name}: option {option!r} is unknown; it takes {', '.join(known)}")
        choices = CHOICES.get((name, option))
        values = value if isinstance(value, (tuple, list)) else (value,)
        wrong = [one for one in values if choices and one not in choices]
        if wrong or not values:
            raise IlgnetError(
                f"model {name}: {option} {value!r} is unknown; choose from {', '.join(choices or ())}"
            )
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise IlgnetError(f"model {name}: {option} {value} must be at least 1")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return MODELS[name](**options).eval()


__all__ = ["BACKBONES", "CHOICES", "MODELS", "create"]
