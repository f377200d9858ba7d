"""The net that a weights file holds beside its arrays: the one that was trained, as a text where none is at hand.

Forks gave the same field numbers different meanings, so a field is read only where its layer's type shows whose it is.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from ..errors import FormatError, excerpt
from ..schema import caffe_pb2 as pb
from .caffemodel import CaffeModel
from .wire import BYTES

_REMEDY = "give the prototxt"
# Messages of forks: the type of layer and the number in the binary identify them. SSD; R-CNN; R-FCN; ShuffleNet.
_MESSAGES = {
    ("Permute", 202): "permute_param",
    ("PriorBox", 203): "prior_box_param",
    ("DetectionOutput", 204): "detection_output_param",
    ("Normalize", 206): "norm_param",
    ("ROIPooling", 8266711): "roi_pooling_param",
    ("SmoothL1Loss", 8266712): "smooth_l1_loss_param",
    ("PSROIPooling", 10001): "psroi_pooling_param",
    ("ShuffleChannel", 164): "shuffle_channel_param",
}
# Messages of Caffe 1.0 whose numbers forks use too, and the type that reads them.
_OWNERS = {"embed_param": "Embed", "input_param": "Input", "clip_param": "Clip"}
# Fields of Caffe 1.0 whose numbers are another field of some fork's, often of the opposite meaning.
_AMBIGUOUS = (
    ("pooling_param", "round_mode", "ceil_mode"),
    ("convolution_param", "axis", "hole or dilation"),
    ("convolution_param", "force_nd_im2col", "hole or dilation"),
)


def net_inside(model: CaffeModel) -> pb.NetParameter:
    """Return the net in a weights file, not upgraded.

    Raises FormatError, by layer, where a field's number could be that of another fork's, and for HDF5, which holds no net.
    """
    net, where = model.structure(), model.path.name
    for layer in net.layer:
        at = f"{where}: layer {excerpt(layer.name)} ({excerpt(layer.type)})"
        for field in _unknown(layer):
            name = _MESSAGES.get((layer.type, field.field_number))
            if name is None or field.wire_type != BYTES:
                raise FormatError(f"{at}: field {field.field_number} is a fork's; {_REMEDY}")
            try:
                getattr(layer, name).MergeFromString(field.data)
            except DecodeError:
                raise FormatError(f"{at}: field {field.field_number} is not {name}; {_REMEDY}") from None
        layer.ClearField("phase")  # the one it was trained in
        for name, type_ in _OWNERS.items():
            if layer.HasField(name) and layer.type != type_:
                raise FormatError(f"{at}: the number of its {name} is a fork's; {_REMEDY}")
        for message, name, other in _AMBIGUOUS:
            if layer.HasField(message) and getattr(layer, message).HasField(name):
                raise FormatError(f"{at}: its {message}.{name} could be a fork's {other}; {_REMEDY}")
        _check(layer, at, top=True)
    for old in net.layers:
        _check(old, f"{where}: layer {excerpt(old.name)}", top=False)
    for item in _unknown(net):
        raise FormatError(f"{where}: field {item.field_number} of the net is a fork's; {_REMEDY}")
    net.DiscardUnknownFields()
    return net


def _unknown(message: Message) -> list[Any]:
    """Return the fields of a message that the schema lacks."""
    found: Any = UnknownFieldSet(message)  # has no type for iteration
    return list(found)


def _check(message: Message, at: str, top: bool) -> None:
    """Raise FormatError for an unknown field within a message; those of the layer itself are known by now if ``top``."""
    if not top:
        for field in _unknown(message):
            name = message.DESCRIPTOR.name
            raise FormatError(f"{at}: field {field.field_number} of its {name} is a fork's; {_REMEDY}")
    for descriptor, value in message.ListFields():
        values: Any = (value,) if isinstance(value, (Message, str, bytes)) else value
        if descriptor.message_type is not None:
            for inner in values:
                _check(inner, at, top=False)
