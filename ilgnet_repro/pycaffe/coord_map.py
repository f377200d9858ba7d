"""Where a layer's outputs lie over its inputs, and the Crop that aligns two tops of a `NetSpec`.

A map is (axis, scale, shift): position x of the bottom is position ``scale * x + shift`` of the top, on the axes after
``axis`` (a convolution's: that of the channels); a layer that moves nothing has the map (None, 1, 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import IlgnetError
from .failures import FailedCheck
from .net_spec import Function, Top, layers

PASS_THROUGH_LAYERS = [
    "AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp", "MVN", "Power", "ReLU",
    "PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold",
]  # fmt: skip
_WINDOWS = ("Convolution", "Pooling", "Im2col")
_BY_SIDE = ("kernel_h", "kernel_w", "pad_h", "pad_w", "stride_h", "stride_w")

CoordMap = tuple[Any, Any, Any]
_IDENTITY: CoordMap = (None, 1, 0)


class UndefinedMapException(IlgnetError):
    """A layer has no map of coordinates."""


class AxisMismatchException(IlgnetError):
    """Two maps are of different axes."""


class NoMapBetween(IlgnetError, RuntimeError):
    """Two tops have no common source that layers with a map lead to."""


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return a layer's axis, stride, extent of the (dilated) kernel and pad, of each axis or of all."""
    message = "pooling_param" if fn.type_name == "Pooling" else "convolution_param"
    params: Mapping[str, Any] = fn.params.get(message, fn.params)
    if by_side := [name for name in _BY_SIDE if name in params]:
        raise FailedCheck(
            f"{fn.type_name}: cropping does not support legacy _h/_w params ({', '.join(by_side)}); "
            "give kernel_size, stride and pad, with one value per axis"
        )
    if "kernel_size" not in params:
        raise UndefinedMapException(
            f"{fn.type_name}: has no kernel_size, so its coordinates cannot be mapped"
        )
    stride, kernel, pad, dilation = (
        np.array(params.get(name, default), ndmin=1)
        for name, default in (("stride", 1), ("kernel_size", 1), ("pad", 0), ("dilation", 1))
    )
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """Return a Crop's axis and offset."""
    params: Mapping[str, Any] = fn.params.get("crop_param", fn.params)
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> CoordMap:
    """Return the map of a layer.  Raises UndefinedMapException for a type without one."""
    if fn.type_name in _WINDOWS:
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if fn.type_name in PASS_THROUGH_LAYERS:
        return _IDENTITY
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    raise UndefinedMapException(f"{fn.type_name}: has no map of coordinates; crop between spatial layers")


def compose(base_map: CoordMap, next_map: CoordMap) -> CoordMap:
    """Return the map that follows ``base_map`` by ``next_map``.  Raises AxisMismatchException."""
    (first, scale, shift), (second, further, beyond) = base_map, next_map
    if first is not None and second is not None and first != second:
        raise AxisMismatchException(
            f"coordinates after axis {first} and after axis {second} cannot be composed"
        )
    return second if first is None else first, scale * further, scale * beyond + shift


def inverse(coord_map: CoordMap) -> CoordMap:
    """Return the map in the other direction."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> CoordMap:
    """Return the map from one top to another, through the first source that they have in common.

    All bottoms of a layer are aligned with its tops, but for a Crop's second, which only gives the size.
    Raises RuntimeError (NoMapBetween) where they have none.
    """
    from_maps = {top_from: _IDENTITY}
    _walk(top_from, from_maps)
    to_maps = {top_to: _IDENTITY}
    shared = _walk(top_to, to_maps, until=from_maps)
    if shared is None:
        raise NoMapBetween("Could not compute map between tops; are they connected by spatial layers?")
    return compose(to_maps[shared], inverse(from_maps[shared]))


def _walk(start: Top, maps: dict[Top, CoordMap], until: Mapping[Top, CoordMap] | None = None) -> Top | None:
    """Add the maps of all that ``start`` is computed from; with ``until`` end at the first that is among these."""
    left = [start]
    while left:
        top = left.pop()
        if until is not None and top in until:
            return top
        bottoms = top.fn.inputs[:1] if top.fn.type_name == "Crop" else top.fn.inputs
        try:
            step = coord_map(top.fn) if bottoms else _IDENTITY
        except UndefinedMapException:
            continue
        for bottom in bottoms:
            if bottom not in maps:  # reached on several ways, as around an Eltwise
                maps[bottom] = compose(maps[top], step)
                left.append(bottom)
    return None


def crop(top_from: Top, top_to: Top) -> Top:
    """Return a Crop of ``top_from`` to the place and size of ``top_to``.

    Raises an AssertionError (FailedCheck) where no whole, non-negative offset aligns them.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    a, b = np.asarray(scale), np.asarray(shift, dtype=float)
    if not (a == 1).all():
        raise FailedCheck(f"scale mismatch on crop (a = {a})")
    if not (b <= 0).all():
        raise FailedCheck(f"cannot crop negative width (b = {b})")
    if not (np.round(b) == b).all():
        raise FailedCheck(f"cannot crop noninteger width (b = {b})")
    offset = [int(value) for value in -np.round(b).reshape(-1)]
    first = 2 if axis is None else axis + 1
    cropped: Top = layers.Crop(top_from, top_to, crop_param={"axis": first, "offset": offset})
    return cropped
