"""The layers whose tops the caller feeds: their base, and a layer of an unknown type that reads no blob."""

from __future__ import annotations

from .base import Layer, LayerPlan, OnnxGraph, SourceCode


class FedLayer(Layer):
    """A layer whose tops are inputs of the net: rows that `reading` loads, or values that the caller feeds."""

    bottom_count = (0, 0)
    is_input = True
    has_gradient = False

    def onnx(self, graph: OnnxGraph) -> list[str]:
        return list(self.node.top_names)

    def source(self, code: SourceCode) -> list[str]:
        return list(self.node.top_names)


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
