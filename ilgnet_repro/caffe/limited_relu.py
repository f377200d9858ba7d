"""The ReLU of Synopsys' Caffe, with limits in `relu_param`: the same as its XLU, and rewritten as that."""

from __future__ import annotations

from ..errors import excerpt
from ..schema import caffe_pb2 as pb

_LIMITS = ("maximum", "minimum", "relu6")
_BOOLS = {
    "true": True,
    "1": True,
    "t": True,
    "True": True,
    "false": False,
    "0": False,
    "f": False,
    "False": False,
}


def rewrite_limited_relus(net: pb.NetParameter, notes: list[str]) -> pb.NetParameter:
    """Return the net (modern form) with a ReLU that states `maximum`, `minimum` or `relu6` as an XLU.

    A value that is none stays an unknown field, which is refused by name.
    """
    out = pb.NetParameter()
    out.CopyFrom(net)
    for layer in out.layer:
        if layer.type != "ReLU" or layer.relu_param.upper_limit:
            continue
        param, kept = pb.XLUParameter(), []
        for field in layer.fork_field:
            if not _take(field, param):
                kept.append(pb.ForkField.FromString(field.SerializeToString()))
        if len(kept) == len(layer.fork_field):
            continue
        del layer.fork_field[:]
        layer.fork_field.extend(kept)
        if layer.relu_param.HasField("negative_slope"):
            param.negative_slope = layer.relu_param.negative_slope
        layer.ClearField("relu_param")
        layer.type = "XLU"
        layer.xlu_param.CopyFrom(param)
        notes.append(f"layer {excerpt(layer.name)}: ReLU with limits, of Synopsys' Caffe, became XLU")
    return out


def _take(field: pb.ForkField, param: pb.XLUParameter) -> bool:
    """Set the limit that an unknown field states; return whether it is one."""
    message, _, name = field.path.partition(".")
    if message != "relu_param" or name not in _LIMITS:
        return False
    if name == "relu6":
        if field.text not in _BOOLS:
            return False
        param.relu6 = _BOOLS[field.text]
        return True
    try:
        setattr(param, name, float(field.text))
    except ValueError:
        return False
    return True
