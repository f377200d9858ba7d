"""Which layers of a net still hold the weights that were drawn for them at random.

A few values of each drawn tensor are kept with the net; a layer that was trained or loaded since has others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..about import About, Drawn
from ..layers.support.fillers import draws
from .plan import NetPlan

SAMPLED = 64  # values of a tensor, spread over it
_ROUNDED = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
)  # a net that computes in these has drawn weights, rounded

Find = Callable[[str, str], Any]  # a layer's tensor, by the names of both, or None


@dataclass(frozen=True)
class DrawnWeights:
    """Values of what was drawn, by layer and tensor, and the number of layers that could have been drawn."""

    samples: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    of: int = 0

    def within(self, part: DrawnWeights, layers: Collection[str]) -> DrawnWeights:
        """Return this of a ``part`` of the net, which has these layers."""
        held = {name: values for name, values in self.samples.items() if name in layers}
        return DrawnWeights(held, max(part.of, len(held)))

    def remaining(self, find: Find) -> Drawn | None:
        """Return the layers that hold what was drawn; None where there are none."""
        names = [
            name
            for name, values in self.samples.items()
            if all(_is_equal(value, find(name, key)) for key, value in values.items())
        ]
        return Drawn(tuple(names), self.of) if names else None


def _sample(values: Tensor) -> Tensor:
    flat = values.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].to("cpu", torch.float32, copy=True)


def _is_equal(drawn: Tensor, now: Any) -> bool:
    if not isinstance(now, Tensor) or now.is_meta:
        return False
    values = _sample(now)
    return any(torch.equal(drawn.to(dtype).float(), values) for dtype in _ROUNDED)


# ---------------------------------------------------------------------------- Caffe nets


def drawn_by_fillers(net: Any, given: Collection[str]) -> DrawnWeights:
    """Keep values of what the fillers of a Caffe net drew: of all its layers but those ``given``."""
    drawable = _drawable(net.plan)
    shared = {owner.layer for (name, _), owner in net.plan.owners.items() if name in given}
    own = {name: keys for name, keys in drawable.items() if name not in given and name not in shared}
    return _sample_layers(net, own, len(drawable))


def drawn_layers(net: Any, names: Iterable[str], of: int = 0) -> DrawnWeights:
    """Keep values of the layers that are known to be drawn, as those that the weights file lacks."""
    plan, drawable = net.plan, _drawable(net.plan)
    held = {
        name: drawable.get(name) or tuple(spec.name for spec in plan.blobs[name])
        for name in names
        if plan.blobs.get(name)
    }
    return _sample_layers(net, held, of or len(drawable.keys() | held))


def _drawable(plan: NetPlan) -> dict[str, tuple[str, ...]]:
    """Return the blobs that fillers draw, by layer.

    A deploy prototxt states no fillers; what is then filled with Caffe's zeros is no more trained than drawn weights.
    """
    found = {
        name: tuple(
            spec.name
            for index, spec in enumerate(specs)
            if spec.learned and spec.values is None and (name, index) not in plan.owners
            and (draws(spec) or (index == 0 and not spec.has_filler))
        )
        for name, specs in plan.blobs.items()
    }  # fmt: skip
    return {name: keys for name, keys in found.items() if keys}


def _sample_layers(net: Any, layers: Mapping[str, Collection[str]], of: int) -> DrawnWeights:
    held = net.layers_by_name() if layers else {}
    samples = {name: {key: _sample(held[name].blob(key)) for key in keys} for name, keys in layers.items()}
    return DrawnWeights(samples, of)


# ---------------------------------------------------------------------------- models


def drawn_modules(model: nn.Module, names: Collection[str] | None = None, of: int = 0) -> DrawnWeights:
    """Keep values of the drawn parameters of a torch module, by its inner modules: of all, or of those named.

    Constants, with which torch initializes normalization layers, are not drawn.
    """
    samples: dict[str, dict[str, Tensor]] = {}
    for key, value in model.named_parameters():
        name = key.rpartition(".")[0]
        if value.is_meta or (names is not None and name not in names):
            continue
        sample = _sample(value)
        if (sample != sample[:1]).any():
            samples.setdefault(name, {})[key] = sample
    return DrawnWeights(samples, of or len(samples))


# ---------------------------------------------------------------------------- any net


def about_now(net: Any) -> About:
    """Return what is known of a net, with the layers that still hold drawn weights."""
    about: About = net.about
    held = getattr(net, "drawn", None)
    return replace(about, drawn=_remaining(net, held)) if isinstance(held, DrawnWeights) else about


def _remaining(net: Any, held: DrawnWeights) -> Drawn | None:
    if not held.samples:
        return None
    if hasattr(net, "layers_by_name"):
        layers = net.layers_by_name()
        return held.remaining(lambda name, key: getattr(layers.get(name), key, None))
    parameters = dict(net.named_parameters())
    return held.remaining(lambda name, key: parameters.get(key))
