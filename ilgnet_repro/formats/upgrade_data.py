"""Data layers of V1 nets: scale, mean_file, crop_size and mirror move to transform_param."""

from __future__ import annotations

from ..schema import caffe_pb2
from .wording import shown

# V1 layer types whose parameter once held the transformation, and that parameter.
_DATA_PARAMETERS = {
    "DATA": "data_param",
    "IMAGE_DATA": "image_data_param",
    "WINDOW_DATA": "window_data_param",
}
_FIELDS = ("scale", "mean_file", "crop_size", "mirror")


def upgrade_transforms(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Return the net with the data layers' transformations where Caffe 1.0 reads them.

    Only `layers` are looked at: in a `layer` Caffe 1.0 never read these fields from the data parameter.
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
            notes.append(f"{shown(layer.name)}: {', '.join(moved)} moved from {parameter} to transform_param")
    return out
