"""A torch module that replaces a layer of a net: it runs in its place, but cannot be written to files."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..caffe.graph import Node
from ..errors import LayerError
from ..layers.support.base import Layer, OnnxGraph, SourceCode
from ..layers.support.registry import layer_types


class Placed:
    """The interface of a layer for any torch module; created for each pass, never stored."""

    has_state = is_unrolled = sized_by_values = may_be_fed = False
    index_bottoms: tuple[int, ...] = ()
    no_onnx = no_source = "it is not a Caffe layer"

    def __init__(self, node: Node, module: nn.Module) -> None:
        self.node, self.module = node, module
        self.kind = type(module).__name__
        self._type = layer_types()[node.type]
        self.is_input = self._type.is_input
        self.blob_names = [name for name, _ in module.named_parameters()]
        self.stopped_bottoms = Layer.find_stopped(node)

    def __call__(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Run the module; a tensor is one top, a tuple or list several."""
        found = self.module(*bottoms)
        tops = (found,) if isinstance(found, Tensor) else found
        if not isinstance(tops, (tuple, list)) or not all(isinstance(top, Tensor) for top in tops):
            raise self.error(
                f"{self.kind} returns a {type(found).__name__}; a layer returns a tensor or a tuple of tensors"
            )
        wanted = len(bottoms) if self.is_input else len(self.node.tops)
        if len(tops) != wanted and wanted:
            raise self.error(f"{self.kind} returns {len(tops)} values for {wanted} tops; return one per top")
        return tuple(tops)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    @property
    def blobs(self) -> list[Tensor]:
        """The module's parameters."""
        return list(self.module.parameters())

    def refuse_unread_parameters(self) -> None:
        """Do nothing: which parameters a module reads is not known."""

    def loss_weights(self) -> tuple[float, ...]:
        """Return the weight of each top in the net's loss, as for the layer that was replaced."""
        return tuple(self.node.layer.loss_weight) or ((1.0,) if self._type.is_loss else ())

    def error(self, message: str, *, option: str = "") -> LayerError:
        """Make a LayerError that names the layer."""
        return LayerError(self.node.name, self.node.type, message, option=option)

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        """Refused: only Caffe layers can be written."""
        raise self.error(f"is now a {self.kind}, which cannot be written as ONNX")

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        """Refused: only Caffe layers can be written."""
        raise self.error(f"is now a {self.kind}, which cannot be written as Python")
