"""float16 arithmetic: the layers that are computed in it, and what that does to the logits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ARITHMETIC, IlgnetError
from ..layers.support.base import Layer
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.quantize import WEIGHT, quantized_blob
from ..runtime.seeded_inputs import draw_inputs
from .half_precision import farthest, fewest_kept, logit_blobs

# The largest difference of the logits that the arithmetic may cause, of their largest value.  Each rounding is 5e-4 of a
# value at most.
LIMIT = 1e-2
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfArithmetic:
    """The layers computed in float16; those that keep float32, with the reason; and the difference of the logits."""

    layers: frozenset[str]
    kept: Mapping[str, str]
    apart: float | None  # relative; None where the logits could not be computed

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what is computed in float16, what is not, and how far the logits are from those of float32."""
        how = (
            "could not be measured"
            if self.apart is None
            else f"change by {self.apart:.2g} of the largest at most"
        )
        reasons: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            reasons.setdefault(reason, []).append(name)
        return (
            f"float16 arithmetic in {len(self.layers)} layers, inputs and outputs stay float32; the logits {how} "
            "(seeded inputs)",
            *(f"float32 arithmetic is kept: {', '.join(names)}: {reason}" for reason, names in reasons.items()),
        )  # fmt: skip


def choose_half_layers(net: CaffeNet) -> HalfArithmetic:
    """Return which layers of a net with float16 weights are computed in float16.

    Those that sum, normalize, take exponentials or place boxes keep float32, as do those with float32 weights, with values
    past the range of float16, and those that change the logits by more than `LIMIT`.
    """
    kept: dict[str, str] = {}
    chosen: list[str] = []
    for node, layer in net.steps(net.outputs):
        if layer.is_input:
            continue
        reason = _reason(net, layer)
        if reason:
            kept[node.name] = reason
        else:
            chosen.append(node.name)
    trial = _Trial(net)
    for name, most in trial.largest(chosen).items():
        if most > LARGEST:
            chosen.remove(name)
            kept[name] = "values past the range of float16 (65504)"
    apart = trial.apart(chosen)
    if apart is not None and apart > LIMIT:
        changes = {name: trial.apart([name]) or 0.0 for name in chosen}
        for name in fewest_kept(chosen, changes, trial.apart, LIMIT):
            chosen.remove(name)
            kept[name] = f"the logits would change by more than {LIMIT:g} of the largest"
    for name in _between_float32(net, chosen):
        chosen.remove(name)
        kept[name] = "what it reads is float32"
    apart = trial.apart(chosen)
    return HalfArithmetic(frozenset(chosen), kept, apart)


def _between_float32(net: CaffeNet, chosen: Collection[str]) -> list[str]:
    """Return the layers without weights that read nothing in float16: the rounding would save nothing."""
    found: list[str] = []
    for name in chosen:
        node = net.layer(name).node
        if not net.plan.blobs[name] and not any(
            bottom.writer in chosen and bottom.writer not in found for bottom in node.bottoms
        ):
            found.append(name)
    return found


def _reason(net: CaffeNet, layer: Layer) -> str:
    """Return why a layer keeps float32; "" for none."""
    if layer.no_float16:
        return layer.no_float16
    has_weights = any(spec.name == WEIGHT and len(spec.shape) > 1 for spec in net.plan.blobs[layer.node.name])
    return "its weights are float32" if has_weights and quantized_blob(layer, WEIGHT) is None else ""


class _Trial:
    """Runs a net with the inputs and outputs of some layers rounded to float16, on seeded inputs."""

    def __init__(self, net: CaffeNet) -> None:
        self.net = net
        self.blobs = logit_blobs(net)
        self.inputs = draw_inputs(net.plan, net.graph, net.inputs_for(net.outputs))
        self.expected = self._logits(())

    def largest(self, names: Collection[str]) -> dict[str, float]:
        """Return the largest value that each layer reads or computes."""
        most: dict[str, float] = {}

        def watch(name: str, values: Any) -> None:
            for value in _floats(values):
                if value.numel():
                    most[name] = max(most.get(name, 0.0), float(value.abs().nan_to_num(0).max()))

        with ExitStack() as stack:
            for name in names:
                hook = lambda layer, given, made, name=name: watch(name, (*given, *made))  # noqa: E731
                stack.callback(self.net.layer(name).register_forward_hook(hook).remove)
            self._run()
        return most

    def apart(self, names: Collection[str]) -> float | None:
        """Return the largest difference of the logits, relative to the largest logit."""
        found = self._logits(names)
        return None if found is None or self.expected is None else farthest(self.expected, found)

    def _logits(self, names: Collection[str]) -> dict[str, np.ndarray] | None:
        with self._rounding(names):
            return self._run()

    def _run(self) -> dict[str, np.ndarray] | None:
        try:
            with torch.inference_mode(), as_loaded(self.net):
                found = self.net(self.inputs, blobs=self.blobs)
        except (IlgnetError, *ARITHMETIC):
            return None
        return {name: value.numpy().copy() for name, value in found.items()}

    @contextmanager
    def _rounding(self, names: Collection[str]) -> Iterator[None]:
        with ExitStack() as stack:
            for name in names:
                layer = self.net.layer(name)
                stack.callback(layer.register_forward_pre_hook(lambda layer, given: _rounded(given)).remove)
                stack.callback(layer.register_forward_hook(lambda layer, given, made: _rounded(made)).remove)
            yield


def _floats(values: Any) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor) and value.is_floating_point())


def _rounded(values: Any) -> tuple[Any, ...]:
    return tuple(
        value.half().float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in values
    )
