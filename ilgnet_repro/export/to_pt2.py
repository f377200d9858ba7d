"""The format pt2: torch.export's archive, which `torch.export.load` opens without this package."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IlgnetError
from ..files import utf8_path
from ..layers.support.base import Shape
from ..process import environment
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.pt2_file import check_members
from ..runtime.python_names import Names, argument_name
from ..runtime.runnable import FileNet, Runnable
from ..runtime.seeded_inputs import draw_inputs
from .formats import Format
from .open_shapes import BATCH, Dims, open_shapes, other_shapes
from .pt2_guards import FixedLengthError, GuardWatch
from .pt2_program import LARGEST_BATCH, reason_of, with_arguments, without_samples, write_program
from .saving import Saving


class _ByName(nn.Module):
    """The net as a module with named arguments, as torch.export requires."""

    def __init__(self, net: CaffeNet, names: dict[str, str], watch: GuardWatch) -> None:
        super().__init__()
        self.layers = _named_layers(net)

        def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            watch.start(inputs)
            return net.run(inputs, with_loss=False).blobs

        self.forward = with_arguments(names, run)


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.pt2``: ``torch.export.load(path).module()(data=x)`` returns the outputs by Caffe's names."""
    options = saving.options
    program = export(saving.net, dynamic_size=options.dynamic_size, open_batch=options.batch is None)
    return write_program(path, program, saving.metadata())


def export(
    net: CaffeNet, *, dynamic_size: bool = False, open_batch: bool = True
) -> torch.export.ExportedProgram:
    """Export a net; its inputs are keywords, Caffe's names turned into identifiers.

    The batch (the streams of recurrent layers) is dynamic unless not ``open_batch``; the number of steps of a recurrent
    layer is fixed.  The result has no example inputs: they are the only part that torch would pickle.  During the call
    ``sys.stderr`` is redirected: torch prints the graph there on failure, whatever its settings.  Raises
    IlgnetError, by layer, where the batch (or the size) cannot stay open.
    """
    for _, layer in net.steps(net.outputs):
        if layer.sized_by_values:
            raise layer.error(
                "its number of rows depends on values, which torch.export cannot express; "
                "use to='onnx' or to='python'",
                option="to",
            )
    dims = open_shapes(net, net.outputs, batch=open_batch, dynamic_size=dynamic_size)
    steps = fixed_steps(net, dims)
    dims = {name: tuple(None if dim in steps else dim for dim in shape) for name, shape in dims.items()}
    names = _argument_names(net)
    shapes = _traced_shapes(net, dims)
    inputs = {
        names[name]: value for name, value in draw_inputs(net.plan.at(shapes), net.graph, shapes).items()
    }
    is_open = any(isinstance(dim, str) for name in names for dim in dims[name])
    remedy, option = _remedy(dynamic_size, open_batch, net)
    others = other_shapes(net, dims) if is_open else []
    watch = GuardWatch(net, others, remedy, option)

    def trace(dynamic_shapes: dict[str, dict[int, Any]]) -> torch.export.ExportedProgram:
        # On failure torch prints the whole graph; the reason is in the exception.
        with (
            torch.no_grad(), as_loaded(net), contextlib.redirect_stderr(io.StringIO()),
            environment("TORCHINDUCTOR_CACHE_DIR"), watch.watching(),
        ):  # fmt: skip
            return torch.export.export(_ByName(net, names, watch), (), inputs, dynamic_shapes=dynamic_shapes)

    try:
        try:
            program = trace(_dynamic_shapes(net, dims, names))
        except Exception as error:
            if watch.layer is not None or not others or isinstance(error, FixedLengthError):
                raise
            # torch cannot prove for all lengths of a named Dim what holds for those that were tried.
            watch = GuardWatch(net, others, remedy, option)
            program = trace(_unnamed_shapes(dims, names))
    except FixedLengthError:
        raise
    except Exception as error:  # torch raises many kinds, UserError and its own assertions among them
        reason = reason_of(error)
        if "onstraints violated" in reason:
            reason = "it fixes a length that should stay open"
        if watch.layer is not None:
            raise watch.layer.error(
                f"torch.export cannot trace it ({reason}); {remedy}", option=option
            ) from error
        raise IlgnetError(
            f"net {net.graph.name!r} cannot be exported by torch.export: {reason}; {remedy}", option=option
        ) from error
    return without_samples(program)


def _remedy(dynamic_size: bool, open_batch: bool, net: CaffeNet) -> tuple[str, str]:
    """Return what to do where an axis cannot stay open, and the option that it names."""
    if dynamic_size:
        return "export without dynamic_size=True, or use to='onnx'", "dynamic_size to"
    if open_batch and (
        shapes := [net.shapes[name] for name in net.inputs_for(net.outputs) if net.shapes[name]]
    ):
        return f"fix the batch (batch={shapes[0][0]}), or use to='onnx'", "batch to"
    return "use to='onnx' or to='python'", "to"


def _traced_shapes(net: CaffeNet, dims: Dims) -> dict[str, Shape]:
    """Return the input shapes to trace: the net's own, except that torch takes an open axis of one for a fixed one."""
    own = {name: net.shapes[name] for name in net.inputs_for(net.outputs)}
    for count in (3, 2, 4):
        shapes = {
            name: tuple(
                count if length == 1 and isinstance(dim, str) else length
                for length, dim in zip(shape, dims[name], strict=True)
            )
            for name, shape in own.items()
        }
        with contextlib.suppress(IlgnetError):
            net.blob_shapes(shapes)
            return shapes
    return own


def _dynamic_shapes(net: CaffeNet, dims: Dims, names: Mapping[str, str]) -> dict[str, dict[int, Any]]:
    """Return torch's description of the open axes.

    Pooling that rounds up adds inequalities between sizes, which a named Dim does not allow.
    """
    identifiers = Names(())
    lengths: dict[str, int] = {}
    for name in names:
        for dim, length in zip(dims[name], net.shapes[name], strict=True):
            if isinstance(dim, str) and dim[:1] not in "HW":
                lengths.setdefault(dim, length)
    batch = torch.export.Dim(identifiers.of(BATCH), min=1, max=LARGEST_BATCH)
    made: dict[str, Any] = {
        dim: batch if dim == BATCH else torch.export.Dim(identifiers.of(dim), min=1, max=LARGEST_BATCH)
        for dim in lengths
    }
    for dim, length in lengths.items():
        if dim != BATCH and BATCH in lengths and _is_multiple(net, dims, dim):
            made[dim] = (length // lengths[BATCH]) * batch
    return {
        names[name]: {
            axis: made.get(dim, torch.export.Dim.DYNAMIC)
            for axis, dim in enumerate(dims[name])
            if isinstance(dim, str)
        }
        for name in names
    }


def _unnamed_shapes(dims: Dims, names: Mapping[str, str]) -> dict[str, dict[int, Any]]:
    """Return torch's description of the open axes, each by itself and without bounds."""
    return {
        argument: {
            axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(dims[name]) if isinstance(dim, str)
        }
        for name, argument in names.items()
    }


def _is_multiple(net: CaffeNet, dims: Dims, symbol: str) -> bool:
    """Whether axes of a symbol must change with the batch, as an input with so many rows for each image."""
    shapes = {
        name: tuple(
            2 * length if dim == symbol else length
            for length, dim in zip(net.shapes[name], dims[name], strict=True)
        )
        for name in net.inputs_for(net.outputs)
    }
    try:
        net.blob_shapes(shapes)
    except IlgnetError:
        return True
    return False


def fixed_steps(net: CaffeNet, dims: Dims) -> set[str]:
    """Return the symbols of the numbers of steps, which are fixed: RNN and LSTM are traced step by step."""
    found = {
        dims[net.graph.names[node.bottoms[0]]][0]
        for node, layer in net.steps(net.outputs)
        if layer.is_unrolled
    }
    return {dim for dim in found if isinstance(dim, str)}


def notes(saving: Saving) -> tuple[str, ...]:
    """Return what a pt2 file fixes."""
    net = saving.net
    if not any(layer.is_unrolled for _, layer in net.steps(net.outputs)):
        return ()
    steps = fixed_steps(net, open_shapes(net, net.outputs))
    lengths = {
        f"{name} {length}"
        for name in net.inputs_for(net.outputs)
        for dim, length in zip(open_shapes(net, net.outputs)[name], net.shapes[name], strict=True)
        if dim in steps
    }
    return (
        f"pt2: the number of steps is fixed ({', '.join(sorted(lengths))}); load with another shape, or use onnx",
    )


def _argument_names(net: CaffeNet) -> dict[str, str]:
    """Return the argument name of each input.  Raises IlgnetError where two inputs have the same."""
    taken: dict[str, str] = {}
    for name in net.inputs_for(net.outputs):
        argument = argument_name(name)
        if argument in taken:
            raise IlgnetError(
                f"inputs {taken[argument]!r} and {name!r} would both be the argument {argument} of a pt2 file; "
                "rename one, or use to='onnx'",
                option="to",
            )
        taken[argument] = name
    return {name: argument for argument, name in taken.items()}


def _named_layers(net: CaffeNet) -> nn.Module:
    """Return the layers under names that are safe in the code torch generates: it does not escape attributes."""
    layers = nn.Module()
    for key, layer in net.layers.named_children():
        name = re.sub(r"[^\w/-]", "_", key, flags=re.ASCII) or "_"
        while name in layers._modules or hasattr(nn.Module(), name):
            name += "_"
        layers._modules[name] = layer
    return layers


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Load the written file with torch only; nothing in it is a pickle."""
    check_members(paths[0])
    with utf8_path(paths[0]) as name:
        module = torch.export.load(name).module()
    net = saving.net

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = module(**{argument_name(name): value for name, value in given.items()})
        return found

    inputs = net.inputs_for(net.outputs)
    # No shapes: the program checks them itself.
    return FileNet(paths[0].name, "torch.export", saving.about, inputs, net.outputs, {}, run)


FORMAT = Format("pt2", ".pt2", write, reopen, options=("dynamic_size",), notes=notes)
