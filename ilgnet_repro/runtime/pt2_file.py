"""A pt2 file as a net, read as data: weights, a list of operators and names; nothing in it is run as code.

`torch.export.load` unpickles some members of an archive, evaluates its symbolic expressions and guards, and looks
operators up by any dotted path, so it is only safe for trusted files.  Here a file is refused unless
`ilgnet convert` writes each of its members, and its operators are called one by one from `OPERATORS`.
"""

from __future__ import annotations

import math
import operator
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..about import About
from ..caffe.expected_kind import expect
from ..caffe.kinds import Kind
from ..errors import FormatError, IlgnetError
from ..files import parse_json
from .pt2_expressions import is_size_arithmetic, symbolic_expressions
from .runnable import FileNet

METADATA_FILE = "ilgnet_repro.json"

# Members of an archive, under its top folder.
_MODEL = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights", "data/constants"
_CONFIGS = {
    _WEIGHTS: f"{_WEIGHTS}/model_weights_config.json",
    _CONSTANTS: f"{_CONSTANTS}/model_constants_config.json",
}
_SAMPLES = "data/sample_inputs/model.pt"  # a pickle, unless it is empty
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    rf"|{_MODEL}|{_WEIGHTS}/(model_weights_config\.json|weight_\d+)"
    rf"|{_CONSTANTS}/(model_constants_config\.json|tensor_\d+)|{_SAMPLES}|extra/{METADATA_FILE}"
)

# torch's own numbers in the file (torch/_export/serde/schema.py).
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7

# The ATen operators that Caffe's layers and the models are exported to: all return new values and touch no file.
_ATEN = """
    __and__ __or__ _assert_tensor_metadata _log_softmax _softmax _to_copy abs adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool2d add alias amax amin arange argmax argmin avg_pool1d avg_pool2d avg_pool3d batch_norm
    binary_cross_entropy_with_logits bitwise_and bitwise_not bitwise_or bmm cat ceil chunk clamp clamp_max clamp_min
    clone constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cos
    cumsum detach div dropout einsum elu embedding eq exp expand expand_as fill flatten flip floor floor_divide full
    full_like gather ge gelu group_norm gt hardtanh index index_select isnan layer_norm le leaky_relu lerp
    lift_fresh_copy linalg_vector_norm linear linspace log log1p log_softmax logical_and logical_not logical_or
    logsumexp lt masked_fill matmul max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d maximum mean meshgrid
    min minimum mm movedim mul narrow native_group_norm ne neg new_full new_ones new_zeros numpy_T one_hot ones
    ones_like pad permute pixel_shuffle pow prelu prod promote_types reciprocal relu relu6 remainder repeat
    repeat_interleave reshape round rsqrt rsub scalar_tensor scatter scatter_add select sigmoid sign silu sin slice
    softmax softplus sort split split_with_sizes sqrt square squeeze stack std std_mean sub sum sym_numel sym_size t
    tanh tensor_split threshold tile to topk transpose true_divide unbind unflatten unfold unsqueeze
    upsample_bilinear2d upsample_nearest2d var var_mean view view_as where zeros zeros_like
"""
OPERATORS = frozenset(_ATEN.split())
# Arithmetic on sizes.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge", "getitem"
    )},
    "torch.sym_max": max, "torch.sym_min": min, "torch.sym_int": int, "torch.sym_float": float,
    "math.ceil": math.ceil, "math.floor": math.floor, "math.trunc": math.trunc,
}  # fmt: skip


@dataclass(frozen=True)
class Pt2Step:
    """One operator: the values that it reads, weights included, and those that it writes."""

    target: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Pt2Program:
    """The program of an archive: named inputs and outputs, constants and weights, and its operators."""

    path: str
    inputs: dict[str, tuple[int | None, ...]]  # lengths; None where open
    outputs: tuple[str, ...]
    _given: dict[str, tuple[str, torch.dtype]]  # input -> value and its type
    _results: tuple[str, ...]
    _values: dict[str, Tensor]
    _nodes: tuple[_Node, ...]
    metadata: dict[str, str] = field(default_factory=dict)  # as `ilgnet convert` wrote it
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)  # of every value; None where open
    weights: dict[str, Tensor] = field(default_factory=dict)  # by the names of the exported module

    def steps(self) -> Iterator[Pt2Step]:
        """Yield the operators in order."""
        for node in self._nodes:
            found = (list(_named(stored)) for _, stored in node.arguments)
            yield Pt2Step(
                node.target, tuple(dict.fromkeys(name for names in found for name in names)),
                tuple(name for result in node.results for name in _named(result)),
            )  # fmt: skip

    def input_values(self) -> dict[str, str]:
        """Return the value of each input."""
        return {name: value for name, (value, _) in self._given.items()}

    def parameter(self, value: str) -> Tensor | None:
        """Return the weight or constant that a value is, or None for one that is computed."""
        return self._values.get(value)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs.  Raises IlgnetError where an operator does not take what it is given."""
        values: dict[str, Any] = {
            **self._values,
            **{self._given[name][0]: value.to("cpu", self._given[name][1]) for name, value in inputs.items()},
        }
        with torch.inference_mode():
            for node in self._nodes:
                try:
                    node.run(values)
                except KeyError as error:
                    raise IlgnetError(
                        f"{self.path}: {node.target} reads {error}, which nothing computes"
                    ) from error
                except Exception as error:  # torch raises several kinds for arguments that do not fit
                    raise IlgnetError(f"{self.path}: {node.target} fails ({_reason(error)})") from error
        return {name: values[result] for name, result in zip(self.outputs, self._results, strict=True)}


@dataclass(frozen=True)
class _Node:
    target: str
    function: Callable[..., Any]
    arguments: tuple[tuple[str | None, Any], ...]  # the keyword, None for a position, and how it is stored
    results: tuple[Any, ...]

    def run(self, values: dict[str, Any]) -> None:
        given = [(key, _argument(stored, values)) for key, stored in self.arguments]
        found = self.function(
            *(value for key, value in given if key is None), **{key: value for key, value in given if key}
        )
        several = found if len(self.results) > 1 else (found,)
        for result, value in zip(self.results, several if self.results else (), strict=True):
            kind, names = next(iter(result.items()))
            if kind == "as_tensors":
                values.update((entry["name"], part) for entry, part in zip(names, value, strict=True))
            elif kind != "as_none":
                values[names.get("name") or names["as_name"]] = value


def open_net(path: Path) -> FileNet:
    """Open a pt2 file written by `save`.  Raises IlgnetError for one that is damaged or not known to be safe."""
    program = read_pt2(path)

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return program.run(given)

    try:
        stated = dict(program.metadata)
        if parse_json(stated.get("preprocessing", "{}")).get("has_mean_image"):
            del stated["preprocessing"]  # the mean image is not stored in the file
        about = About.from_metadata(stated)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: its metadata are not as this package writes them ({error})") from error
    return FileNet(
        path.name, "torch.export", about, tuple(program.inputs), program.outputs, program.inputs, run
    )


def check_members(path: str | os.PathLike[str]) -> None:
    """Refuse an archive with a member that torch would unpickle or run, or that `ilgnet convert` does not write."""
    with _opened(path) as archive:
        _members(path, archive)


def read_pt2(path: str | os.PathLike[str]) -> Pt2Program:
    """Read an archive.  Raises IlgnetError for one that is damaged, or that has content not known to be safe."""
    # The reader below has a better message for a damaged or unknown archive.
    expect(path, Kind.PT2, Kind.ZIP, Kind.TORCH, Kind.EMPTY, Kind.UNKNOWN, what="an exported PyTorch program")
    with _opened(path) as archive:
        return _program(path, archive, _members(path, archive))


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except IlgnetError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise _refused(path, f"cannot be read ({_reason(error)})") from error


def _members(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members under the archive's only folder; each must be known, unique and uncompressed."""
    members: dict[str, zipfile.ZipInfo] = {}
    top = archive.namelist()[0].partition("/")[0] if archive.namelist() else ""
    for entry in archive.infolist():
        folder, _, name = entry.filename.partition("/")
        if folder != top or name in members or not _KNOWN.fullmatch(name):
            raise _refused(
                path,
                f"holds {entry.filename!r}, which `ilgnet convert` does not write; pickles and compiled code are not "
                "read",
            )
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise _refused(path, f"holds {entry.filename!r} compressed or encrypted")
        if name == _SAMPLES and entry.file_size:
            raise _refused(path, f"holds {entry.filename!r}, a pickle; pickles are not read")
        members[name] = entry
    missing = [name for name in (_MODEL, *_CONFIGS.values()) if name not in members]
    if missing:
        raise _refused(path, f"lacks {missing[0]}")
    for config in _CONFIGS.values():
        for name, entry in parse_json(archive.read(members[config]))["config"].items():
            if entry["use_pickle"]:
                raise _refused(path, f"keeps {name!r} as a pickle; pickles are not read")
    model = parse_json(archive.read(members[_MODEL]))
    for text in (*symbolic_expressions(model), *model.get("guards_code", ())):
        check_expression(path, text)
    return members


def _program(
    path: str | os.PathLike[str], archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> Pt2Program:
    if "byteorder" in members and archive.read(members["byteorder"]).decode() != sys.byteorder:
        raise _refused(path, "was written on a machine of the other byte order")
    model = parse_json(archive.read(members[_MODEL]))["graph_module"]
    stored = {folder: _tensors(path, archive, members, folder) for folder in _CONFIGS}
    graph, signature = model["graph"], model["signature"]
    values: dict[str, Tensor] = {}
    placed: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, held),) = spec.items()
        if kind == "user_input":
            placed.append(held["arg"]["as_tensor"]["name"])
        elif kind == "parameter":
            values[held["arg"]["name"]] = stored[_WEIGHTS][held["parameter_name"]]
        elif kind == "buffer":
            name = held["buffer_name"]
            values[held["arg"]["name"]] = (stored[_WEIGHTS] if held["persistent"] else stored[_CONSTANTS])[
                name
            ]
        elif kind == "tensor_constant":
            values[held["arg"]["name"]] = stored[_CONSTANTS][held["tensor_constant_name"]]
        else:
            raise _refused(path, f"has an input of the kind {kind!r}")
    call = next(entry["signature"] for entry in model["module_call_graph"] if not entry["fqn"])
    names, outputs = _names(parse_json(call["in_spec"])[1]), _names(parse_json(call["out_spec"])[1])
    if names is None or outputs is None:
        raise _refused(path, "its inputs or outputs have no names")
    results = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
    given = dict(zip(names, placed, strict=True))
    held = {name: graph["tensor_values"][value] for name, value in given.items()}
    return Pt2Program(
        str(path),
        {name: tuple(length.get("as_int") for length in one["sizes"]) for name, one in held.items()},
        tuple(outputs),
        {name: (value, _DTYPES[held[name]["dtype"]]) for name, value in given.items()},
        tuple(results),
        values,
        tuple(_node(path, node) for node in graph["nodes"]),
        _metadata(archive, members),
        {
            name: tuple(length.get("as_int") for length in value["sizes"])
            for name, value in graph["tensor_values"].items()
        },
        {name: value for tensors in stored.values() for name, value in tensors.items()},
    )


def _metadata(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, str]:
    entry = members.get(f"extra/{METADATA_FILE}")
    held = parse_json(archive.read(entry)) if entry is not None else {}
    return {key: value for key, value in held.items() if isinstance(value, str)}


def _names(spec: Any) -> list[str] | None:
    """Return the keys of a structure that is a dict, or an empty tuple and a dict; None for another structure."""
    if spec["type"] == "builtins.tuple" and len(spec["children_spec"]) == 2:
        positions, spec = spec["children_spec"]
        if positions["children_spec"]:
            return None
    if spec["type"] != "builtins.dict" or any(child["type"] is not None for child in spec["children_spec"]):
        return None
    names: list[Any] = parse_json(spec["context"])
    if len(names) != len(spec["children_spec"]) or not all(isinstance(name, str) for name in names):
        return None
    return names


# ---------------------------------------------------------------------- operators


def _node(path: str | os.PathLike[str], node: Mapping[str, Any]) -> _Node:
    target = node["target"]
    arguments = tuple(
        (entry["name"] if entry.get("kind") == 2 else None, entry["arg"]) for entry in node["inputs"]
    )
    return _Node(target, _function(path, target), arguments, tuple(node["outputs"]))


def _function(path: str | os.PathLike[str], target: str) -> Callable[..., Any]:
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    parts = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    if parts is None or parts[1] not in OPERATORS:
        raise _refused(path, f"calls {target!r}, which no layer is exported to")
    packet = getattr(torch.ops.aten, parts[1])
    if parts[2] not in packet.overloads() or parts[2].endswith("out"):
        raise _refused(path, f"calls {target!r}, which this torch does not have")
    overload: Callable[..., Any] = getattr(packet, parts[2])
    return overload


def _named(stored: Any) -> Iterator[str]:
    """Yield the names of values in an argument or result as it is stored."""
    if isinstance(stored, Mapping):
        for key, held in stored.items():
            if key in ("name", "as_name") and isinstance(held, str):
                yield held
            elif key != "as_string":
                yield from _named(held)
    elif isinstance(stored, list):
        for held in stored:
            yield from _named(held)


def _argument(stored: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """Return an operator's argument: a value computed before, or a constant."""
    ((kind, held),) = stored.items()
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_optional_tensor"):
        return values[held["name"]] if "name" in held else _argument(held, values)
    if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [values[entry["name"]] if "name" in entry else _argument(entry, values) for entry in held]
    if kind == "as_name":
        return values[held]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _argument(held, values)
    if kind == "as_float":
        return float(held)  # Infinity and NaN are stored as text
    if kind == "as_floats":
        return [float(value) for value in held]
    if kind in ("as_int", "as_ints", "as_bool", "as_bools", "as_string"):
        return held
    if kind == "as_scalar_type":
        return _DTYPES[held]
    if kind == "as_memory_format":
        return _FORMATS[held]
    if kind == "as_device" and held["type"] == "cpu":
        return torch.device("cpu")
    if kind == "as_layout" and held == _STRIDED:
        return torch.strided
    raise ValueError(f"it has an argument {kind} {held!r}")


# ---------------------------------------------------------------------- weights


def _tensors(
    path: str | os.PathLike[str],
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    folder: str,
) -> dict[str, Tensor]:
    """Return the tensors of a folder by name; views of one member share its memory."""
    config = parse_json(archive.read(members[_CONFIGS[folder]]))["config"]
    flat: dict[tuple[str, torch.dtype], Tensor] = {}
    tensors = {}
    for name, entry in config.items():
        meta, member = entry["tensor_meta"], f"{folder}/{entry['path_name']}"
        if member not in members or member in _CONFIGS.values():
            raise _refused(path, f"keeps {name!r} in {member!r}, which is not one of its arrays")
        if meta["device"]["type"] != "cpu" or meta["layout"] != _STRIDED:
            raise _refused(path, f"keeps {name!r} in another form than a CPU array")
        key = member, _DTYPES[meta["dtype"]]
        if key not in flat:
            data = bytearray(archive.read(members[member]))
            flat[key] = torch.frombuffer(data, dtype=key[1]) if data else torch.empty(0, dtype=key[1])
        size, stride = (tuple(length["as_int"] for length in meta[field]) for field in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        fits = min((*size, *stride, offset)) >= 0 and (0 in size or last < flat[key].numel())
        if not fits:
            raise _refused(path, f"keeps {name!r} in {member!r}, which is too short for it")
        tensors[name] = flat[key].as_strided(size, stride, offset) if 0 not in size else torch.empty(size)
    return tensors


def check_expression(path: str | os.PathLike[str], text: Any) -> None:
    """Refuse an expression that is more than arithmetic on sizes: torch evaluates it with sympy, and runs guards."""
    if not is_size_arithmetic(text):
        raise _refused(
            path, f"holds the expression {str(text)[:80]!r}, which is more than arithmetic on sizes"
        )


def _refused(path: str | os.PathLike[str], why: str) -> IlgnetError:
    return IlgnetError(f"{path}: {why}; only pt2 files as `ilgnet convert` writes them are read")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
