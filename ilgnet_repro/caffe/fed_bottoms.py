"""Layers that only transform what data layers read: their tops become inputs, and those data layers are left out."""

from __future__ import annotations

from ..schema import caffe_pb2 as pb


def without_feeders(layers: list[pb.LayerParameter]) -> list[pb.LayerParameter]:
    """Return the layers of one state with such layers cut from their bottoms, and without data layers that fed only them.

    Their class states `replaces_feeders`, and `layers.support.registry.resolve_kinds` their text.  The size of the batch,
    which only the data layer states, goes to the layer that is cut.
    """
    if not any(layer.replaces_feeders for layer in layers):
        return layers
    fed = {bottom for layer in layers if layer.replaces_feeders for bottom in layer.bottom}
    read = {bottom for layer in layers if not layer.replaces_feeders for bottom in layer.bottom}
    feeders = [layer for layer in layers if not layer.bottom and layer.top and fed.issuperset(layer.top)]
    left_out = [layer for layer in feeders if read.isdisjoint(layer.top)]
    batches = {
        top: layer.data_param.batch_size
        for layer in feeders
        for top in layer.top
        if layer.data_param.HasField("batch_size")
    }
    kept = []
    for layer in layers:
        if layer.replaces_feeders:
            cut = pb.LayerParameter()
            cut.CopyFrom(layer)
            cut.ClearField("bottom")
            cut.ClearField("propagate_down")
            stated = [batches[bottom] for bottom in layer.bottom if bottom in batches]
            if stated:
                cut.data_param.batch_size = stated[0]
            kept.append(cut)
        elif not any(layer is other for other in left_out):
            kept.append(layer)
    return kept
