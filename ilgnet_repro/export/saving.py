"""`Saving`: a net prepared for writing (folded, quantized, in float32) with its metadata and notes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch

from ..about import About
from ..caffe.graph import Graph
from ..caffe.prototxt import format_message
from ..files import json_text
from ..runtime.fold import fold
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.net_file import FORMAT
from ..runtime.plan import plan_net
from ..runtime.quantize import SCALE_SUFFIX, WEIGHT, attach_quantized, quantize_dense
from ..runtime.rebuild import about_part, cut_net, planned_for, quantized_layers, rebuild, with_states
from ..version import __version__
from .half_arithmetic import HalfArithmetic, choose_half_layers
from .half_precision import halve
from .open_shapes import batched_shapes

Progress = Callable[[int], None] | None


class SaveOptions(TypedDict, total=False):
    """The options of `save` and `convert`, by keyword."""

    outputs: Sequence[str]
    inputs: Sequence[str]
    batch: int | None
    states: bool
    fold: bool
    precision: str | None
    dynamic_size: bool
    with_preprocessing: bool
    input_order: str
    fast_lrn: bool
    opset: int | None
    arithmetic: str


@dataclass(frozen=True)
class Options:
    """`SaveOptions` with their defaults.  ``precision`` None leaves the dense weights as they are in the net."""

    outputs: Sequence[str] = ()
    inputs: Sequence[str] = ()
    batch: int | None = None
    states: bool = False
    fold: bool = False
    precision: str | None = None
    dynamic_size: bool = False
    with_preprocessing: bool = False
    input_order: str = "RGB"
    fast_lrn: bool = False
    opset: int | None = None  # the default of onnx_opsets.py
    arithmetic: str = "float32"


@dataclass(frozen=True)
class Saving:
    """The input of a format's writer.

    ``net`` is the net to write: folded and with quantized dense weights where requested.
    ``original`` is the caller's net in float32.  ``notes`` list the changes;
    ``weight_notes`` those of weights in fewer bits, for the formats that store them.
    """

    net: CaffeNet
    original: CaffeNet
    about: About
    options: Options
    notes: tuple[str, ...] = ()
    progress: Progress = None
    weight_notes: tuple[str, ...] = ()
    half: HalfArithmetic | None = (
        None  # what is computed in float16, in the formats that have such arithmetic
    )

    @property
    def graph(self) -> Graph:
        """The net's graph."""
        return self.net.graph

    def with_arrays(self, arrays: Mapping[str, list[np.ndarray]]) -> CaffeNet:
        """Return the net with arrays that were read back."""
        return rebuild(self.net, self.net.plan, arrays)

    @property
    def is_quantized(self) -> bool:
        """Whether weights are stored quantized."""
        return bool(quantized_layers(self.net))

    def metadata(self) -> dict[str, str]:
        """Return a converted file's metadata: the net's text, preprocessing and provenance."""
        plan = self.net.plan
        return {
            "ilgnet_repro.format": FORMAT,
            "ilgnet_repro.version": __version__,
            "caffe.net": format_message(self.graph.text),
            "caffe.phase": self.graph.phase,
            "caffe.input_shapes": json_text({name: list(plan.shapes[name]) for name in plan.inputs}),
            **self.about.to_metadata(),
        }


def make_saving(
    net: CaffeNet, options: Options, progress: Progress = None, about: About | None = None
) -> Saving:
    """Prepare ``net`` for writing, with what is known of it (default: ``net.about``).

    Raises GraphError, by layer, where it is no longer a Caffe net.
    """
    net.refuse_changes("saved")
    if options.arithmetic == "float16":
        options = replace(options, precision="float16")
    notes: list[str] = []
    whole = net
    if options.outputs or options.inputs:
        net = cut_net(whole, options.outputs, options.inputs)
        about = about_part(about or whole.about, whole, net)
        notes.append(_cut_note(whole, net))
    if options.states:
        net = with_states(net)
    if options.batch is not None:
        net = planned_for(net, batched_shapes(net, options.batch))
    arrays = float_arrays(net)
    original = net if _computes_as_stored(net) else rebuild(net, net.plan, arrays)
    if original is not net:
        dtype, device = net.computes_in
        notes.append(
            f"the net computes in {str(dtype).removeprefix('torch.')} on {device}; it is saved in float32"
        )
    for layer in net.stateful_layers:
        notes.append(
            f"{layer.node.name} ({layer.node.type}): Caffe carries its state from pass to pass; what is written "
            f"starts each pass from {layer.initial_state} (a safetensors file can be loaded with carry_state=True)"
        )
    saved = original
    if options.fold:
        folded = fold(original, net.graph.text, arrays)
        arrays = folded.arrays
        shapes = {name: net.shapes[name] for name in net.inputs}
        saved = rebuild(net, plan_net(folded.graph, shapes), arrays)
        notes.append(
            f"{len(folded.folded)} layers folded into those before them, {len(folded.dropped)} dropped"
        )
    weight_notes: tuple[str, ...] = ()
    stored = {} if options.fold else quantized_layers(net)
    if options.precision is not None and (stored or options.precision != "float32"):
        if options.precision == "float16":
            halved = halve(saved, arrays)
            quantized, weight_notes = dict(halved.weights), halved.notes
        else:
            quantized = quantize_dense(saved.plan, arrays, options.precision)
            weight_notes = _dense_only(saved, options.precision, quantized)
        saved = rebuild(saved, saved.plan, arrays)
        for name, weight in quantized.items():
            attach_quantized(saved.layer(name), weight)
    half = choose_half_layers(saved) if options.arithmetic == "float16" else None
    saving = Saving(saved, original, about or net.about, options, tuple(notes), progress, weight_notes, half)
    return replace(saving, about=_derived(saving))


def _cut_note(whole: CaffeNet, part: CaffeNet) -> str:
    """Say what a cut left of a net."""
    layers = sum(node.name in part.plan.layers for node in whole.graph.layers)
    inputs = ", ".join(part.inputs_for(part.outputs)) or "no input"
    return f"cut: {layers} of {len(whole.graph.layers)} layers, from {inputs} to {', '.join(part.outputs)}"


def dense_notes(saving: Saving) -> tuple[str, ...]:
    """Say what a format that stores weights in fewer bits keeps in float32, or that it found none to round."""
    precision = saving.options.precision
    if saving.weight_notes:
        return saving.weight_notes
    if precision in (None, "float32") or saving.is_quantized:
        return ()
    if precision == "float16":
        return ("no weights to keep in float16: every blob is float32",)
    return (f"no dense weights to keep in {precision}: every blob is float32",)


def _dense_only(net: CaffeNet, precision: str, quantized: Collection[str]) -> tuple[str, ...]:
    """Say which weights int8 and bfloat16 reach: those of InnerProduct layers."""
    if not quantized:
        return ()
    others = sum(
        blobs[0].name == WEIGHT and len(blobs[0].shape) > 1 and name not in quantized
        for name, blobs in net.plan.blobs.items()
        if blobs
    )
    rest = f"; those of {others} other{'s' if others != 1 else ''} stay float32" if others else ""
    count = len(quantized)
    return (f"{precision}: the weights of {count} InnerProduct layer{'s' if count != 1 else ''}{rest}",)


def _derived(saving: Saving) -> About:
    """Return what is known of the net, with what saving changes in the weights of its source."""
    source, options = saving.about.source, saving.options
    if source is None:
        return saving.about
    if options.fold:
        source = source.after("folded")
    if options.precision is not None and saving.is_quantized:
        source = source.after(options.precision)
    return replace(saving.about, source=source)


def _computes_as_stored(net: CaffeNet) -> bool:
    dtype, device = net.computes_in
    return (
        dtype == torch.float32
        and device.type == "cpu"
        and all(
            blob.dtype == torch.float32 and blob.device.type == "cpu"
            for blobs in net.params.values()
            for blob in blobs
        )
    )


def stored_tensors(saving: Saving) -> dict[str, np.ndarray | torch.Tensor]:
    """Return every blob once, as ``layer.blob``, in Caffe's order; shared ones under their owner.

    Quantized dense weights stay quantized; int8 ones are followed by their scales.
    """
    plan, quantized = saving.net.plan, quantized_layers(saving.net)
    tensors: dict[str, np.ndarray | torch.Tensor] = {}
    for node in plan.graph:
        layer = saving.net.layer(node.name)
        for index, spec in enumerate(plan.blobs[node.name]):
            if (node.name, index) in plan.owners:
                continue
            key = f"{node.name}.{spec.name}"
            one = quantized.get(node.name) if spec.name == WEIGHT else None
            if one is None:
                tensors[key] = layer.blob(spec.name).detach().to("cpu", torch.float32)
                continue
            tensors[key] = one.values
            if one.scale is not None:
                tensors[key + SCALE_SUFFIX] = one.scale
    return tensors
