"""The net message of a snapshot, as Caffe's `Net::ToProto` writes it."""

from __future__ import annotations

from collections import Counter

from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb

Place = tuple[int, int]  # a layer, and one of its tops


def net_message(net: CaffeNet) -> pb.NetParameter:
    """Return the net's structure with what Caffe adds: phases, splits and default loss weights."""
    layers = []
    for node in net.graph.layers:
        layer = pb.LayerParameter()
        layer.CopyFrom(node.layer)
        layer.ClearField("blobs")
        layers.append(layer)
    modules = [net.layer(node.name) for node in net.graph.layers]
    split_layers = insert_splits(layers)
    for layer, index in split_layers:
        if not layer.HasField("phase"):
            layer.phase = pb.TRAIN if net.graph.phase == "TRAIN" else pb.TEST
        if index is not None and not layer.loss_weight:
            layer.loss_weight.extend(modules[index].default_loss_weights())
        if layer.type == "BatchNorm":
            # Caffe's BatchNorm sets lr_mult 0 for its statistics in its own message.
            while len(layer.param) < 3:
                layer.param.add(lr_mult=0.0)
    return pb.NetParameter(name=net.graph.name, layer=[layer for layer, _ in split_layers])


def insert_splits(layers: list[pb.LayerParameter]) -> list[tuple[pb.LayerParameter, int | None]]:
    """Return the layers, by index, with a Split after each top that is read more than once (`InsertSplits`).

    The loss weight of a top counts as a reader, and moves to the split's first top.
    """
    source: dict[tuple[int, int], Place] = {}  # bottom -> the top it reads
    writer: dict[str, Place] = {}
    readers: Counter[Place] = Counter()
    weights: dict[Place, float] = {}
    for index, layer in enumerate(layers):
        for number, blob in enumerate(layer.bottom):
            source[index, number] = writer[blob]
            readers[writer[blob]] += 1
        for number, blob in enumerate(layer.top):
            writer[blob] = (index, number)
        for number, weight in enumerate(layer.loss_weight[: len(layer.top)]):
            weights[index, number] = weight
            readers[index, number] += bool(weight)
    result: list[tuple[pb.LayerParameter, int | None]] = []
    used: Counter[Place] = Counter(place for place, weight in weights.items() if weight)
    for index, original in enumerate(layers):
        layer = pb.LayerParameter()
        layer.CopyFrom(original)
        for number in range(len(layer.bottom)):
            place = source[index, number]
            if readers[place] > 1:
                layer.bottom[number] = f"{_split_name(layers, place)}_{used[place]}"
                used[place] += 1
        result.append((layer, index))
        for number, blob in enumerate(original.top):
            place = (index, number)
            if readers[place] < 2:
                continue
            name = _split_name(layers, place)
            split = pb.LayerParameter(
                name=name, type="Split", bottom=[blob], top=[f"{name}_{k}" for k in range(readers[place])]
            )
            if weights.get(place):
                layer.ClearField("loss_weight")
                split.loss_weight.extend([weights[place]] + [0.0] * (readers[place] - 1))
            result.append((split, None))
    return result


def _split_name(layers: list[pb.LayerParameter], place: Place) -> str:
    index, number = place
    layer = layers[index]
    return f"{layer.top[number]}_{layer.name}_{number}_split"
