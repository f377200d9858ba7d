"""How far the outputs of a fast net are from those of the exact net, and the logits that its softmaxes take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from torch import Tensor

from ..caffe.graph import Graph
from ..runtime.difference import differ

_LEAST = np.finfo(np.float32).tiny  # of a probability whose logarithm is compared


@dataclass(frozen=True)
class Deviation:
    """The largest absolute difference of a blob and, of a softmax, that of its logits over the largest of them."""

    largest: float
    logits: float | None = None


def deviations(
    graph: Graph, exact: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> dict[str, Deviation]:
    """Compare each output that was found with the exact one.

    The difference is infinite where the shapes differ or only one of two values is finite, and NaN
    where there is no finite value to compare.
    """
    softmax = {top for node in graph if node.type == "Softmax" for top in node.tops}
    result = {}
    for name, blob in found.items():
        one, other = (value.float().cpu().numpy() for value in (exact[name], blob))
        apart = differ(one, other)
        largest = apart.largest if apart.is_compared else nan
        is_softmax = graph.value(name) in softmax and one.shape == other.shape
        result[name] = Deviation(largest, _logits_apart(one, other) if is_softmax else None)
    return result


def _logits_apart(exact: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference of two softmaxes' logarithms over the largest exact one.

    These are the logits but for what is added to all of an image; of a probability below float32's least normal
    number nothing is known but that.
    """
    one, other = (np.log(np.maximum(value.astype(np.float64), _LEAST)) for value in (exact, found))
    apart = differ(one, other)
    return apart.largest / max(1.0, apart.scale) if apart.is_compared else nan


def shown(found: Sequence[Mapping[str, Deviation]]) -> str:
    """Return the largest deviation of several batches as text, with that of the logits where there are some."""
    every = [(name, one) for batch in found for name, one in batch.items()]
    if not every:
        return "nothing is computed, so no difference"
    name, worst = max(every, key=lambda item: (isnan(item[1].largest), item[1].largest))
    text = f"at most {worst.largest:.2g} ({name})"
    logits = [one.logits for _, one in every if one.logits is not None]
    if logits:
        largest = max(logits, key=lambda value: (isnan(value), value))
        text += f", {largest:.2g} of the largest logit,"
    return text
