"""The format coreml: Core ML's package of a net, which coremltools makes of the exported program.

Core ML runs on macOS only.  Elsewhere the package is read again and compared with the net: names, shapes and types of
inputs and outputs, and the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import IlgnetError, excerpt
from ..files import json_text, utf8_path
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.python_names import argument_name
from ..runtime.runnable import FileNet, Runnable
from . import to_pt2
from .coreml_package import Value, read_package, save_package, weights_in_float16
from .coreml_program import prepared
from .fixed_sizes import own_inputs, size_note
from .formats import Format
from .saving import Saving, dense_notes
from .verify import verify_files

IS_MACOS = sys.platform == "darwin"
# They multiply BatchNorm and Scale into weights, as `fold` does on request: the package has the net's own weights.
_FUSING = ("common::fuse_conv_batchnorm", "common::fuse_conv_scale")


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.mlpackage``, for macOS 13 and iOS 16 on; what is known of the net is in its user-defined metadata."""
    with _silent():
        try:
            coremltools = import_module("coremltools")
        except ImportError as error:
            raise IlgnetError(
                "coremltools is not installed, so Core ML's packages cannot be written; "
                "pip install 'ilgnet_repro[coreml]'"
            ) from error
    net = saving.net
    names = _names(net)
    program = to_pt2.export(net, open_batch=False)
    try:
        with _silent():
            made = _convert(coremltools, program, saving.options.precision == "float16")
    except Exception as error:  # of torch, and its own
        reason = excerpt(" ".join(str(error).split()), 200)
        raise IlgnetError(
            f"net {net.graph.name!r}: coremltools cannot convert it ({type(error).__name__}: {reason}); use to='onnx'",
            option="to",
        ) from error
    described = made.get_spec().description
    own = [one.name for one in (*described.input, *described.output)]
    renamed = {one: other for one, other in names.items() if one != other}
    metadata = {**saving.metadata(), **({"ilgnet_repro.names": json_text(renamed)} if renamed else {})}
    with _silent():
        save_package(made, path, dict(zip(own, names.values(), strict=True)), metadata)
    check = verify_files(FORMAT, saving, [path])
    if check.differs:
        raise _otherwise(saving, f"computes output {check.blob!r} otherwise than the net, {check.how}")
    return [path]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide what coremltools shows: its progress, and which versions of others it has not been tested with."""
    hidden = io.StringIO()
    with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert(coremltools: Any, program: torch.export.ExportedProgram, in_float16: bool) -> Any:
    pipeline = coremltools.PassPipeline.DEFAULT
    pipeline.remove_passes(_FUSING)
    options = {
        "compute_precision": coremltools.precision.FLOAT32,
        "minimum_deployment_target": coremltools.target.iOS16,
        "skip_model_load": True,
    }
    if not in_float16:
        return coremltools.convert(
            prepared(program), convert_to="mlprogram", pass_pipeline=pipeline, **options
        )
    made = coremltools.convert(prepared(program), convert_to="milinternal", pass_pipeline=pipeline, **options)
    weights_in_float16(made)
    return coremltools.convert(
        made, convert_to="mlprogram", pass_pipeline=coremltools.PassPipeline.EMPTY, **options
    )


def _names(net: CaffeNet) -> dict[str, str]:
    """Return the names of inputs and outputs in the package, where they are identifiers.

    Raises IlgnetError where two have the same.
    """
    names: dict[str, str] = {}
    for name in (*net.inputs_for(net.outputs), *net.outputs):
        argument = argument_name(name)
        for other, taken in names.items():
            if taken == argument:
                raise IlgnetError(
                    f"blobs {other!r} and {name!r} would both be called {argument} in a package of Core ML; rename "
                    "one, or use to='onnx'",
                    option="to",
                )
        names[name] = argument
    return names


def _otherwise(saving: Saving, how: str) -> IlgnetError:
    return IlgnetError(
        f"net {saving.net.graph.name!r}: what coremltools makes of it {how}; use to='onnx'", option="to"
    )


def not_run(paths: Sequence[Path], saving: Saving) -> str:
    """Compare what was written with the net; return why it was not run, "" on macOS.

    Raises IlgnetError where inputs, outputs or weights are others.
    """
    net, names = saving.net, _names(saving.net)
    with _silent():
        package = read_package(paths[0])
    for what, found, wanted in (
        ("inputs", package.inputs, net.inputs_for(net.outputs)),
        ("outputs", package.outputs, net.outputs),
    ):
        expected = tuple(Value(names[name], net.shapes[name] or (1,), True) for name in wanted)
        if found != expected:
            raise _otherwise(saving, f"has {what} {_show(found)}, not {_show(expected)}")
    kept, count = _compare_weights(saving, package.arrays)
    if IS_MACOS:
        return ""
    return (
        f"outputs: Core ML runs on macOS only; names, shapes and types of inputs and outputs are those of the net, and "
        f"{kept} of its {count} weights and biases are in the package as they are"
    )


def _show(values: Sequence[Value]) -> str:
    return ", ".join(
        f"{one.name} {'x'.join(map(str, one.shape))}{'' if one.is_float32 else ' (not float32)'}"
        for one in values
    )


def _compare_weights(saving: Saving, constants: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return how many blobs of the net are in the package, and how many there are.

    Those of one axis may be there as part of another value (the statistics of BatchNorm).  Raises IlgnetError where one of
    more axes is not.
    """
    net = saving.net
    found = {_digest(array) for array in constants}
    by_size: dict[int, list[np.ndarray]] = {}
    for array in constants:
        by_size.setdefault(array.size, []).append(array)
    kept = count = 0
    arrays = float_arrays(net)
    for node, _ in net.steps(net.outputs):
        for array, spec in zip(arrays.get(node.name, ()), net.plan.blobs[node.name], strict=True):
            count += 1
            if _digest(array) in found or any(
                np.array_equal(np.sort(array, axis=None), np.sort(other, axis=None), equal_nan=True)
                for other in by_size.get(array.size, ())
            ):
                kept += 1
            elif sum(length > 1 for length in spec.shape) > 1:
                raise _otherwise(saving, f"has other weights in layer {node.name} ({node.type})")
    return kept, count


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).data).digest()


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Run what was written in Core ML, on the CPU: its other units compute in float16."""
    net = saving.net
    inputs = net.inputs_for(net.outputs)
    coremltools = import_module("coremltools")
    with utf8_path(paths[0]) as name, _silent():
        model = coremltools.models.MLModel(name, compute_units=coremltools.ComputeUnit.CPU_ONLY)

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        found = model.predict({argument_name(name): given[name].numpy() for name in inputs})
        return {
            name: torch.from_numpy(np.array(found[argument_name(name)])).reshape(net.shapes[name])
            for name in net.outputs
        }

    return FileNet(paths[0].name, "Core ML", saving.about, inputs, net.outputs, {}, run)


def notes(saving: Saving) -> tuple[str, ...]:
    """Return what a package fixes, how it calls the blobs, and that it was not run."""
    renamed = [f"{name} is {other}" for name, other in _names(saving.net).items() if name != other]
    return (
        *dense_notes(saving),
        f"coreml: {size_note(saving)}",
        *([f"coreml: names are identifiers: {', '.join(renamed)}"] if renamed else []),
        *(
            []
            if IS_MACOS
            else [
                "coreml: its outputs were not computed: Core ML runs on macOS only; verify it there before use"
            ]
        ),
    )


FORMAT = Format(
    "coreml", ".mlpackage", write, reopen, options=("precision",), precisions=("float32", "float16"),
    feed=own_inputs, notes=notes, not_run=not_run,
)  # fmt: skip
