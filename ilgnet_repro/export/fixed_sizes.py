"""Formats whose files fix the sizes of their inputs: what they are fed, and what the report says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..caffe.param_sharing import show_shape
from ..runtime.seeded_inputs import draw_inputs
from .saving import Saving


def own_inputs(saving: Saving, inputs: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Return inputs of the net's own sizes, which the file fixes."""
    net = saving.net
    own = draw_inputs(net.plan, net.graph, {name: net.shapes[name] for name in inputs})
    return own, own


def size_note(saving: Saving) -> str:
    """Say which sizes the file fixes."""
    net = saving.net
    shown = ", ".join(f"{name} {show_shape(net.shapes[name])}" for name in net.inputs_for(net.outputs))
    return f"sizes are fixed ({shown}); batch= or another input shape gives others"
