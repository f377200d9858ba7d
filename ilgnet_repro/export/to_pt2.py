"""The format pt2: torch.export's archive, which `torch.export.load` opens without this package."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import IlgnetError
from ..files import deferred_file, json_text, utf8_path
from ..process import environment
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.pt2_file import METADATA_FILE, check_members
from ..runtime.python_names import Names, argument_name
from ..runtime.runnable import FileNet, Runnable
from .formats import Format
from .open_shapes import open_shapes
from .saving import Saving
from .verify import seeded_inputs

LARGEST_BATCH = 1 << 14


class _ByName(nn.Module):
    """The net as a module with named arguments, as torch.export requires."""

    def __init__(self, net: CaffeNet, names: dict[str, str]) -> None:
        super().__init__()
        self.layers = _named_layers(net)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names.values()])

        def forward(*values: Tensor, **named: Tensor) -> dict[str, Tensor]:
            given = signature.bind(*values, **named).arguments
            return net.run({blob: given[name] for blob, name in names.items()}, with_loss=False).blobs

        vars(forward)["__signature__"] = signature  # torch.export reads it through inspect
        self.forward = forward


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.pt2``: ``torch.export.load(path).module()(data=x)`` returns the outputs by Caffe's names."""
    options = saving.options
    program = export(saving.net, dynamic_size=options.dynamic_size, open_batch=options.batch is None)
    with deferred_file(path) as raw, io.BufferedWriter(raw) as file:
        torch.export.save(program, file, extra_files={METADATA_FILE: json_text(saving.metadata())})
    return [path]


def export(
    net: CaffeNet, *, dynamic_size: bool = False, open_batch: bool = True
) -> torch.export.ExportedProgram:
    """Export a net; its inputs are keywords, Caffe's names turned into identifiers.

    The batch is dynamic, unless not ``open_batch``. The number of steps of a recurrent layer is fixed.

    The result has no example inputs: they are the only part that torch would pickle.  During the call
    ``sys.stderr`` is redirected: torch prints the graph there on failure, whatever its settings.  Raises
    IlgnetError, with torch's reason, where the batch (or the size) cannot stay open.
    """
    for _, layer in net.steps(net.outputs):
        if layer.sized_by_values:
            raise layer.error(
                "its number of rows depends on values, which torch.export cannot express; "
                "use to='onnx' or to='python'",
                option="to",
            )
    dims = open_shapes(net, net.outputs, batch=open_batch, dynamic_size=dynamic_size)
    # The steps of RNN and LSTM are unrolled, so that their number is fixed.
    unrolled = {
        dims[net.graph.names[node.bottoms[0]]][0]
        for node, layer in net.steps(net.outputs)
        if layer.is_unrolled
    }
    dims = {name: tuple(None if dim in unrolled else dim for dim in shape) for name, shape in dims.items()}
    names = _argument_names(net)
    inputs = {names[name]: value for name, value in seeded_inputs(net, batch=3 if open_batch else 1).items()}
    identifiers = Names(())
    batches = {
        symbol: torch.export.Dim(identifiers.of(symbol), min=1, max=LARGEST_BATCH)
        for name in names
        for symbol in dims[name][:1]
        if isinstance(symbol, str)
    }
    # Pooling that rounds up adds inequalities between sizes, which a named Dim does not allow.
    open_axes = {
        names[name]: {
            axis: batches.get(symbol, torch.export.Dim.DYNAMIC)
            for axis, symbol in enumerate(dims[name])
            if isinstance(symbol, str)
        }
        for name in names
    }
    try:
        # On failure torch prints the whole graph; the reason is in the exception.
        with (
            torch.no_grad(), as_loaded(net), contextlib.redirect_stderr(io.StringIO()),
            environment("TORCHINDUCTOR_CACHE_DIR"),
        ):  # fmt: skip
            program = torch.export.export(_ByName(net, names), (), inputs, dynamic_shapes=open_axes)
    except Exception as error:  # torch raises many kinds, UserError and its own assertions among them
        reason = re.sub(r"\s+", " ", str(error).partition("For more information")[0].strip())[:300]
        raise IlgnetError(f"net {net.graph.name!r} cannot be exported by torch.export: {reason}") from error
    program.example_inputs = None
    # The paths of source files would make the file's bytes depend on where this package is installed.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


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


FORMAT = Format("pt2", ".pt2", write, reopen, options=("dynamic_size",))
