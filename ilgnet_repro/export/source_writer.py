"""From a CaffeNet to one Python file with a readable nn.Module."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from ..caffe.param_sharing import show_shape
from ..errors import ARITHMETIC, unusable
from ..layers.norm import BatchNorm
from ..layers.scale import Scale
from ..layers.support.base import Layer, Shape
from ..runtime.net import CaffeNet
from ..runtime.python_names import Names, plain, quoted

WIDTH = (
    100  # of the docstring, and of a statement with a nested in-place layer; each statement is on one line
)


@dataclass(frozen=True)
class PythonSource:
    """A generated module: its text, the class it defines, its inputs' argument names, and its state."""

    text: str
    class_name: str
    arguments: dict[str, str]
    state: dict[str, Tensor]


# Delimits a variable's number in an expression.  No name from a file can contain it: names appear in
# expressions only as identifiers or ASCII literals.
_MARK = "\ue000"


@dataclass(frozen=True)
class _Statement:
    """An assignment in ``forward``: variables by number, and the expression in pieces.

    Pieces at even indices are text, those at odd indices the numbers of variables, which get their names when the
    whole file is known.
    """

    targets: tuple[int, ...]
    pieces: tuple[str, ...]

    @property
    def reads(self) -> list[int]:
        """The variables that the expression reads, with repetitions."""
        return [int(number) for number in self.pieces[1::2]]

    def text(self, names: Sequence[str]) -> str:
        """The expression with its variables' names."""
        return "".join(names[int(piece)] if index % 2 else piece for index, piece in enumerate(self.pieces))


class SourceWriter:
    """Collects statements; the `SourceCode` that a layer's `source` method writes to."""

    def __init__(self, net: CaffeNet) -> None:
        self._net = net
        self._attributes = Names.for_attributes()
        self._numbers: dict[str, int] = {}  # blob -> its variable's number
        self._layer: Layer | None = None
        self._declared: dict[tuple[Any, ...], str] = {}  # what has state -> its attribute
        self._affine = _affine_pairs(net)
        self._absorbed = {scale.node.name for scale in self._affine.values()}
        self.helpers: dict[str, str] = {}
        self.init: list[str] = []
        self.body: list[_Statement] = []
        self.state: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ called by layers

    def module(self, constructor: str, **blobs: Tensor) -> str:
        identity = (
            constructor,
            *((name, value.data_ptr(), tuple(value.shape)) for name, value in blobs.items()),
        )
        if identity in self._declared:  # layers that share their parameters by name
            return self._declared[identity]
        attribute = self._attributes.fresh(self._current.node.name)
        self.init.append(f"self.{attribute} = {constructor}{self._absorbed_note()}")
        if blobs and all(value.numel() for value in blobs.values()):
            self._declared[identity] = f"self.{attribute}"
        for key, value in blobs.items():
            self.state[f"{attribute}.{key}"] = value.detach()
        return f"self.{attribute}"

    def parameter(self, name: str, value: Tensor) -> str:
        key = ("", value.data_ptr(), tuple(value.shape))
        if key in self._declared:
            return self._declared[key]
        attribute = self._attributes.fresh(f"{self._current.node.name}_{name}")
        self.init.append(f"self.{attribute} = nn.Parameter(torch.empty({_sizes(value)}))")
        if value.numel():
            self._declared[key] = f"self.{attribute}"
        self.state[attribute] = value.detach()
        return f"self.{attribute}"

    def buffer(self, name: str, value: Tensor) -> str:
        attribute = self._attributes.fresh(f"{self._current.node.name}_{name}")
        self.init.append(f'self.register_buffer("{attribute}", torch.empty({_sizes(value)}))')
        self.state[attribute] = value.detach()
        return f"self.{attribute}"

    def affine(self) -> dict[str, Tensor]:
        scale = self._affine.get(self._current.node.name)
        return {} if scale is None else {name: scale.blob(name) for name in ("weight", "bias")}

    def helper(self, function: Callable[..., Any]) -> str:
        name = function.__name__
        if name not in self.helpers:
            for other in getattr(function, "uses", ()):
                self.helper(other)
            self.helpers[name] = _text_of(function)
        return name

    def shape(self, index: int) -> Shape:
        return self._net.plan.value_shapes[self._current.node.bottoms[index]]

    # ------------------------------------------------------------------ layer by layer

    @property
    def _current(self) -> Layer:
        if self._layer is None:
            raise RuntimeError("a writer's method was called outside a layer")
        return self._layer

    def _absorbed_note(self) -> str:
        """Return a comment that names the Scale layer that a normalization includes."""
        scale = self._affine.get(self._current.node.name)
        return "" if scale is None else f"  # and {plain(scale.node.name, 60)}"

    def variable(self, blob: str) -> int:
        """Return the number of a blob's variable; in-place layers assign to the same one again."""
        return self._numbers.setdefault(blob, len(self._numbers))

    @property
    def switches_with_mode(self) -> bool:
        """Whether `train()` and `eval()` change what the written module computes."""
        texts = [*self.init, *("".join(statement.pieces) for statement in self.body)]
        return any(word in text for text in texts for word in ("nn.BatchNorm", "nn.Dropout", "self.training"))

    def names(self) -> list[str]:
        """Return the variables' names by number; none shadows a helper."""
        names = Names.for_variables(self.helpers)
        return [names.fresh(blob) for blob in self._numbers]

    def add_layer(self, layer: Layer) -> None:
        """Assign a layer's expressions to its tops' variables."""
        if layer.no_source:
            raise layer.error(f"cannot be written as Python: {layer.no_source}")
        self._layer = layer
        bottoms = [self.variable(value.blob) for value in layer.node.bottoms]
        try:
            read = [f"{_MARK}{number}{_MARK}" for number in bottoms]
            expressions = read[:1] if layer.node.name in self._absorbed else layer.source(self, *read)
        except ARITHMETIC as error:
            raise unusable(layer.node.name, layer.node.type, "cannot be written as Python", error) from error
        tops = [self.variable(value.blob) for value in layer.node.tops]
        if len(expressions) == 1 and len(tops) > 1:  # one call that returns several blobs
            self.body.append(_Statement(tuple(tops), tuple(expressions[0].split(_MARK))))
        else:
            for top, expression in zip(tops, expressions, strict=False):
                statement = _Statement((top,), tuple(expression.split(_MARK)))
                if statement.pieces != ("", str(top), ""):
                    self.body.append(statement)
        self._layer = None


def _affine_pairs(net: CaffeNet) -> dict[str, Layer]:
    """Return the Scale layer, one weight and bias per channel, that alone reads a BatchNorm layer, by the latter's name.

    torch's BatchNorm modules hold both.
    """
    shared = {key[0] for key in net.plan.owners} | {owner.layer for owner in net.plan.owners.values()}
    outputs = {net.graph.value(name) for name in net.outputs}
    found: dict[str, Layer] = {}
    for node in net.graph:
        if node.type != "BatchNorm" or node.tops[0] in outputs:
            continue
        readers = net.graph.consumers(node.tops[0])
        if len(readers) != 1 or readers[0].type != "Scale" or readers[0].name in shared:
            continue
        norm, scale = net.layer(node.name), net.layer(readers[0].name)
        shape = net.plan.value_shapes[node.tops[0]]
        if (
            isinstance(norm, BatchNorm) and norm.becomes_module(shape) and not norm.has_affine
            and isinstance(scale, Scale) and scale.scales_channels(shape) and scale.param.bias_term
        ):  # fmt: skip
            found[node.name] = scale
    return found


def build_source(net: CaffeNet, *, class_name: str = "Net", comment: str = "") -> PythonSource:
    """Return ``net`` as Python text that needs only torch, with the state that loads into it.

    ``comment`` is the module's docstring.  Raises LayerError where a layer cannot be written as plain
    Python.
    """
    writer = SourceWriter(net)
    given = {name: writer.variable(name) for name in net.inputs_for(net.outputs)}
    for _, layer in net.steps(net.outputs):
        if not layer.is_input:  # its tops are the arguments
            writer.add_layer(layer)
    results = {name: writer.variable(name) for name in net.outputs}
    names = writer.names()
    arguments = {name: names[number] for name, number in given.items()}
    # Whole to torch.fx, which cannot follow what decides by shapes.
    lines = [text for helper in writer.helpers.values() for text in ("", "", f"@torch.fx.wrap\n{helper}")]
    lines += ["", "", f"class {class_name}(nn.Module):", *_docstring(net, arguments), ""]
    lines += ["    def __init__(self):", "        super().__init__()"]
    lines += [f"        {text}" for text in writer.init]
    if net.graph.phase != "TRAIN" and writer.switches_with_mode:
        lines.append(
            "        self.eval()  # Caffe's phase TEST; train() turns on dropout and batch statistics"
        )
    lines += ["", f"    def forward({', '.join(['self', *arguments.values()])}):"]
    for statement in _nest_in_place(_used(writer.body, set(results.values())), names):
        targets = ", ".join(names[number] for number in statement.targets)
        lines.append(f"        {targets} = {statement.text(names)}")
    pairs = ", ".join(f"{quoted(name)}: {names[number]}" for name, number in results.items())
    lines += [f"        return {{{pairs}}}", ""]
    body = "\n".join(lines)
    head = [f'"""{comment or "A Caffe net as a torch module."}"""', "", *_imports(body)]
    return PythonSource("\n".join(head) + "\n" + body, class_name, arguments, writer.state)


@cache
def _text_of(function: Callable[..., Any]) -> str:
    return textwrap.dedent(inspect.getsource(function)).strip()


def _docstring(net: CaffeNet, arguments: dict[str, str]) -> list[str]:
    """Return the class's docstring: inputs and outputs."""
    given = [f"{name} ({show_shape(net.shapes[blob])})" for blob, name in arguments.items()]
    made = [f'"{plain(name)}" ({show_shape(net.shapes[name])})' for name in net.outputs]
    text = f"From {_listed(given)} to a dict of {_listed(made)}; the first axis is the batch."
    # Room for the indent, and for the closing quotes where one line is all.
    wrapped = textwrap.wrap(f'"""{text}', WIDTH - 7, break_long_words=False, break_on_hyphens=False)
    if len(wrapped) == 1:
        return [f'    {wrapped[0]}"""']
    return [*(f"    {line}" for line in wrapped), '    """']


def _listed(words: list[str]) -> str:
    return ", ".join(words) if words else "nothing"


def _used(body: list[_Statement], wanted: set[int]) -> list[_Statement]:
    """Remove assignments that nothing reads, such as unused tops of a Split."""
    kept = []
    live = set(wanted)
    for statement in reversed(body):
        if not live.intersection(statement.targets):
            continue
        live.difference_update(statement.targets)
        live.update(statement.reads)
        kept.append(statement)
    return kept[::-1]


def _nest_in_place(body: list[_Statement], names: Sequence[str]) -> list[_Statement]:
    """Nest an in-place layer's argument, as in x = F.relu(self.conv(x)), where the line stays short."""
    result: list[_Statement] = []
    for statement in body:
        whole = _nested(statement, result[-1]) if result else None
        if whole and len(f"{names[whole.targets[0]]} = {whole.text(names)}") + 8 <= WIDTH:
            result[-1] = whole
        else:
            result.append(statement)
    return result


def _nested(statement: _Statement, before: _Statement) -> _Statement | None:
    """Merge two statements that assign to the same variable, where the second reads it once, as an argument."""
    if len(statement.targets) != 1 or before.targets != statement.targets:
        return None
    (target,) = statement.targets
    places = [2 * index + 1 for index, number in enumerate(statement.reads) if number == target]
    if len(places) != 1:
        return None
    place = places[0]
    front, rest = statement.pieces[place - 1], statement.pieces[place + 1]
    if not (front.endswith(("(", " ")) and rest.startswith((",", ")"))):
        return None
    inner = [front + before.pieces[0], *before.pieces[1:]]
    inner[-1] += rest
    return _Statement(
        statement.targets, (*statement.pieces[: place - 1], *inner, *statement.pieces[place + 2 :])
    )


def _imports(body: str) -> list[str]:
    """Return the import lines for the names that the body uses."""
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    lines = ["import math"] if "math" in used else []
    lines += ["from collections.abc import Callable"] if "Callable" in used else []
    lines += [""] if lines else []
    lines += ["import torch"] if "torch" in used else []
    lines += ["import torch.nn.functional as F"] if "F" in used else []
    return [*lines, f"from torch import {'Tensor, ' if 'Tensor' in used else ''}nn"]


def _sizes(value: Tensor) -> str:
    """Return a tensor's shape as arguments: torch.empty(3, 1, 1), and torch.empty(()) for a scalar."""
    return ", ".join(map(str, value.shape)) or "()"
