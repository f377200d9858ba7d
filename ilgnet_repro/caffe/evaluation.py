"""Evaluation layers of forks that cannot be run here: left out of the net, with a note; a test net does without them."""

from __future__ import annotations

from ..schema import caffe_pb2

_DIFFER = "forks give the name to layers that count differently"
_NOT_RUN = {
    "EvalDetection": _DIFFER,
    "SegAccuracy": _DIFFER,  # over one pass, until `reset`, or over `test_iter` passes; 1, 3 or 6 numbers
    "SegmentationEvaluate": "it resizes the scores by OpenCV's area interpolation",
}


def leave_out_evaluation(net: caffe_pb2.NetParameter, notes: list[str]) -> caffe_pb2.NetParameter:
    """Return the net without the evaluation layers whose tops no other layer reads; each gets a note."""
    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    read = {blob for layer in net.layer for blob in layer.bottom}
    kept = []
    for layer in net.layer:
        reason = _reason(layer)
        if reason and layer.bottom and read.isdisjoint(layer.top):
            notes.append(f"{layer.name} ({layer.type}): left out, an evaluation layer: {reason}")
        else:
            kept.append(layer)
    if len(kept) < len(net.layer):
        del result.layer[:]
        result.layer.extend(kept)
    return result


def _reason(layer: caffe_pb2.LayerParameter) -> str:
    if layer.type == "DetectionEvaluate" and layer.detection_evaluate_param.name_size_file:
        return "it compares boxes in pixels of the images that name_size_file lists"
    return _NOT_RUN.get(layer.type, "")
