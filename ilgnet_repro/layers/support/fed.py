"""The layers whose tops the caller feeds: their base, and a layer of an unknown type that reads no blob."""

from __future__ import annotations

from ...caffe.fork_fields import is_misspelt, without_indices
from ...schema import caffe_pb2 as pb
from .base import Layer, LayerPlan, OnnxGraph, SourceCode


class FedLayer(Layer):
    """A layer whose tops are inputs of the net: rows that `reading` loads, or values that the caller feeds."""

    bottom_count = (0, 0)
    is_input = True
    has_gradient = False

    def takes_fork_field(self, field: pb.ForkField) -> bool:
        return super().takes_fork_field(field) or is_fork_transform(field)

    @property
    def idle_note(self) -> str:
        transforms = filter(is_fork_transform, self.node.layer.fork_field)
        names = dict.fromkeys(".".join(without_indices(field.path).split(".")[:2]) for field in transforms)
        own = f"{', '.join(names)}: a fork's, not applied to what the caller feeds" if names else ""
        return "; ".join(filter(None, (super().idle_note, own)))

    def onnx(self, graph: OnnxGraph) -> list[str]:
        return list(self.node.top_names)

    def source(self, code: SourceCode) -> list[str]:
        return list(self.node.top_names)


def is_fork_transform(field: pb.ForkField) -> bool:
    """Whether an unknown field is a transformation of some fork's, and no misspelt one of Caffe's.

    What the caller feeds is not transformed; a layer that reads its source refuses it (`reading.sources`).
    """
    return field.path.startswith("transform_param.") and not is_misspelt(field, pb.LayerParameter.DESCRIPTOR)


class UnknownData(FedLayer):
    """A layer without bottoms of a type that only its fork knows: it can only feed the net, so its tops are inputs."""

    top_count = (1, None)
    note = "its type is unknown; as it reads no blob, its tops are inputs"

    def _check_fields(self) -> None:
        """How it reads its data does not matter here."""

    def plan(self) -> LayerPlan:
        tops, python = self.node.top_names, self.node.layer.python_param
        unknown = "layer type is unknown"
        if self.node.type == "Python":
            unknown = f"class {python.layer!r} of module {python.module!r} is not registered"
        raise self.error(
            f"{unknown}; register a class for it (docs/layers.md) or, if it reads data, give the shapes of "
            f"{', '.join(tops)} (input_shapes={{{tops[0]!r}: (N, C, H, W)}})",
            option="input_shapes",
        )
