"""From a net's text and what the caller chose (phase, stages, what is in doubt) to its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..schema import caffe_pb2 as pb
from .build import build_graph
from .crops import place_crops
from .feeds import feed_dummies
from .fork_fields import drop_fields
from .node import Graph
from .rules import settle_rules


@dataclass(frozen=True)
class Choices:
    """What a text leaves to the caller.

    ``ignore_fields`` are dotted paths (``convolution_param.foo``) of fields unknown to Caffe that the caller knows not
    to matter; that of an unknown message stands for all that is in it.  A DummyData top with a shape in
    ``input_shapes`` becomes an input.  ``crop`` is the rule for Crop layers that state no offset where the text leaves
    it open: "bvlc" (0) or "geometry" (forks: from the layers).
    """

    phase: str = "TEST"
    level: int = 0
    stages: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    ignore_fields: tuple[str, ...] = ()
    crop: str | None = None


def choose_graph(text: pb.NetParameter, choices: Choices, notes: list[str] | None = None) -> Graph:
    """Return the graph of an upgraded text; it keeps that text, with what was decided written into it.

    What was decided is told in ``notes``.  Raises GraphError and LayerError, as `build_graph`.
    """
    phase, level, stages = choices.phase, choices.level, choices.stages
    text = drop_fields(text, choices.ignore_fields)
    if level or stages:
        text = settle_rules(text, level, stages)
    text = place_crops(text, phase, level=level, stages=stages, crop=choices.crop, notes=notes)
    text = feed_dummies(text, choices.input_shapes or {}, phase, level=level, stages=stages, notes=notes)
    return build_graph(text, phase, level=level, stages=stages)
