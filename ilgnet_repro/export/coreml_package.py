"""Core ML's packages (folders ``STEM.mlpackage``): written by coremltools in a form of fixed bytes, and read again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..files import json_text, parse_json, utf8_path

MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
MANIFEST = Path("Manifest.json")
_FLOAT32 = 65568  # ArrayFeatureType.FLOAT32 of Core ML's FeatureTypes.proto
_LEAST = 16  # values: shorter arrays gain nothing by another type


@dataclass(frozen=True)
class Value:
    """An input or output: its name, its shape, and whether its type is float32."""

    name: str
    shape: tuple[int, ...]
    is_float32: bool


@dataclass(frozen=True)
class Package:
    """What was read of a package."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    metadata: Mapping[str, str]
    arrays: tuple[np.ndarray, ...]  # the floating-point constants of its program


def save_package(made: Any, path: Path, names: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Write what coremltools converted, with its values renamed; the same net gives the same bytes."""
    spec = made.get_spec()
    rename_values(spec, names)
    for key, text in metadata.items():
        spec.description.metadata.userDefined[key] = text
    with utf8_path(path.parent) as folder:
        made.save(f"{folder}/{path.name}")
    (path / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    manifest = path / MANIFEST  # coremltools draws the identifiers
    text = manifest.read_text(encoding="utf-8")
    for key, entry in parse_json(text)["itemInfoEntries"].items():
        text = text.replace(key, str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper())
    manifest.write_text(json_text(parse_json(text), indent=4, sort_keys=True), encoding="utf-8")


def rename_values(spec: Any, names: Mapping[str, str]) -> None:
    """Rename inputs and outputs; a value within the program that has such a name already gets another."""
    taken = set(names.values())
    functions = spec.mlProgram.functions.values()
    used = {one.name for function in functions for one in _named(function)}
    changed = dict(names)
    for name in sorted(used & taken - set(names)):
        other = name
        while other in used | taken:
            other += "_"
        changed[name] = other
        taken.add(other)
    for one in (*spec.description.input, *spec.description.output):
        one.name = changed.get(one.name, one.name)
    for function in functions:
        for one in _named(function):
            one.name = changed.get(one.name, one.name)
        for block in _blocks(function):
            block.outputs[:] = [changed.get(name, name) for name in block.outputs]


def _blocks(function: Any) -> Iterator[Any]:
    pending = list(function.block_specializations.values())
    while pending:
        block = pending.pop()
        yield block
        pending += [inner for operation in block.operations for inner in operation.blocks]


def _named(function: Any) -> Iterator[Any]:
    """Return all of a function that carries the name of a value."""
    yield from function.inputs
    for block in _blocks(function):
        yield from block.inputs
        for operation in block.operations:
            yield from operation.outputs
            for argument in operation.inputs.values():
                yield from (binding for binding in argument.arguments if binding.name)


def read_package(path: Path) -> Package:
    """Read a package by coremltools' own readers."""
    coremltools = import_module("coremltools")
    reader = import_module("coremltools.converters.mil.frontend.milproto.load")
    with utf8_path(path.parent) as folder:
        model = coremltools.models.MLModel(f"{folder}/{path.name}", skip_model_load=True)
        spec = model.get_spec()
        program = reader.load(spec, spec.specificationVersion, model.weights_dir)
    values = [
        operation.outputs[0].val
        for function in program.functions.values()
        for operation in function.operations
        if operation.op_type == "const"
    ]
    arrays = [value for value in values if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    return Package(
        _values(spec.description.input), _values(spec.description.output),
        dict(spec.description.metadata.userDefined), tuple(arrays),
    )  # fmt: skip


def _values(described: Sequence[Any]) -> tuple[Value, ...]:
    kinds = [(one.name, one.type.multiArrayType) for one in described]
    return tuple(Value(name, tuple(kind.shape), kind.dataType == _FLOAT32) for name, kind in kinds)


def is_package(path: Path) -> bool:
    """Whether a path is a package of Core ML: its suffix, its manifest and its model."""
    return path.suffix == ".mlpackage" and (path / MANIFEST).is_file() and (path / MODEL).is_file()


def weights_in_float16(program: Any) -> None:
    """Store each array of a program that float16 holds exactly in float16, with its cast to float32."""
    builder = import_module("coremltools.converters.mil").Builder
    for function in program.functions.values():
        for operation in list(function.operations):
            value = operation.outputs[0].val if operation.op_type == "const" else None
            if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.size < _LEAST:
                continue
            with np.errstate(over="ignore"):
                half = value.astype(np.float16)
            if not np.array_equal(half.astype(np.float32), value):
                continue
            with function:
                cast = builder.constexpr_cast(source_val=half, output_dtype="fp32", before_op=operation)
            for made in (cast.op, *(one.op for one in cast.op.inputs.values())):
                made.scopes = operation.scopes  # where an operation comes from, which every one must state
            function.replace_uses_of_var_after_op(
                anchor_op=operation, old_var=operation.outputs[0], new_var=cast
            )
            function.remove_ops([operation])
