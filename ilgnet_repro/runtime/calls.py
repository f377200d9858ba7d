"""The arguments of a call: inputs by name or position and names of blobs, each checked against the net."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..caffe.graph import Graph
from ..caffe.param_sharing import show_shape
from ..errors import GraphError, IlgnetError, LayerError, did_you_mean
from ..layers.support.base import Shape
from ..prepare_images import is_pil
from .plan import NetPlan, by_input

LISTED = 20  # names in a message
LARGEST_BATCH = 65_536
Sizes = tuple[tuple[str, Shape], ...]  # of the inputs, by name


def check_batch(batch: Any) -> None:
    """Raise IlgnetError for a number of images that is no batch."""
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= LARGEST_BATCH:
        raise IlgnetError(f"batch={batch!r}: give an integer from 1 to {LARGEST_BATCH}", option="batch")


class Intake:
    """Checks the inputs of a net by their names, the shapes it was built for, and the sizes known to fit its weights."""

    def __init__(
        self,
        plan: NetPlan,
        shapes: Mapping[str, Shape],
        optional: Mapping[str, Shape],
    ) -> None:
        """``shapes`` are those of the inputs, ``optional`` those of tops that the net computes unless they are given."""
        self.plan, self.graph, self.shapes = plan, plan.graph, shapes
        self.all_shapes = {**shapes, **optional}
        self._accepted: set[Sizes] = set()

    def named(self, given: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs by name, from a mapping, keywords, or the one input of a net by itself.

        Raises GraphError for an input given twice, or a single tensor given to a net with several inputs.
        """
        if given is None:
            return dict(keywords)
        if isinstance(given, Tensor) or not isinstance(given, Mapping):
            own = self.shapes or self.all_shapes
            if len(own) != 1:
                raise GraphError(
                    f"net {self.graph.name!r} has {len(own)} inputs, so each is given by its name; "
                    f"it takes {names(own)}"
                )
            given = dict.fromkeys(own, given)
        for name in keywords:
            if name in given:
                raise GraphError(f"input {name!r} is given twice; give it once")
        return {**given, **keywords}

    def tensors(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return inputs as tensors, types unchanged.  Raises GraphError for a name that is not an input of the net."""
        found = {}
        for name in inputs:
            if name not in self.all_shapes:
                blobs = {top for node in self.graph for top in node.top_names}
                what = "a blob that the net computes, not an input" if name in blobs else "not an input"
                raise GraphError(
                    f"{name!r} is {what} of net {self.graph.name!r}{_meant(name, self.all_shapes)}; "
                    f"it has {names(self.all_shapes)}"
                )
            found[name] = as_tensor(name, inputs[name])
        return found

    def value(
        self, inputs: Mapping[str, Tensor], name: str, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return an input in a type and on a device.  Raises IlgnetError where it is missing."""
        if name not in inputs:
            raise IlgnetError(f"input {name!r} is missing; the net takes {names(self.shapes)}")
        value = inputs[name]
        if value.dtype == dtype and value.device == device:
            return value
        refuse_meta(name, value)
        return value.to(device=device, dtype=dtype)

    def check_sizes(self, inputs: Mapping[str, Tensor], *, by_plan: Callable[[], bool]) -> Sizes:
        """Return the sizes of the inputs in the net's order.

        Refuses inputs of another rank or layout and, where ``by_plan`` returns true, sizes that the weights do not fit.
        Each size is checked once.
        """
        key = tuple([(name, inputs[name].shape) for name in self.all_shapes if name in inputs])
        if key in self._accepted:
            return key
        sizes = {name: tuple(shape) for name, shape in key}
        for name, size in sizes.items():
            self._check_layout(name, size)
        if not by_plan():
            return key
        own = _shown({name: self.all_shapes[name] for name in sizes})
        try:
            plan = self.plan.at(sizes)
        except LayerError as error:
            message = str(error).removeprefix(f"{error.layer} ({error.type}): ")
            message += f" (inputs: {_shown(sizes)}; the net was made for {own})"
            raise LayerError(error.layer, error.type, message) from error
        for name, specs in plan.blobs.items():
            for spec, blob in zip(specs, self.plan.blobs[name], strict=True):
                if spec.shape != blob.shape:
                    raise plan.layers[name].error(
                        f"{spec.name} would be {show_shape(spec.shape)} for inputs of this size "
                        f"({_shown(sizes)}), but is {show_shape(blob.shape)}; "
                        f"give the size the net was made for ({own})"
                    )
        self._accepted.add(key)
        return key

    def _check_layout(self, name: str, size: Shape) -> None:
        own = self.all_shapes[name]
        where = f"input {name!r} of net {self.graph.name!r} is {show_shape(size)}"
        if len(size) != len(own):
            batch = "; add the batch axis in front (x[None])" if size == own[1:] else ""
            raise GraphError(
                f"{where}, of {len(size)} axes; it takes {len(own)}, as {show_shape(own)}{batch}"
            )
        if len(own) == 4 and size[1:] != own[1:] and size[1:] == (*own[2:], own[1]):
            raise GraphError(
                f"{where}, which is N x H x W x C; it takes N x C x H x W, as {show_shape(own)}: "
                "permute it (0, 3, 1, 2)"
            )


def wanted_blobs(
    blobs: Any, known: Iterable[str], net: str, what: str = "not in net", listed: str = "it has"
) -> tuple[str, ...]:
    """Return the names of the requested blobs, one or several.  Raises GraphError for an unknown one."""
    if isinstance(blobs, str):
        blobs = (blobs,)
    try:
        wanted = tuple(blobs)
    except TypeError:
        raise GraphError(f"blobs={blobs!r}: give a list of names") from None
    known = list(known)
    for name in wanted:
        if name not in known:
            raise GraphError(f"blob {name!r} is {what} {net!r}{_meant(name, known)}; {listed} {names(known)}")
    return wanted


def shapes_by_name(shapes: Mapping[str, Any], graph: Graph) -> dict[str, Shape]:
    """Return shapes as tuples.  Raises GraphError for a name that is not an input, or a value that is not a shape."""
    result = {}
    for name, shape in by_input(graph, shapes).items():
        try:
            result[name] = tuple(operator.index(size) for size in shape)
        except TypeError:
            raise GraphError(
                f"the shape of input {name!r} is {shape!r}; give integers, as (1, 3, 227, 227)"
            ) from None
    return result


def names(known: Iterable[str]) -> str:
    """Return names as a message lists them."""
    listed = [repr(name) for name in known]
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more if listed else "none"


def _meant(name: Any, known: Iterable[str]) -> str:
    return did_you_mean(name, known) if isinstance(name, str) else ""


def _shown(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {show_shape(shape)}" for name, shape in shapes.items())


def as_tensor(name: str, value: Any) -> Tensor:
    """Return an input as a dense tensor, its type unchanged.  Raises IlgnetError for anything but real numbers."""
    tensor = value if isinstance(value, Tensor) else _from_array(name, value)
    if tensor.is_complex():
        raise IlgnetError(f"input {name!r} holds complex numbers; give real ones")
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def refuse_meta(name: str, value: Tensor) -> None:
    """Raise IlgnetError for an input on torch's meta device, where tensors have shapes only."""
    if value.is_meta:
        raise IlgnetError(
            f"input {name!r} is on the device meta, which holds no values; give a tensor with values"
        )


def _from_array(name: str, value: Any) -> Tensor:
    first = value[0] if isinstance(value, list | tuple) and value else value
    # The values of a PIL image would be taken as they are: height x width x RGB, and no mean subtracted.
    if isinstance(first, str | os.PathLike) or is_pil(first):
        kind = type(first).__name__
        kind = kind if first is value else f"{type(value).__name__} of {kind}"
        raise IlgnetError(
            f"input {name!r} is a {kind}; give a tensor or an array, such as net.prepare(images) returns"
        )
    try:
        if isinstance(value, list | tuple) and isinstance(first, Tensor):
            return torch.stack(tuple(value))
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        # torch accepts neither non-native byte orders nor negative strides, and warns about read-only arrays.
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    except (ValueError, TypeError, RuntimeError):
        kind = type(value).__name__
        raise IlgnetError(f"input {name!r} is a {kind} without numbers; give a tensor or an array") from None
