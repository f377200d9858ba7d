"""Files of any form as nets to draw: `open_view` finds the form by the file's content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..audit import Audit, audit, audit_files
from ..caffe.expected_kind import expect_or_named
from ..caffe.graph_build import Choices, choose_graph
from ..caffe.kinds import Kind
from ..caffe.prototxt import parse_net, read_net
from ..errors import FormatError, GraphError, IlgnetError, WeightsError
from ..files import parse_json
from ..layers.support.base import Shape
from ..runtime.calls import shapes_by_name
from ..runtime.load import load_caffe, with_outputs
from ..runtime.model_file import load_model
from ..runtime.net import CaffeNet
from ..runtime.net_file import MODEL, NET, net_file
from ..runtime.onnx_net import read_model
from ..runtime.plan import plan_net
from ..runtime.pt2_file import Pt2Program, read_pt2
from ..runtime.safetensors_file import TensorFile, read_metadata
from .module_rows import module_rows
from .onnx_rows import onnx_rows
from .pt2_rows import pt2_rows
from .rows import Blob, Rows, of_audit
from .view_values import CaffeValues, ModelValues, OnnxValues, Values

NO_WEIGHTS = "a prototxt has no weights, so there are no values; give the weights file beside it"
_KINDS = (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5, Kind.SAFETENSORS, Kind.ONNX, Kind.PT2, Kind.PYTHON)


class ViewOptions(TypedDict, total=False):
    """The options of `open_view`: those of `load` that select the layers and their shapes."""

    phase: str | None
    level: int
    stages: tuple[str, ...]
    input_shapes: Mapping[str, Shape]
    ignore_fields: tuple[str, ...]
    crop: str | None


@dataclass
class View:
    """A net to look at: its rows, and what computes its values, opened when it is first needed.

    ``why`` says why there are no values.
    """

    name: str
    rows: Rows
    opener: Callable[[], Values] | None = None
    why: str = ""
    _values: Values | None = field(default=None, repr=False)

    def values(self) -> Values:
        """Return what computes its values.  Raises IlgnetError where there are none, every time it is asked."""
        if self._values is None:
            if self.opener is None or self.why:
                raise GraphError(self.why)
            try:
                self._values = self.opener()
            except IlgnetError as error:
                self.why = str(error)
                raise
        return self._values


def open_view(text: str | None, weights: str | None, **options: Any) -> View:
    """Return the net of a prototxt, of a weights file of any form, or of both.

    ``options`` are `ViewOptions`.  Raises IlgnetError for a file that holds no net, and for options that do not apply.
    """
    stated = {key: value for key, value in options.items() if value}
    if weights is None:
        if text is None:
            raise IlgnetError("give a prototxt, a weights file, or both")
        found = audit_files(read_net(text), None, hashed=False, **stated)
        return View(Path(text).name, of_audit(found, "prototxt"), None, NO_WEIGHTS)
    path = Path(weights)
    kind = expect_or_named(path, *_KINDS, what="a net to draw")
    if kind is Kind.PYTHON:
        path, kind = _beside_source(path), Kind.SAFETENSORS
    if kind in (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5):
        return _caffe(text, path, kind.value, stated)
    if kind is Kind.SAFETENSORS:
        metadata = read_metadata(path)
        if NET in metadata or text is not None or MODEL not in metadata:
            try:
                return _caffe(text, path, kind.value, stated)
            except WeightsError as error:  # the weights of Python source have the names of its modules
                own = None if text or stated else _own_net(metadata, path)
                if own is None:
                    raise
                return View(path.name, of_audit(own, "weights of Python source"), None, str(error))
    given = {**({"prototxt": text} if text else {}), **stated}
    for name in given:
        raise GraphError(
            f"{path}: holds its own net, to which {name}= does not apply; leave it out", option=name
        )
    return _OTHERS[kind](path)


def _beside_source(path: Path) -> Path:
    """Return the weights file that `ilgnet convert` writes beside Python source, which holds the same net."""
    beside = path.with_name(f"{path.stem}.weights.safetensors")
    if beside.is_file():
        return beside
    raise FormatError(
        f"{path.name}: is Python source, which is not run; give {beside.name}, which `ilgnet convert` writes beside it"
    )


def _caffe(text: str | None, path: Path, form: str, options: Mapping[str, Any]) -> View:
    net = read_net(text) if text else None
    found = audit_files(net, path, hashed=False, **options)
    prototxt = text or None
    chosen = {**options, "phase": found.phase, "stages": found.stages}

    def opened() -> Values:
        return CaffeValues(load_caffe(path, prototxt=prototxt, **chosen))

    rows = of_audit(found, form.removeprefix("a "))
    return View(path.name, rows, opened, found.problems[0] if found.problems else "")


# ---------------------------------------------------------------------------------------- other forms


def _onnx(path: Path) -> View:
    model = read_model(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    own = _own_net(metadata, path)
    rows = onnx_rows(model, path) if own is None else _rows_of_own(own, "ONNX, written by `ilgnet convert`")
    shapes = {blob.name: blob.shape for blob in rows.inputs if blob.shape is not None}
    return View(path.name, rows, lambda: OnnxValues(path, model, shapes))


def _pt2(path: Path) -> View:
    program = read_pt2(path)
    own = _own_net(program.metadata, path)
    if own is None:
        why = "the file does not hold the Caffe net that it was written from, so its values are not shown"
        return View(path.name, pt2_rows(program, path.name), None, why)
    rows = _rows_of_own(own, "torch.export program, written by `ilgnet convert`")
    return View(path.name, rows, lambda: CaffeValues(_net_of_program(program)))


def _model(path: Path) -> View:
    model = load_model(path)
    shape = tuple(length or 1 for length in model.shapes[model.input_name])
    layers = module_rows(model, model.input_name, shape)
    whole = sum(blob.numel() for blob in model.parameters())
    idle = whole - sum(row.parameters for row in layers)
    notes = [f"{idle:,} parameters are of modules that do not run when it scores"] if idle else []
    rows = Rows(
        model.name, "torch model", layers, whole, sum(row.multiply_adds for row in layers),
        (Blob(model.input_name, model.shapes[model.input_name]),), model.outputs, tuple(notes),
    )  # fmt: skip
    return View(path.name, rows, lambda: ModelValues(model))


_OTHERS: Mapping[Kind, Callable[[Path], View]] = {Kind.ONNX: _onnx, Kind.PT2: _pt2, Kind.SAFETENSORS: _model}


def _own_net(metadata: Mapping[str, str], path: Path) -> Audit | None:
    """Return the audited net that `ilgnet convert` keeps in a file, or None for another file."""
    if NET not in metadata:
        return None
    try:
        shapes = {name: tuple(shape) for name, shape in parse_json(metadata["caffe.input_shapes"]).items()}
        phase = metadata["caffe.phase"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path}: its metadata are not as `ilgnet convert` writes them ({error})"
        ) from error
    return audit(
        parse_net(metadata[NET], file=str(path)), None, phase=phase, input_shapes=shapes, hashed=False
    )


def _rows_of_own(found: Audit, form: str) -> Rows:
    return of_audit(found, form, ["drawn by the Caffe net that the file holds"])


def _net_of_program(program: Pt2Program) -> CaffeNet:
    """Return the Caffe net that a program was written from, with the program's weights."""
    file = net_file(TensorFile(program.path, program.metadata, {}), program.metadata)
    notes: list[str] = []
    graph = with_outputs(
        choose_graph(file.text, Choices(file.phase, 0, (), file.input_shapes, (), None), notes), notes
    )
    plan = plan_net(graph, shapes_by_name(file.input_shapes, graph))
    blank = {name: [np.zeros(spec.shape, np.float32) for spec in specs] for name, specs in plan.blobs.items()}
    net = CaffeNet(plan, blank)
    try:
        net.load_state_dict(program.weights, strict=True)
    except RuntimeError as error:
        raise IlgnetError(
            f"{program.path}: its weights are not those of the Caffe net that it holds; give the Caffe weights for values"
        ) from error
    net.about = replace(file.about, prototxt=program.path)
    return net
