"""float16 for the weights of a whole net; what their rounding does to the logits decides which layers keep float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..caffe.graph import Value
from ..errors import ARITHMETIC, IlgnetError
from ..runtime.difference import differ
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.quantize import WEIGHT, QuantizedWeight, output_axis
from ..runtime.seeded_inputs import draw_inputs

# The largest difference of the logits that rounding may cause, of their largest value.  One weight is rounded by 5e-4 of it
# at most; with drawn weights nets of the zoo change by 0.8e-3 to 1.3e-3.
LIMIT = 2e-3
# Layers that hide differences: probabilities of 0 and 1, and rows chosen by values.
_SATURATING = ("Softmax", "Sigmoid", "LogSoftmax", "TanH", "ArgMax")


@dataclass(frozen=True)
class Halved:
    """The weights in float16, by layer; the layers that keep float32, with the reason; and the remaining difference."""

    weights: Mapping[str, QuantizedWeight]
    kept: Mapping[str, str]
    apart: float | None  # of the logits, relative; None where they could not be computed

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what was kept, and how far the logits are from those of float32."""
        if not self.weights and not self.kept:
            return ()
        how = (
            "could not be measured"
            if self.apart is None
            else f"change by {self.apart:.2g} of the largest at most"
        )
        count = len(self.weights)
        notes = [
            f"float16: the weights of {count} layer{'s' if count != 1 else ''}; biases and statistics stay float32; "
            f"the logits {how} (seeded inputs)"
        ]
        notes += [f"float32 is kept: {name}: {reason}" for name, reason in self.kept.items()]
        return tuple(notes)


def halve(net: CaffeNet, arrays: Mapping[str, list[np.ndarray]]) -> Halved:
    """Round the weights of the net's layers to float16, except where that changes the logits by more than `LIMIT`.

    Layers are given back their float32 weights in the order of what each of them alone changes.
    """
    kept: dict[str, str] = {}
    rounded: dict[str, Tensor] = {}
    for name in _candidates(net):
        weight = np.asarray(arrays[name][0])
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        if np.isfinite(half).all() or not np.isfinite(weight).all():
            rounded[name] = torch.from_numpy(half)
        else:
            kept[name] = f"a weight of {np.abs(weight).max():.3g} is past the range of float16"
    trial = _Trial(net, rounded)
    apart = trial.apart(rounded)
    if apart is not None and apart > LIMIT:
        alone = {name: trial.apart([name]) or 0.0 for name in rounded}
        for name in fewest_kept(rounded, alone, trial.apart, LIMIT):
            del rounded[name]
            kept[name] = f"alone it changes the logits by {alone[name]:.2g} of the largest"
        apart = trial.apart(rounded)
    weights = {
        name: QuantizedWeight(values, None, output_axis(net.plan.layers[name].node.layer))
        for name, values in rounded.items()
    }
    return Halved(weights, kept, apart)


def fewest_kept(
    names: Collection[str],
    changes: Mapping[str, float],
    apart: Callable[[Collection[str]], float | None],
    limit: float,
) -> list[str]:
    """Return the fewest of the worst layers without which the others change the logits by no more than ``limit``."""
    order = sorted(names, key=lambda name: -changes[name])
    few, many = 0, len(order)
    while few < many:
        middle = (few + many) // 2
        rest = apart(order[middle:])
        few, many = (few, middle) if rest is not None and rest <= limit else (middle + 1, many)
    return order[:few]


def farthest(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of the logits, relative to the largest logit of its blob."""
    most = 0.0
    for name, value in expected.items():
        difference = differ(value, found[name])
        most = max(most, difference.largest / max(difference.scale, 1e-12))
    return most


def _candidates(net: CaffeNet) -> list[str]:
    """Return the layers whose weights have two axes or more and are their own."""
    plan = net.plan
    shared = {key[0] for key in plan.owners} | {owner.layer for owner in plan.owners.values()}
    return [
        node.name
        for node in plan.graph
        if node.name not in shared
        and plan.blobs.get(node.name)
        and plan.blobs[node.name][0].name == WEIGHT
        and len(plan.blobs[node.name][0].shape) > 1
    ]


def logit_blobs(net: CaffeNet) -> tuple[str, ...]:
    """Return the blobs in front of the last layers that hide differences; outputs that have none stand for themselves."""

    def before(value: Value) -> Iterator[str]:
        node = net.graph.node(value.writer)
        layer = net.plan.layers.get(value.writer)
        if node is None or layer is None or layer.is_input:
            return
        if node.type in _SATURATING or layer.sized_by_values:
            for bottom in node.bottoms:
                yield from before(bottom)
        else:
            yield net.graph.names[value]

    return tuple(dict.fromkeys(name for output in net.outputs for name in before(net.graph.value(output))))


class _Trial:
    """Runs a net with the weights of some layers rounded, on seeded inputs."""

    def __init__(self, net: CaffeNet, rounded: Mapping[str, Tensor]) -> None:
        self.net, self.rounded = net, rounded
        self.blobs = logit_blobs(net)
        self.inputs = draw_inputs(net.plan, net.graph, net.inputs_for(net.outputs))
        self.expected = self._logits(())

    def _logits(self, names: Collection[str]) -> dict[str, np.ndarray] | None:
        """Return the logits with these layers rounded; None where the net does not run on the inputs."""
        weights = {name: self.net.layer(name).blob(WEIGHT) for name in names}
        exact = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self.rounded[name].float().view_as(exact[name])
            with torch.inference_mode(), as_loaded(self.net):
                found = self.net(self.inputs, blobs=self.blobs)
            return {name: value.numpy().copy() for name, value in found.items()}
        except (IlgnetError, *ARITHMETIC):
            return None
        finally:
            for name, weight in weights.items():
                weight.data = exact[name]

    def apart(self, names: Collection[str]) -> float | None:
        """Return the largest difference of the logits with these layers rounded, relative to the largest logit."""
        found = self._logits(names)
        return None if found is None or self.expected is None else farthest(self.expected, found)
