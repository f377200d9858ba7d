"""Offsets of Crop layers without one: 0 in BVLC Caffe, computed from the layers in forks (FCN, HED).

A fork's Crop follows first bottoms back from its two bottoms to their nearest common blob, and computes the offset
that aligns the two (python/caffe/coord_map.py of Caffe 1.0 computes the same).

Two texts show that they were written for a fork: V1's CROP, which BVLC Caffe never had, and a score map that is
upsampled from an image padded far beyond the kernel's half (FCN pads by 100, HED by 35): offset 0 would shift it by
that padding.  Others are in doubt where the two rules differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from ..errors import GraphError, LayerError
from ..schema import V1_CROP_MARK
from ..schema import caffe_pb2 as pb
from .phase_rules import is_included, net_state

RULES = ("geometry", "bvlc")
# Position x of the bottom is position a * x + b of the top, for rows and columns.
Map = tuple[tuple[Fraction, Fraction], ...]
_SAME: Map = ((Fraction(1), Fraction(0)),) * 2

# Layers whose top is aligned with their bottom, position by position.
_ALIGNED = {
    *(
        "AbsVal",
        "ArgMax",
        "BN",
        "BNLL",
        "BatchNorm",
        "Bias",
        "Clip",
        "Concat",
        "Dropout",
        "ELU",
        "Eltwise",
        "Exp",
    ),
    *(
        "LRN",
        "Log",
        "MVN",
        "Normalize",
        "PReLU",
        "Power",
        "ReLU",
        "ReLU6",
        "Scale",
        "Sigmoid",
        "Slice",
        "Softmax",
    ),
    *("Split", "Swish", "TanH", "Threshold"),
}


class _NoMapError(Exception):
    """The two bottoms cannot be aligned; the fork would stop with an error."""


def resolve_crops(
    net: pb.NetParameter,
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Iterable[str] = (),
    crop: str | None = None,
    notes: list[str] | None = None,
    faults: list[LayerError] | None = None,
) -> pb.NetParameter:
    """Return ``net`` (modern form) with an explicit offset in every Crop of the state that needs one.

    A Crop with `crop_param` is BVLC's, a V1 Crop or one after padding and upsampling a fork's; for others ``crop``
    ("geometry" or "bvlc") decides.
    Raises LayerError for a Crop without offset where ``crop`` is not given and the two rules differ, or where no
    offset fits; GraphError for another ``crop``. With ``faults``, LayerErrors are appended to it instead, and the
    offset is 0.
    """
    if crop not in (None, *RULES):
        raise GraphError(f"crop {crop!r} is unknown; use {' or '.join(RULES)}")
    if not any(layer.type == "Crop" and _lacks_offset(layer) for layer in net.layer):
        return net
    state = net_state(phase, level, (*net.state.stage, *stages))
    result = pb.NetParameter()
    result.CopyFrom(net)
    layers = [layer for layer in result.layer if is_included(layer, state)]
    rule = crop or ("geometry" if _is_forks(layers) else None)
    for index, layer in enumerate(layers):
        if layer.type == "Crop" and _lacks_offset(layer):
            _remove_mark(layer)
            try:
                _resolve(layer, layers[:index], rule, notes if notes is not None else [])
            except LayerError as error:
                if faults is None:
                    raise
                faults.append(error)
                layer.crop_param.offset.append(0)
    return result


def _lacks_offset(layer: pb.LayerParameter) -> bool:
    return not layer.HasField("crop_param") and len(layer.bottom) == 2


def _is_forks(layers: Sequence[pb.LayerParameter]) -> bool:
    """Whether a Crop shows that the text was written for a fork; it then was for all of its Crops."""
    for index, layer in enumerate(layers):
        if layer.type == "Crop" and _lacks_offset(layer):
            if any(field.path == V1_CROP_MARK for field in layer.fork_field):
                return True
            try:
                offsets, between = _offsets(layer, layers[:index])
            except _NoMapError:
                continue
            if any(offsets) and _is_padded_and_upsampled(between):
                return True
    return False


def _remove_mark(layer: pb.LayerParameter) -> None:
    kept = [field for field in layer.fork_field if field.path != V1_CROP_MARK]
    del layer.fork_field[:]
    layer.fork_field.extend(kept)


def _resolve(
    layer: pb.LayerParameter, before: Sequence[pb.LayerParameter], rule: str | None, notes: list[str]
) -> None:
    if rule == "bvlc":
        layer.crop_param.offset.append(0)
        return
    try:
        offsets, _ = _offsets(layer, before)
    except _NoMapError as error:
        if rule is None:  # no fork can run it, so it is BVLC's
            return
        raise LayerError(
            layer.name, layer.type, f"has no offset, and none can be computed from the layers: {error}; "
            "write crop_param { offset: N }, or choose BVLC's rule, 0 (crop='bvlc')", option="crop",
        ) from None  # fmt: skip
    shown = ", ".join(map(str, offsets))
    if rule is None:
        if any(offsets):
            stated = " ".join(f"offset: {offset}" for offset in offsets)
            raise LayerError(
                layer.name, layer.type, f"has no offset: it is 0 in BVLC Caffe and {shown} in forks (FCN, HED), "
                "which compute it from the layers; choose crop='bvlc' or crop='geometry', or write "
                f"crop_param {{ offset: 0 }} or crop_param {{ {stated} }}", option="crop",
            )  # fmt: skip
        return
    layer.crop_param.offset.extend(offsets)
    notes.append(
        f"{layer.name} (Crop): its offset, {shown}, was computed from the layers, as in forks (FCN, HED)"
    )


def _is_padded_and_upsampled(between: Sequence[pb.LayerParameter]) -> bool:
    """Whether the layers are FCN's and HED's: a first padding that only a Crop by geometry removes."""

    def excess(layer: pb.LayerParameter) -> bool:
        param = layer.convolution_param
        return all(
            pad
            > _read(param, "kernel_size", "kernel", index, 0) // 2 * _read(param, "dilation", "", index, 1)
            for index, pad in enumerate(_read(param, "pad", "pad", index, 0) for index in range(2))
        )

    kinds = {layer.type for layer in between}
    return "Deconvolution" in kinds and any(
        layer.type == "Convolution" and excess(layer) for layer in between
    )


def _offsets(
    layer: pb.LayerParameter, before: Sequence[pb.LayerParameter]
) -> tuple[tuple[int, ...], list[pb.LayerParameter]]:
    """Return the offsets by geometry, and the layers between the blob that is cropped and the common one."""
    # The first writer of each blob: in-place layers after it do not move positions.
    writers: dict[str, pb.LayerParameter] = {}
    for other in before:
        for top in other.top:
            writers.setdefault(top, other)
    whole, like = layer.bottom
    path = [whole, *_back(whole, writers)]
    shared = next((blob for blob in [like, *_back(like, writers)] if blob in path), None)
    if shared is None:
        raise _NoMapError(f"{whole!r} and {like!r} have no common source blob")
    maps, between = [], [writers[blob] for blob in path[: path.index(shared)]]
    for blob in (whole, like):
        found = _SAME
        while blob != shared:
            found = _compose(found, _map_of(writers[blob]))
            blob = writers[blob].bottom[0]
        maps.append(found)
    offsets = []
    for scale, shift in _compose(maps[1], _inverse(maps[0])):
        if scale != 1:
            raise _NoMapError(f"{whole!r} and {like!r} differ in scale, by {float(scale):g}")
        if shift > 0 or shift.denominator != 1:
            raise _NoMapError(f"{like!r} would start {float(-shift):g} values into {whole!r}")
        offsets.append(-int(shift))
    return tuple(offsets), between


def _back(blob: str, writers: Mapping[str, pb.LayerParameter]) -> list[str]:
    """Return the blobs that ``blob`` is computed from, following first bottoms."""
    found: list[str] = []
    while blob in writers and writers[blob].bottom and writers[blob].bottom[0] not in found:
        blob = writers[blob].bottom[0]
        found.append(blob)
    return found


def _compose(left: Map, right: Map) -> Map:
    return tuple((a * c, a * d + b) for (a, b), (c, d) in zip(left, right, strict=True))


def _inverse(map_: Map) -> Map:
    return tuple((1 / a, -b / a) for a, b in map_)


def _map_of(layer: pb.LayerParameter) -> Map:
    if layer.type in _ALIGNED:
        return _SAME
    if layer.type in (
        "Convolution",
        "DepthwiseConvolution",
        "ConvolutionDepthwise",
        "Deconvolution",
        "Im2col",
    ):
        windows = _filter(layer, layer.convolution_param, "kernel_size", "kernel")
        return windows if layer.type == "Deconvolution" else _inverse(windows)
    if layer.type == "Pooling" and not layer.pooling_param.global_pooling:
        return _inverse(_filter(layer, layer.pooling_param, "kernel_size", "kernel"))
    if layer.type == "Crop":
        return _crop_map(layer)
    raise _NoMapError(f"{layer.name} ({layer.type}) is between them")


def _filter(
    layer: pb.LayerParameter, param: pb.ConvolutionParameter | pb.PoolingParameter, square: str, pair: str
) -> Map:
    """Return a window's map: its stride, and the distance of the first window's center from the first value."""
    axes = []
    for index in range(2):
        kernel = _read(param, square, pair, index, 0)
        stride, pad = _read(param, "stride", "stride", index, 1), _read(param, "pad", "pad", index, 0)
        dilation = _read(param, "dilation", "", index, 1)
        if kernel < 1 or stride < 1:
            raise _NoMapError(f"{layer.name} ({layer.type}) has no kernel or stride")
        axes.append((Fraction(stride), Fraction(dilation * (kernel - 1), 2) - pad))
    return tuple(axes)


def _read(
    param: pb.ConvolutionParameter | pb.PoolingParameter, whole: str, half: str, axis: int, default: int
) -> int:
    """Return a window's value for rows (axis 0) or columns (1): ``half``_h or _w where stated, else ``whole``."""
    own = f"{half}_{'hw'[axis]}"
    if half and param.HasField(own):
        return int(getattr(param, own))
    value = getattr(param, whole, ())
    if isinstance(value, int):
        return value if param.HasField(whole) else default
    return int(value[axis if len(value) > 1 else 0]) if len(value) else default


def _crop_map(layer: pb.LayerParameter) -> Map:
    first, offsets = layer.crop_param.axis, list(layer.crop_param.offset) or [0]
    first += 4 if first < 0 else 0
    stated = {axis: offsets[index if len(offsets) > 1 else 0] for index, axis in enumerate(range(first, 4))
              if len(offsets) == 1 or index < len(offsets)}  # fmt: skip
    return tuple((Fraction(1), -Fraction(stated.get(axis, 0))) for axis in (2, 3))
