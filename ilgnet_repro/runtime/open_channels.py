"""Channels of a database that is not there: the number that the weights fit."""

from __future__ import annotations

from collections.abc import Mapping

from ..caffe.graph import Graph
from ..errors import LayerError
from ..layers.data import assumed_shapes
from ..layers.support.base import Shape
from .plan import plan_net
from .weights import WeightsFile, fit_weights

MOST_CHANNELS = 16  # tried


def channels_of_weights(
    graph: Graph, given: Mapping[str, Shape], model: WeightsFile, notes: list[str]
) -> dict[str, Shape]:
    """Return shapes of the Data layers whose text leaves the number of channels open, with the number that fits.

    Only the database says it, and most hold colour images: three are assumed, unless the weights need another
    number. Returns nothing where three fit, or no number does. A changed shape is listed in ``notes``.
    """
    assumed = assumed_shapes(graph, given)
    if not assumed or _fits(graph, given, model):
        return {}
    for count in range(1, MOST_CHANNELS + 1):
        shapes = {name: (shape[0], count, *shape[2:]) for name, shape in assumed.items()}
        if _fits(graph, {**given, **shapes}, model):
            plural = "s" * (count > 1)
            notes.extend(f"{name}: {count} channel{plural}, which the weights need" for name in shapes)
            return shapes
    return {}


def _fits(graph: Graph, given: Mapping[str, Shape], model: WeightsFile) -> bool:
    try:
        plan = plan_net(graph, given)
    except LayerError:
        return False
    return not fit_weights(plan.blobs, model.layers, plan.owners).misshapen
