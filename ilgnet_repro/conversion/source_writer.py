"""From a CaffeNet to one Python file: an nn.Module as a person would have written it."""

from __future__ import annotations

import inspect
import keyword
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..layers.base import Layer, Shape
from ..net import CaffeNet

LINE_LENGTH = 100


@dataclass(frozen=True)
class PythonSource:
    """A generated module: its text, the class it defines, and the state that class loads."""

    text: str
    class_name: str
    state: dict[str, Tensor]


class SourceWriter:
    """Collects statements; the `SourceCode` that a layer's `source` speaks to."""

    def __init__(self, net: CaffeNet) -> None:
        self._net = net
        self._names = _Names({"self", "torch", "nn", "F", "math"})
        self._attributes = _Names(set(dir(type(net))) | {"forward"})
        self._layer: Layer | None = None
        self.helpers: dict[str, str] = {}
        self.init: list[str] = []
        self.body: list[str] = []
        self.state: dict[str, Tensor] = {}
        self.uses_nn_functional = False

    # ------------------------------------------------------------------ what layers call

    def module(self, constructor: str, **blobs: Tensor) -> str:
        attribute = self._attributes.fresh(self._current.node.name)
        self.init.append(f"self.{attribute} = {constructor}")
        for key, value in blobs.items():
            self.state[f"{attribute}.{key}"] = value.detach()
        return f"self.{attribute}"

    def parameter(self, name: str, value: Tensor) -> str:
        attribute = self._attributes.fresh(f"{self._current.node.name}_{name}")
        self.init.append(f"self.{attribute} = nn.Parameter(torch.empty({tuple(value.shape)}))")
        self.state[attribute] = value.detach()
        return f"self.{attribute}"

    def helper(self, function: Callable[..., Any]) -> str:
        name = function.__name__
        if name not in self.helpers:
            for other in getattr(function, "uses", ()):
                self.helper(other)
            self.helpers[name] = textwrap.dedent(inspect.getsource(function)).strip()
        return name

    def shape(self, index: int) -> Shape:
        return self._net.shapes[self._current.node.bottoms[index]]

    # ------------------------------------------------------------------ the walk

    @property
    def _current(self) -> Layer:
        if self._layer is None:
            raise RuntimeError("a writer's method was called outside a layer")
        return self._layer

    def variable(self, value: str) -> str:
        """Name the variable of a blob; in-place layers assign to the same one again."""
        return self._names.of(value.split("@", maxsplit=1)[0])

    def add_layer(self, layer: Layer) -> None:
        """Have a layer say its expressions and assign them to the blobs' variables."""
        self._layer = layer
        expressions = layer.source(self, [self.variable(value) for value in layer.node.bottoms])
        tops = [self.variable(value) for value in layer.node.tops]
        if len(expressions) == 1 and len(tops) > 1:  # one call that returns several blobs
            self.body.append(f"{', '.join(tops)} = {expressions[0]}")
        else:
            for top, expression in zip(tops, expressions, strict=False):
                if top != expression:
                    self.body.append(f"{top} = {expression}")
        self._layer = None


def build_source(net: CaffeNet, *, class_name: str = "Net", comment: str = "") -> PythonSource:
    """Return ``net`` as Python text that needs only torch, with the state that loads into it.

    Raises LayerError where a layer cannot be written as plain Python.
    """
    writer = SourceWriter(net)
    inputs = net.inputs_for(net.outputs)
    arguments = [writer.variable(name) for name in inputs]
    for _, layer in net.steps(net.outputs):
        writer.add_layer(layer)
    results = ", ".join(f"{name!r}: {writer.variable(name)}" for name in net.outputs)
    lines = [f'"""{comment or "A Caffe net as a torch module."}"""', "", "import math", "", "import torch"]
    lines += ["import torch.nn.functional as F", "from torch import nn", ""]
    for text in writer.helpers.values():
        lines += ["", text, ""]
    lines += ["", f"class {class_name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in writer.init]
    lines += ["", f"    def forward(self, {', '.join(arguments)}):"]
    lines += [f"        {line}" for line in writer.body]
    lines += [f"        return {{{results}}}", ""]
    text = "\n".join(lines)
    for module in ("math", "F"):
        if not re.search(rf"\b{module}\.", text.split("from torch import nn", 1)[1]):
            text = text.replace("import math\n\n", "") if module == "math" else text
            text = text.replace("import torch.nn.functional as F\n", "") if module == "F" else text
    return PythonSource(text, class_name, writer.state)


class _Names:
    """Identifiers for Caffe names, each unique: `conv1/7x7_s2` becomes conv1_7x7_s2."""

    def __init__(self, reserved: set[str]) -> None:
        self._taken = set(reserved)
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = self.fresh(name)
        return self._known[name]

    def fresh(self, name: str) -> str:
        stem = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not stem or stem[0].isdigit() or keyword.iskeyword(stem):
            stem = f"_{stem}"
        candidate, count = stem, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{stem}_{count}"
        self._taken.add(candidate)
        return candidate
