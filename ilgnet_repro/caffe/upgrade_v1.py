"""Upgrades V1 layers (`layers`) to `layer`, and their data parameters' transformations to transform_param."""

from __future__ import annotations

import re

from google.protobuf.message import Message

from ..errors import LayerError, ParseError, excerpt
from ..schema import V1_CROP_MARK, caffe_pb2
from .layer_types import FORK_V1_TYPES, modern_type_of_v1
from .text_parser import parse_text
from .text_writer import format_fork_fields

# V1 layer types whose parameter had the transformation's fields, and that parameter.
_DATA_PARAMETERS = {
    "DATA": "data_param",
    "IMAGE_DATA": "image_data_param",
    "WINDOW_DATA": "window_data_param",
}
_FIELDS = ("scale", "mean_file", "crop_size", "mirror")


def upgrade_transforms(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Return the net with scale, mean_file, crop_size and mirror of V1 data layers moved to transform_param.

    Only in `layers`: in a `layer` Caffe 1.0 never reads these fields from the data parameter.
    """
    out = caffe_pb2.NetParameter()
    out.CopyFrom(net)
    names = caffe_pb2.V1LayerParameter.LayerType
    for layer in out.layers:
        parameter = _DATA_PARAMETERS.get(names.Name(layer.type))
        if parameter is None or not layer.HasField(parameter):
            continue
        old = getattr(layer, parameter)
        moved = [field for field in _FIELDS if old.HasField(field)]
        for field in moved:
            setattr(layer.transform_param, field, getattr(old, field))
            old.ClearField(field)
        if moved:
            notes.append(
                f"{excerpt(layer.name)}: {', '.join(moved)} moved from {parameter} to transform_param"
            )
    return out


_NEW_FIELDS = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
_OLD_FIELDS = caffe_pb2.V1LayerParameter.DESCRIPTOR.fields_by_name
# C3D's V1 layers of video, the message that its text has them in, and the one that they are in since.
_C3D = {
    "Convolution3D": ("convolution_param", "convolution3d_param"),
    "Deconvolution3D": ("convolution_param", "convolution3d_param"),
    "Pooling3D": ("pooling_param", "pooling3d_param"),
}
# Fields with another form in V2, or with another meaning under the same name (V1 `param` is a name).
_CHANGED = {"type", "layer", "param", "blob_share_mode", "blobs_lr", "weight_decay"}


def upgrade_v1(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Return the net with each of its V1 `layers` as a `layer`.

    Raises LayerError for a layer without type, and for a fork's field whose value cannot be parsed.
    """
    out = caffe_pb2.NetParameter()
    out.CopyFrom(net)
    out.ClearField("layers")
    for old in net.layers:
        out.layer.add().CopyFrom(_upgrade_layer(old))
    if net.layers:
        notes.append(f"{len(net.layers)} V1 layers became modern ones")
    return out


def _upgrade_layer(old: caffe_pb2.V1LayerParameter) -> caffe_pb2.LayerParameter:
    new = caffe_pb2.LayerParameter()
    for descriptor, value in old.ListFields():
        if descriptor.name in _CHANGED:
            continue
        target = getattr(new, descriptor.name)
        if isinstance(value, str):
            setattr(new, descriptor.name, value)
        elif isinstance(value, Message):
            target.CopyFrom(value)
        else:
            target.extend(value)
    new.type = _modern_type(old)
    for index in range(
        max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))
    ):
        spec = new.param.add()
        if index < len(old.param):
            spec.name = old.param[index]
        if index < len(old.blob_share_mode):
            mode = caffe_pb2.V1LayerParameter.DimCheckMode.Name(old.blob_share_mode[index])
            spec.MergeFrom(caffe_pb2.ParamSpec(share_mode=mode))
        if index < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[index]
        if index < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[index]
    _type_fork_fields(new)
    if new.type in _C3D:
        _move_c3d_fields(new)
    if new.type == "Crop":  # only forks have it, and theirs compute the offset (crops.py)
        new.fork_field.add(path=V1_CROP_MARK, text="true")
    return new


def _modern_type(old: caffe_pb2.V1LayerParameter) -> str:
    for field in old.fork_field:
        if field.path == "type":
            return FORK_V1_TYPES.get(field.text, field.text)
    kind = modern_type_of_v1(old.type)
    if not kind:
        raise LayerError(excerpt(old.name), "NONE", "has no type; name one, such as type: CONVOLUTION")
    return kind


def _move_c3d_fields(layer: caffe_pb2.LayerParameter) -> None:
    """Move the fields of a V1 layer of C3D into the message of C3D 1.1."""
    before, after = _C3D[layer.type]
    old, new = getattr(layer, before), getattr(layer, after)
    known = new.DESCRIPTOR.fields_by_name
    for descriptor, value in old.ListFields():
        name = descriptor.name
        values = list(value) if descriptor.is_repeated else [value]
        if len(values) > 1:
            raise LayerError(
                excerpt(layer.name),
                layer.type,
                f"{before}.{name} is stated {len(values)} times; state it once",
            )
        if name not in known:
            if values[0] == descriptor.default_value:
                continue
            raise LayerError(
                excerpt(layer.name),
                layer.type,
                f"{before}.{name} is not supported; remove it if it does not matter",
            )
        if isinstance(value, Message):
            getattr(new, name).CopyFrom(value)
        else:
            setattr(new, name, values[0])
    # C3D's Deconvolution3D reads bias_term from convolution_param, in later versions too.
    has_bias = layer.type != "Deconvolution3D" or old.bias_term
    layer.ClearField(before)
    if not has_bias:
        layer.convolution_param.bias_term = False


def _type_fork_fields(layer: caffe_pb2.LayerParameter) -> None:
    """Parse the unknown fields that V2 has and V1 does not (bn_param, prelu_param) into their V2 fields."""
    modern: list[caffe_pb2.ForkField] = []
    kept: list[caffe_pb2.ForkField] = []
    for field in layer.fork_field:
        first = field.path.split(".")[0]
        if first == "type":
            continue
        (modern if first in _NEW_FIELDS and first not in _OLD_FIELDS else kept).append(field)
    modern.sort(key=lambda field: field.path.split(".")[0])
    try:
        typed = parse_text(format_fork_fields(modern), caffe_pb2.LayerParameter, "its fork fields")
    except ParseError as error:
        raise LayerError(excerpt(layer.name), layer.type, str(error)) from error
    places = {field.path: (field.line, field.column) for field in modern}
    for field in typed.fork_field:
        # Parsing adds the index of a repeated message to the path.
        field.line, field.column = places.get(re.sub(r"\[\d+\]", "", field.path), (0, 0))
    copies = [caffe_pb2.ForkField.FromString(field.SerializeToString()) for field in kept]
    layer.ClearField("fork_field")
    layer.MergeFrom(typed)
    layer.fork_field.extend(copies)
