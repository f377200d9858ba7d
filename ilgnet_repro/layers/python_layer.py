"""Layers of type Python: `python_param` names a module and a class, and a registered class is used for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ..caffe.graph import Node
from ..errors import LayerError
from ..schema import caffe_pb2 as pb
from .support.base import BlobSpec, Layer, LayerPlan, Shape
from .support.param_str import parse_param_str
from .support.registry import register_layer

_classes: dict[tuple[str, str], type[PythonLayer]] = {}


def _no_blobs(self: PythonLayer, bottoms: list[Shape]) -> list[BlobSpec]:
    """Return the layer's blobs in Caffe's order, for bottoms of these shapes."""
    return []


def _user_plan(self: PythonLayer, *bottoms: Shape) -> LayerPlan:
    """Return the plan that the user's `reshape` and `blob_specs` give."""
    return LayerPlan(self.reshape(list(bottoms)), self.blob_specs(list(bottoms)))


@register_layer("Python")
class PythonLayer(Layer):
    """A layer that a user writes in Python with torch.

    Caffe imports the module that a prototxt names and runs its class; here nothing is imported by name.
    Register a class for it before the net is loaded::

        @register_python_layer("my_layers", "Swap")
        class Swap(PythonLayer):
            top_count = (2, 2)

            def setup(self):                 # once: read self.settings, raise self.error(...)
                self.factor = self.settings.get("factor", 1)

            def reshape(self, bottoms):      # the tops' shapes for the bottoms'
                return list(bottoms)[::-1]

            def forward(self, a, b):         # tensors in, a tuple of tensors out; autograd does backward
                return b * self.factor, a

    ``self.is_train`` is the phase at load, ``self.training`` the mode of `train()` and `eval()`,
    ``self.settings`` is `param_str` as a dict
    (``self.param.param_str`` is its text).  A layer with weights also has ``blob_specs(self, bottoms)``, a list
    of `BlobSpec`; one that can be exported has ``onnx(self, graph, *bottoms)`` or ``source(self, code, *bottoms)``.
    """

    message = "python_param"
    fields = ("module", "layer", "param_str")
    ignored_fields = ("share_in_parallel", "of_rfcn", "mines")
    in_place = True
    bottom_count: ClassVar[tuple[int, int | None]] = (0, None)
    top_count: ClassVar[tuple[int, int | None]] = (0, None)
    no_onnx: str = "its class was written without the method onnx"
    no_source: str = "its class was written without the method source"

    def __new__(cls, node: Node | None = None, ranks: Sequence[int] | None = ()) -> PythonLayer:
        """Return an instance of the class that is registered for the node's module and layer."""
        if cls is not PythonLayer or node is None:  # None: `copy` creates the instance
            return super().__new__(cls)
        param = node.layer.python_param
        found = _classes.get((param.module, param.layer))
        if found is None:
            raise LayerError(
                node.name,
                node.type,
                f"class {param.layer!r} of module {param.module!r} is not registered; "
                "write it in torch and register it with register_python_layer (docs/layers.md)",
            )
        return super().__new__(found)

    @classmethod
    def class_for(cls, node: Node) -> type[Layer] | None:
        """Return the class that is registered for the node's module and layer."""
        return _classes.get((node.layer.python_param.module, node.layer.python_param.layer))

    @classmethod
    def resolve_by_net(cls, text: pb.LayerParameter, net: pb.NetParameter) -> None:
        """Leave it to the class that is registered for the text's module and layer."""
        found = _classes.get((text.python_param.module, text.python_param.layer))
        if cls is PythonLayer and found is not None:
            found.resolve_by_net(text, net)

    def _set_up(self, ranks: Sequence[int] | None) -> None:
        self.setup()  # as in pycaffe, it takes nothing

    @property
    def settings(self) -> dict[str, Any]:
        """`param_str` read by `parse_param_str`; raises LayerError where it is not a dict."""
        try:
            return parse_param_str(self.param.param_str)
        except ValueError as error:
            raise self.error(f"param_str: {error}") from error

    def reshape(self, bottoms: list[Shape]) -> list[Shape]:
        """Return the tops' shapes; by default each top has its bottom's shape."""
        return list(bottoms)

    plan: Callable[..., LayerPlan] = _user_plan
    blob_specs: Callable[..., list[BlobSpec]] = _no_blobs


def register_python_layer(module: str, layer: str) -> Callable[[type[PythonLayer]], type[PythonLayer]]:
    """Register a subclass of `PythonLayer` for what a prototxt calls ``module`` and ``layer``.

    A later registration of the same names replaces the earlier one, so that a notebook cell can be run again.
    """

    def add(cls: type[PythonLayer]) -> type[PythonLayer]:
        if not (isinstance(cls, type) and issubclass(cls, PythonLayer) and cls is not PythonLayer):
            raise LayerError(
                layer, "Python", f"{cls!r} is not a subclass of PythonLayer; derive it from that class"
            )
        _classes[module, layer] = cls
        return cls

    return add
