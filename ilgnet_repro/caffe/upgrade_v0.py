"""Upgrades V0 layers (`layers { layer { type: "conv" } }`, 2013) to V1, and folds padding layers into their readers."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from ..errors import LayerError, excerpt, one_of
from ..schema import caffe_pb2
from .layer_types import V0_TYPES

_CONV, _DENSE, _POOL = "convolution_param", "inner_product_param", "pooling_param"
_DATA, _HDF5 = "data_param", "hdf5_data_param"
_IMAGES, _WINDOW = "image_data_param", "window_data_param"
_ANY = "*"

# V0 field -> V0 layer type -> the V1 parameter and field it became ("*": any type).
_MOVES: dict[str, dict[str, tuple[str, str]]] = {
    "num_output": {"conv": (_CONV, "num_output"), "innerproduct": (_DENSE, "num_output")},
    "biasterm": {"conv": (_CONV, "bias_term"), "innerproduct": (_DENSE, "bias_term")},
    "weight_filler": {"conv": (_CONV, "weight_filler"), "innerproduct": (_DENSE, "weight_filler")},
    "bias_filler": {"conv": (_CONV, "bias_filler"), "innerproduct": (_DENSE, "bias_filler")},
    "pad": {"conv": (_CONV, "pad"), "pool": (_POOL, "pad")},
    "kernelsize": {"conv": (_CONV, "kernel_size"), "pool": (_POOL, "kernel_size")},
    "group": {"conv": (_CONV, "group")},
    "stride": {"conv": (_CONV, "stride"), "pool": (_POOL, "stride")},
    "pool": {"pool": (_POOL, "pool")},
    "dropout_ratio": {"dropout": ("dropout_param", "dropout_ratio")},
    "local_size": {"lrn": ("lrn_param", "local_size")},
    "alpha": {"lrn": ("lrn_param", "alpha")},
    "beta": {"lrn": ("lrn_param", "beta")},
    "k": {"lrn": ("lrn_param", "k")},
    "source": {
        "data": (_DATA, "source"),
        "hdf5_data": (_HDF5, "source"),
        "images": (_IMAGES, "source"),
        "window_data": (_WINDOW, "source"),
        "infogain_loss": ("infogain_loss_param", "source"),
    },
    "scale": {_ANY: ("transform_param", "scale")},
    "meanfile": {_ANY: ("transform_param", "mean_file")},
    "cropsize": {_ANY: ("transform_param", "crop_size")},
    "mirror": {_ANY: ("transform_param", "mirror")},
    "batchsize": {
        "data": (_DATA, "batch_size"),
        "hdf5_data": (_HDF5, "batch_size"),
        "images": (_IMAGES, "batch_size"),
        "window_data": (_WINDOW, "batch_size"),
    },
    "rand_skip": {"data": (_DATA, "rand_skip"), "images": (_IMAGES, "rand_skip")},
    "shuffle_images": {"images": (_IMAGES, "shuffle")},
    "new_height": {"images": (_IMAGES, "new_height")},
    "new_width": {"images": (_IMAGES, "new_width")},
    "concat_dim": {"concat": ("concat_param", "concat_dim")},
    "det_fg_threshold": {"window_data": (_WINDOW, "fg_threshold")},
    "det_bg_threshold": {"window_data": (_WINDOW, "bg_threshold")},
    "det_fg_fraction": {"window_data": (_WINDOW, "fg_fraction")},
    "det_context_pad": {"window_data": (_WINDOW, "context_pad")},
    "det_crop_mode": {"window_data": (_WINDOW, "crop_mode")},
}
# Fields with the same name in V1.
_SAME = ("name", "blobs_lr", "weight_decay", "blobs", "hdf5_output_param", "fork_field")


def upgrade_v0(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Return the net with each V0 layer as a V1 layer and each padding layer folded into its reader.

    Raises LayerError for an unknown V0 type, for a field that does not apply to its layer's type, and
    for padding read by a layer other than a convolution or pooling.
    """
    out = caffe_pb2.NetParameter()
    out.CopyFrom(net)
    old = [layer for layer in net.layers if layer.HasField("layer")]
    if not old:
        return out
    folded = _fold_padding(out)
    out.ClearField("layers")
    for layer in folded:
        out.layers.add().CopyFrom(_upgrade_layer(layer) if layer.HasField("layer") else layer)
    padding = len(net.layers) - len(folded)
    fold = f", {padding} of them padding, folded" if padding else ""
    notes.append(f"{len(old)} V0 layers became V1{fold}")
    return out


def _fold_padding(net: caffe_pb2.NetParameter) -> list[caffe_pb2.V1LayerParameter]:
    """Return the layers without the padding layers; ``net`` is modified."""
    writer: dict[str, caffe_pb2.V1LayerParameter] = {}
    kept = []
    for layer in net.layers:
        for index, bottom in enumerate(layer.bottom):
            source = writer.get(bottom)
            if source is None or source.layer.type != "padding":
                continue
            if layer.layer.type not in ("conv", "pool") or len(layer.bottom) != 1:
                raise _error(
                    layer, f"reads the padding {excerpt(source.layer.name)}; only a conv or pool can"
                )
            if len(source.bottom) != 1 or len(source.top) != 1:
                raise _error(source, "a padding layer has one bottom and one top")
            layer.layer.pad = source.layer.pad
            # Unknown fields of the padding layer are kept, not dropped with it.
            layer.fork_field.extend([*source.fork_field, *source.layer.fork_field])
            layer.bottom[index] = source.bottom[0]
        writer.update(dict.fromkeys(layer.top, layer))
        if layer.layer.type != "padding":
            kept.append(layer)
    return kept


def _upgrade_layer(connection: caffe_pb2.V1LayerParameter) -> caffe_pb2.V1LayerParameter:
    old = connection.layer
    if old.type not in V0_TYPES:
        raise _error(connection, f"is not a V0 layer type; use {one_of(V0_TYPES)}")
    for descriptor, _ in connection.ListFields():
        if descriptor.name not in ("bottom", "top", "layer", "fork_field"):
            raise _error(connection, f"{descriptor.name} is outside the V0 layer; move it inside")
    new = caffe_pb2.V1LayerParameter(bottom=connection.bottom, top=connection.top, type=V0_TYPES[old.type])
    new.fork_field.extend(connection.fork_field)
    for descriptor, value in old.ListFields():
        field = descriptor.name
        if field == "type":
            continue
        if field in _SAME:
            _set(new, field, value)
            continue
        moves = _MOVES.get(field, {})
        target = moves.get(old.type) or moves.get(_ANY)
        if target:
            parameter = getattr(new, target[0])
            parameter.SetInParent()
            _set(parameter, target[1], value)
        elif descriptor.message_type is not None or value != descriptor.default_value:
            # Caffe only logs an error and drops the value.
            raise _error(connection, f"{field} does not apply to this type; remove it")
    return new


def _set(message: Message, field: str, value: Any) -> None:
    target = getattr(message, field)
    if isinstance(value, Message):
        target.CopyFrom(value)
    elif hasattr(target, "extend"):
        target.extend(value if hasattr(value, "__len__") else [value])
    else:
        setattr(message, field, value)


def _error(connection: caffe_pb2.V1LayerParameter, message: str) -> LayerError:
    return LayerError(
        excerpt(connection.layer.name or connection.name), excerpt(connection.layer.type), message
    )
