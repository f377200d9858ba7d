"""`Layer`, the base class of every layer type, its plan, and the two writers that it calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from google.protobuf.message import Message
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...caffe.fork_fields import filler_of, refusal
from ...caffe.graph import Node
from ...errors import LayerError
from ...schema import caffe_pb2 as pb

Shape = tuple[int, ...]
# Orders in memory of the bottoms that a layer is given in a pass without gradients (runtime/inference.py).
CONTIGUOUS, CHANNELS_LAST, ANY_LAYOUT = "contiguous", "channels last", "any"
# The value of an ONNX node's attribute; a Message is a TensorProto.
Attribute = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | Message


@dataclass(frozen=True)
class BlobSpec:
    """One parameter blob of a layer: its attribute name, shape, filler, and whether it is learned.

    ``any_ones``: a weights file may store it with more or fewer axes of size 1, as the releases of some forks do.
    ``values`` are initial values that the layer itself has computed, instead of a filler's.  ``foreign`` is a field of
    the filler that only a fork knows, so that it cannot be used.
    """

    name: str
    shape: Shape
    filler: pb.FillerParameter | None = None
    learned: bool = True
    any_ones: bool = False
    values: np.ndarray | None = field(default=None, repr=False, compare=False)
    foreign: str = ""

    @property
    def has_filler(self) -> bool:
        """Whether the net's text, or Caffe's default for the layer, states the initial values."""
        return self.filler is not None and bool(self.filler.ListFields())

    @property
    def filler_text(self) -> str:
        """The filler as messages name it."""
        filler = pb.FillerParameter() if self.filler is None else self.filler
        return f"constant {filler.value:g}" if filler.type == "constant" else filler.type


@dataclass(frozen=True)
class LayerPlan:
    """A layer for bottoms of given shapes: its tops' shapes, its blobs in Caffe's order, the multiply-adds of a pass."""

    tops: Sequence[Shape]
    blobs: Sequence[BlobSpec] = ()
    multiply_adds: int = 0


class OnnxGraph(Protocol):
    """The methods of the ONNX writer that a layer's `onnx` may call."""

    def node(self, op: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        """Add a node with one output and return that output's name; an input may be "" (absent)."""

    def nodes(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Attribute) -> list[str]:
        """Add a node with several outputs and return their names."""

    def scan(
        self, states: Sequence[str], sequences: Sequence[str], step: Callable[..., Sequence[str]]
    ) -> list[str]:
        """Add a Scan node over axis 0 of ``sequences`` and return the last states, then the stacked outputs.

        ``step`` takes the states and one element of each sequence, adds the nodes of one step (it may read
        values from outside), and returns the new states, then the outputs.
        """

    def constant(self, array: np.ndarray) -> str:
        """Return the name of an initializer holding ``array`` (equal arrays are stored once)."""

    def parameter(self, name: str) -> str:
        """Return the initializer of the current layer's blob ``name``, as Caffe shaped it."""

    def shape(self, value: str) -> tuple[int | None, ...]:
        """Return the shape of a *bottom*; None is a dynamic length, known only when the graph runs."""

    def size(self, value: str, axis: int) -> int:
        """Return one length of a bottom; raises LayerError, naming the current layer, where it is dynamic."""


class SourceCode(Protocol):
    """The methods of the Python writer that a layer's `source` may call."""

    def module(self, constructor: str, **blobs: Tensor) -> str:
        """Declare ``self.LAYER = constructor``; ``blobs`` are its state, by attribute name.

        Returns the expression to call (``self.conv1``).
        """

    def parameter(self, name: str, value: Tensor) -> str:
        """Declare a bare ``nn.Parameter`` of the current layer and return the expression that names it."""

    def buffer(self, name: str, value: Tensor) -> str:
        """Declare a buffer of the current layer, for values that are not learned, and return its expression."""

    def affine(self) -> dict[str, Tensor]:
        """Return weight and bias of the Scale layer that the current layer's module is to include, or nothing."""

    def helper(self, function: Callable[..., Any]) -> str:
        """Copy ``function``'s source into the written file and return its name.

        The function may use only ``torch``, ``F`` (torch.nn.functional), ``math`` and other helpers
        declared by `uses`; its annotations also ``Tensor`` and ``Callable``.
        """

    def shape(self, index: int) -> Shape:
        """Return the shape that bottom ``index`` has at export; axis 0 is the batch."""


def _no_setup(self: Layer, *ranks: int) -> None:
    """Store the fields as attributes; raise LayerError (by `self.error`) for a value that is not supported."""


def _tops_like_bottoms(self: Layer, *bottoms: Shape) -> LayerPlan:
    """Return the tops' shapes, the blobs and the multiply-adds for bottoms of these shapes; does not change the layer.

    By default each top has its bottom's shape, and there are no blobs.
    """
    return LayerPlan(bottoms)


class Layer(nn.Module):
    """One Caffe layer: checked when it is created, given its parameters by the net, then run.

    A subclass sets the class attributes and implements five methods.  `setup` reads the fields once, when the layer
    is created; it is the only one that assigns to ``self``.  `plan`, `forward`, `onnx` and `source` take the same
    bottoms: as shapes, tensors, ONNX names and Python expressions.
    """

    # The message of LayerParameter that configures it, and the supported fields.  Any other field with a value that
    # is not its default is an error that names it: nothing is ignored silently.
    message: ClassVar[str] = ""
    fields: ClassVar[tuple[str, ...]] = ()
    # Fields that select one of Caffe's implementations and never change a result.
    ignored_fields: ClassVar[tuple[str, ...]] = ("engine",)
    # Other messages of LayerParameter that it reads, and those that Caffe refuses too, with the reason.
    other_messages: ClassVar[tuple[str, ...]] = ()
    refused_messages: ClassVar[Mapping[str, str]] = {}
    # Dotted paths of fields outside the schema that the class reads with `fork_field`.
    fork_fields: ClassVar[tuple[str, ...]] = ()
    # Minimum and maximum number; None is no maximum.
    bottom_count: ClassVar[tuple[int, int | None]] = (1, 1)
    top_count: ClassVar[tuple[int, int | None]] = (1, 1)
    # Loss layers weight their first top by 1 unless loss_weight is stated, and may leave it unnamed.
    is_loss: ClassVar[bool] = False
    # Whether Caffe's result is right where the top is written over the bottom.  Other types read values that they
    # have already overwritten.
    in_place: ClassVar[bool] = False
    # Bottoms that hold integers (labels, row numbers): kept in float32 where the net runs in bfloat16, which
    # cannot represent 257.
    index_bottoms: ClassVar[tuple[int, ...]] = ()
    # The tops are values that the caller feeds.
    is_input: ClassVar[bool] = False
    # They are inputs in place of the data layers that it reads, which are left out (caffe/fed_bottoms.py).
    replaces_feeders: ClassVar[bool] = False
    # The axes of its first top, images, of which the shapes of its other tops follow; 0 where the text does not show them.
    image_axes: int = 0
    # The fewest axes of a bottom whose shape a text would leave open, where fewer are possible.
    usual_axes: ClassVar[int] = 0
    # The layer generates its tops; the caller may feed any of them instead, in any size the net can take.
    may_be_fed: ClassVar[bool] = False
    # The tops' lengths along `counted_axis` depend on values; `plan` returns the maximum.
    sized_by_values: ClassVar[bool] = False
    counted_axis: ClassVar[int] = 0
    # Whether Caffe carries state from one pass to the next; such a layer has `carry_state` and `reset_state`.
    has_state: bool = False
    # What a pass starts from where no state is carried, as messages name it.
    initial_state: ClassVar[str] = "zeros"
    # Whether torch.export unrolls its steps, axis 0 of its first bottom, so that their number is fixed.
    is_unrolled: ClassVar[bool] = False
    # Whether Caffe has a backward pass for it.
    has_gradient: ClassVar[bool] = True
    # The order in memory of four-axis bottoms that `forward` is given in a pass without gradients.
    layout: str = CONTIGUOUS
    # For types that several forks define: which fork's layer this is, and which field shows it; `audit` prints it.
    note: str = ""
    # Why it cannot be written as ONNX or plain Python; empty where it can.
    no_onnx: str = ""
    no_source: str = ""
    # Why it keeps float32 where a net is computed in float16; empty for products (a runtime sums them in float32), maxima,
    # and layers that move values.
    no_float16: str = "neither products nor maxima"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):  # inherited, these would speak for another forward
            for name in {"layout", "no_float16"} - vars(cls).keys():
                setattr(cls, name, getattr(Layer, name))

    def __init__(self, node: Node, ranks: Sequence[int] | None = ()) -> None:
        """Check the node and read its fields.

        ``ranks`` are its bottoms' numbers of axes; where these are unknown (None), as after a layer with an error,
        only counts and the names of fields are checked.
        """
        super().__init__()
        self.node = node
        self.training = self.is_train  # until `train()` or `eval()` is called
        self.blob_names: list[str] = []
        self.stopped_bottoms = self.find_stopped(node)
        self._check_counts()
        self._check_fields()
        self._check_in_place()
        self._set_up(ranks)

    @staticmethod
    def find_stopped(node: Node) -> tuple[int, ...]:
        """Return the bottoms that get no gradient: by `propagate_down: false`, or because Caffe loses it."""
        if node.loses_gradient:
            return (0,)
        return tuple(
            index
            for index, propagate in enumerate(node.layer.propagate_down)
            if not propagate and index < len(node.bottoms)
        )

    def _set_up(self, ranks: Sequence[int] | None) -> None:
        if ranks is not None:
            self.setup(*ranks)

    # ------------------------------------------------------------------ for a subclass to implement

    # Declared like torch's own `forward`, so that each class names its bottoms and mypy accepts the overrides.
    setup: Callable[..., None] = _no_setup
    plan: Callable[..., LayerPlan] = _tops_like_bottoms

    def input_shapes(self, given: Mapping[str, Shape]) -> list[Shape]:
        """Return the tops' shapes of a layer that the caller feeds; ``given`` overrides them by top name."""
        own = self.plan().tops if any(top not in given for top in self.node.top_names) else []
        return [given[top] if top in given else own[index] for index, top in enumerate(self.node.top_names)]

    def forward(self, *bottoms: Any, **options: Any) -> tuple[Tensor, ...]:
        """Compute the tops."""
        raise self.error("has no forward pass: its class does not implement it")

    def onnx(self, graph: OnnxGraph, *bottoms: Any) -> list[str]:
        """Add this layer's ONNX nodes and return the names of its tops."""
        raise self.error("cannot be written as ONNX: its class does not implement it")

    def source(self, code: SourceCode, *bottoms: Any) -> list[str]:
        """Return one Python expression per top."""
        raise self.error("cannot be written as Python: its class does not implement it")

    @classmethod
    def class_for(cls, node: Node) -> type[Layer] | None:
        """Return the class that a node of this type gets; None where there is none."""
        return cls

    @classmethod
    def resolve_kind(cls, text: pb.LayerParameter, blobs: int) -> None:
        """State in a layer's text which fork's kind it is, by the number of its blobs in the weights file.

        For types that several forks define, where the text itself leaves the kind open.
        """

    @classmethod
    def resolve_by_net(cls, text: pb.LayerParameter, net: pb.NetParameter) -> None:
        """State in a layer's text which fork's kind it is, by the layers that it reads."""

    # ------------------------------------------------------------------ for a subclass to call

    @property
    def param(self) -> Any:
        """The layer's own parameter message; defaults are filled in by the schema."""
        return getattr(self.node.layer, self.message)

    @property
    def is_train(self) -> bool:
        """Whether the net was loaded in phase TRAIN; decides the layer's kind and what is exported, and never changes.

        Where Caffe's passes differ between the phases (random draws, batch statistics), `training` decides.
        """
        return self.node.phase == "TRAIN"

    def error(self, message: str, *, option: str = "") -> LayerError:
        """Return a LayerError that names this layer; ``option`` is the keyword that its message refers to."""
        return LayerError(self.node.name, self.node.type, message, option=option)

    def axis(self, axis: int, rank: int, *, field: str = "axis") -> int:
        """Return a possibly negative ``axis`` counted from the front, as Caffe's `CanonicalAxisIndex`."""
        if not -rank <= axis < rank:
            raise self.error(f"{field} {axis} is outside a blob of {rank} axes")
        return axis % rank

    def fork_field(self, path: str) -> str | None:
        """Return the text of a field outside the schema, or None; of repeated ones the last."""
        found = [field.text for field in self.node.layer.fork_field if field.path == path]
        return found[-1] if found else None

    def blob(self, name: str) -> Tensor:
        """Return a parameter blob by its name."""
        # Most parameters are found here; torch's attribute lookup is much slower.
        found = self._parameters.get(name)
        blob: Tensor = getattr(self, name) if found is None else found
        return blob

    # ------------------------------------------------------------------ for the net

    def fresh(self, copies: Mapping[int, Tensor] | None = None) -> Self:
        """Return a copy for one net; nets made from one plan share only the nodes.

        ``copies`` holds existing copies by the id of their original, like the memo of `copy.deepcopy`.
        """
        memo: dict[int, Any] = {id(self.node): self.node, **(copies or {})}
        for value in vars(self).values():
            if isinstance(value, torch.Generator):  # deepcopy cannot copy it
                memo[id(value)] = value.clone_state()
        return copy.deepcopy(self, memo)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        kind = type(self)
        if parametrize.is_parametrized(self):
            # torch stores a parametrization as a property of a class created for this instance.  If the copy had the
            # same class, replacing a blob in one would remove it from the other.
            kind = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        copied = kind.__new__(kind)
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not parametrize.is_parametrized(self):
            return super().__reduce_ex__(protocol)
        parametrizations: Any = self.parametrizations
        names = tuple(parametrizations)
        return _with_computed_blobs, (parametrize.type_before_parametrizations(self), names), self.__dict__

    def register_blob(self, spec: BlobSpec, parameter: nn.Parameter) -> None:
        """Attach the next parameter in Caffe's order; one shared with another layer may have another shape."""
        self.blob_names.append(spec.name)
        self.register_parameter(spec.name, parameter)
        if tuple(parameter.shape) != spec.shape:  # PERMISSIVE sharing: the same values in another shape
            parametrize.register_parametrization(self, spec.name, _View(spec.shape), unsafe=True)

    def __setattr__(self, name: str, value: Any) -> None:
        # An assigned parameter replaces a computed one (a view of another layer's, or quantized weights).
        if isinstance(value, nn.Parameter) and parametrize.is_parametrized(self, name):
            parametrize.remove_parametrizations(self, name, leave_parametrized=False)
        super().__setattr__(name, value)

    def stored_blob(self, name: str) -> Tensor:
        """Return the parameter that stores a blob: the owner's, where it is shared in another shape."""
        stored: Tensor = getattr(self, name)
        if parametrize.is_parametrized(self, name):
            parametrizations: Any = self.parametrizations
            stored = parametrizations[name].original
        return stored

    def tie_blobs(self, other: Layer) -> None:
        """Share the parameters of a layer whose blobs have the same names and shapes."""
        for name in self.blob_names:
            shape, stored = tuple(self.blob(name).shape), other.stored_blob(name)
            if parametrize.is_parametrized(self, name):
                parametrizations: Any = self.parametrizations
                parametrizations[name].original = stored
                continue
            setattr(self, name, stored)
            if tuple(stored.shape) != shape:
                parametrize.register_parametrization(self, name, _View(shape), unsafe=True)

    def refuse_unread_parameters(self) -> None:
        """Raise LayerError for a parameter that this layer does not read.

        Hooks that compute a blob from other parameters (pruning, weight norm) may add such names.
        """
        for name in self._parameters:
            if name not in self.blob_names and not self._forward_pre_hooks:
                blobs = ", ".join(self.blob_names) or "none"
                raise self.error(f"does not read a parameter {name!r}; its blobs are {blobs}")

    @property
    def blobs(self) -> list[Tensor]:
        """The parameters in Caffe's order."""
        return [getattr(self, name) for name in self.blob_names]

    def loss_weights(self) -> tuple[float, ...]:
        """The weight of each top in the net's loss, as Caffe's `SetLossWeights`."""
        return tuple(self.node.layer.loss_weight) or self.default_loss_weights()

    def default_loss_weights(self) -> tuple[float, ...]:
        """The weights where the text states none: 1 for a loss (`LossLayer::LayerSetUp`)."""
        return (1.0,) if self.is_loss else ()

    @property
    def idle_messages(self) -> tuple[str, ...]:
        """The names of stated messages that this type does not read; Caffe ignores them."""
        read = {self.message, *self.other_messages}
        stated = [field.name for field, _ in self.node.layer.ListFields() if field.name.endswith("_param")]
        return tuple(name for name in stated if name not in read)

    @property
    def idle_note(self) -> str:
        """The note that names the messages that are not read; empty where all are."""
        names = ", ".join(self.idle_messages)
        return f"{names} is not read by this type" if names else ""

    def check_param_rows(self, blobs: int) -> None:
        """Refuse `param` rows that belong to no blob, as Caffe does."""
        rows = len(self.node.layer.param)
        if rows > blobs:
            raise self.error(f"has {rows} param rows for {blobs} blobs; remove the extra rows")

    def _check_counts(self) -> None:
        for what, found, (least, most) in (
            ("bottom", len(self.node.bottoms), self.bottom_count),
            ("top", len(self.node.tops), self.top_count),
        ):
            if what == "top" and self.is_loss and not found:
                continue
            if found < least or (most is not None and found > most):
                wanted = (
                    str(least)
                    if most == least
                    else f"{least} or more"
                    if most is None
                    else f"{least} to {most}"
                )
                raise self.error(f"has {found} {what}s; it takes {wanted}")

    def is_channel_affine(self, rank: int) -> bool:
        """Whether, for a bottom of so many axes, it may multiply and add one value per channel: see `channel_affine`."""
        return False

    def channel_affine(self, training: bool) -> tuple[Tensor, Tensor] | None:
        """Return the factor and the shift of each channel, or None where a pass in that mode computes something else."""
        return None

    def for_inference(self, *bottoms: Shape) -> Callable[..., Sequence[Tensor]]:
        """Return what computes the tops in a pass without gradients in float32 on the CPU, for bottoms of these shapes.

        It is `forward`, or the same sums with what the shapes decide decided once; the parameters and the mode are read
        in each call.
        """
        return self.forward

    def is_identity(self) -> bool:
        """Whether every top equals the first bottom, with the layer's fields and in its phase; it can be left out."""
        return False

    def can_be_in_place(self) -> bool:
        """Whether this layer, with its fields and in its phase, can be written over its bottom."""
        return self.in_place

    def _check_in_place(self) -> None:
        if self.node.is_in_place and not self.can_be_in_place():
            raise self.error(
                "cannot be written in place: Caffe refuses it or computes from overwritten values; "
                "give the top another name"
            )

    def _check_fields(self) -> None:
        layer = self.node.layer
        for name, reason in self.refused_messages.items():
            if layer.HasField(name):
                raise self.error(f"{reason}; remove {name}")
        # A loss may leave its top unnamed; the counts are those that Caffe's `Net` and `SetLossWeights` check.
        for what, stated, each, count in (
            ("loss_weight", layer.loss_weight, "top", len(self.node.tops) or int(self.is_loss)),
            ("propagate_down", layer.propagate_down, "bottom", len(self.node.bottoms)),
        ):
            if stated and len(stated) != count:
                raise self.error(
                    f"{what} is stated {len(stated)} times for {count} {each}s; state one per {each}"
                )
        if self.message:
            for field, value in self.param.ListFields():
                supported = field.name in self.fields or field.name in self.ignored_fields
                if not supported and (
                    field.is_repeated or field.message_type or value != field.default_value
                ):
                    raise self.error(
                        f"{self.message}.{field.name} is not supported; remove it if it does not matter"
                    )
        if layer.blobs:
            # Caffe initializes from them; here weights come from a weights file, and values must not be dropped silently.
            raise self.error("blobs in a prototxt are not read; put them in a caffemodel")
        self._check_fork_fields()

    def takes_fork_field(self, field: pb.ForkField) -> bool:
        """Whether a field outside the schema is read, or cannot matter."""
        return field.path in self.fork_fields

    def _check_fork_fields(self) -> None:
        layer = self.node.layer
        for fork in layer.fork_field:
            if not self.takes_fork_field(fork) and not filler_of(fork):
                own = (self.message, *self.other_messages)
                raise self.error(refusal(fork, layer.DESCRIPTOR, own), option="ignore_fields")


def _with_computed_blobs(kind: type[Layer], names: Sequence[str]) -> Layer:
    """Return an empty layer for the state of a pickled one, some of whose blobs are computed (parametrized).

    torch gives each such layer a class of its own, which pickle cannot find: it is made again.
    """
    layer = kind.__new__(kind)
    parametrize._inject_new_class(layer)
    for name in names:
        parametrize._inject_property(layer, name)
    return layer


class _View(nn.Module):
    """A parametrization: the values of a parameter, viewed in another shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: Tensor) -> Tensor:
        return values.view(self.shape)


def uses(function: Callable[..., Any], *helpers: Callable[..., Any]) -> None:
    """Declare the helpers that a function calls, for `SourceCode.helper`: it copies them too."""
    vars(function)["uses"] = helpers


def numbers(values: float | Sequence[float] | Tensor) -> np.ndarray:
    """Return float32 values as an array for an ONNX constant; a single number becomes a scalar."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.float32).cpu().numpy()
    with np.errstate(over="ignore"):  # products of parameters may be infinite in float32, as in C++
        return np.asarray(values, dtype=np.float32)


def integers(*values: int) -> np.ndarray:
    """Return int64 values as an array for an ONNX constant (shapes, axes, pads)."""
    return np.asarray(values, dtype=np.int64)


def literal(value: float) -> str:
    """Return the shortest literal of a float32 field: 0.1, not the double nearest to it (0.10000000149011612)."""
    return exact(float(str(numbers(value)[()])))


def exact(value: Any) -> str:
    """Return a value as Python source: doubles in full, inf and nan by their names in ``math``."""
    if isinstance(value, tuple | list):
        entries = ", ".join(map(exact, value))
        return f"[{entries}]" if isinstance(value, list) else f"({entries}{',' * (len(value) == 1)})"
    if isinstance(value, float) and not np.isfinite(value):
        return "math.nan" if np.isnan(value) else "math.inf" if value > 0 else "-math.inf"
    return repr(value)
