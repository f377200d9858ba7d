"""`caffe.Layer`: layers that scripts write in Python, as pycaffe runs them: on arrays, with a backward pass of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

from torch import Tensor

from ..caffe.graph import Graph, Node
from ..caffe.shared_memory import in_place_tops
from ..errors import LayerError
from ..layers.python_layer import PythonLayer, register_python_layer
from ..layers.support.base import BlobSpec, LayerPlan, Shape
from ..layers.support.registry import layer_types
from ..schema import caffe_pb2 as pb
from .blob import Blob, BlobVec

_OWN = "ilgnet_repro.layers."  # the Python layers of well-known projects, written in torch


class Layer:
    """The base of a Python layer.

    A subclass has ``setup(bottom, top)``, ``reshape(bottom, top)``, ``forward(bottom, top)`` and
    ``backward(top, propagate_down, bottom)``; bottoms and tops are lists of `Blob`.  ``param_str`` is the text's,
    ``phase`` is `TRAIN` or `TEST`, ``blobs`` are its parameters, which `setup` adds by ``self.blobs.add_blob(...)``.
    """

    type = "Python"
    param_str: str
    phase: int
    blobs: BlobVec

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Give it its blobs, also where a subclass has an `__init__` of its own."""
        layer = super().__new__(cls)
        layer.blobs = BlobVec()
        return layer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what pycaffe passes: the layer's message."""


class MissingModule(LayerError, ImportError):
    """The module of a Python layer is not found."""


class MissingClass(LayerError, AttributeError):
    """The module of a Python layer has no such class."""


class UserLayer(PythonLayer):
    """A layer of a net whose class a script wrote for pycaffe; `user_class` is that class."""

    user_class: type
    no_onnx = "its class computes on arrays, in Python"
    no_source = "its class computes on arrays, in Python"

    def setup(self) -> None:
        self.user: Any = None
        self.bottoms: list[Blob] = []
        self.tops: list[Blob] = []

    def plan(self, *bottoms: Shape) -> LayerPlan:
        self.prepare(bottoms)
        for blob, shape in zip(self.bottoms, bottoms, strict=True):
            blob.reshape(*shape)
        self.user.reshape(self.bottoms, self.tops)
        specs = [
            BlobSpec(f"blob{index}", blob.shape, values=blob.data)
            for index, blob in enumerate(self.user.blobs)
        ]
        return LayerPlan([top.shape for top in self.tops], specs)

    def prepare(self, bottoms: Sequence[Shape]) -> None:
        """Create the script's layer and set it up, once."""
        if self.user is not None:
            return
        self.bottoms = [Blob(shape) for shape in bottoms]
        in_place = in_place_tops(self.node.layer)
        self.tops = [
            self.bottoms[index] if index in in_place else Blob() for index in range(len(self.node.tops))
        ]
        self.user = self.user_class(self.node.layer)
        self.user.param_str = self.param.param_str
        self.user.phase = pb.TRAIN if self.is_train else pb.TEST
        self.user.setup(self.bottoms, self.tops)

    def fresh(self, copies: Mapping[int, Tensor] | None = None) -> Self:
        """Return the layer for a net; the first one gets the script's layer, which is set up once."""
        held = (self.user, self.bottoms, self.tops)
        self.user, self.bottoms, self.tops = None, [], []
        layer = super().fresh(copies)
        layer.user, layer.bottoms, layer.tops = held
        return layer

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        raise self.error(
            f"{self.user_class.__name__} is written for pycaffe and runs in its Net and solvers only; "
            "derive it from ilgnet_repro.PythonLayer to run it here"
        )


def register_user_layers(graph: Graph) -> None:
    """Import the classes that a net's Python layers name, as Caffe does.

    What a program has registered for a name by `register_python_layer` is used instead; the Python layers of well-known
    projects that this package has in torch are used where the script has no such module.
    Raises LayerError where a module or a class is not found; what a module raises itself is passed on.
    """
    for node in graph.layers:
        if node.type != "Python":
            continue
        param = node.layer.python_param
        held = layer_types()["Python"].class_for(node)
        if held is not None and not (issubclass(held, UserLayer) or held.__module__.startswith(_OWN)):
            continue
        found = _user_class(node, has_own=held is not None and not issubclass(held, UserLayer))
        if found is None or getattr(held, "user_class", None) is found:
            continue
        bridge = type(found.__name__, (UserLayer,), {"user_class": found, "__doc__": found.__doc__})
        register_python_layer(param.module, param.layer)(bridge)


def _user_class(node: Node, *, has_own: bool) -> type | None:
    param = node.layer.python_param
    if has_own and not _is_found(param.module):
        return None
    try:
        module = import_module(param.module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{param.module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another
        raise MissingModule(
            node.name, node.type,
            f"module {param.module!r} is not found; start the script in its folder or set PYTHONPATH",
        ) from error  # fmt: skip
    found = getattr(module, param.layer, None)
    if not isinstance(found, type):
        raise MissingClass(
            node.name,
            node.type,
            f"module {param.module!r} has no class {param.layer!r}; correct python_param.layer",
        )
    if issubclass(found, PythonLayer):  # it registers itself
        return None
    return found


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
