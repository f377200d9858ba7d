"""What torch.export fixes while it traces a net: each layer's conditions on open lengths, held against other lengths.

torch records a condition on a length wherever a layer decides something by it, and a file refuses inputs for which one
does not hold, whatever was declared open.  Here the conditions of a layer are evaluated as soon as it has been traced, for
lengths that the net is known to take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import LayerError
from ..layers.support.base import Shape
from ..runtime.net import CaffeNet


class FixedLengthError(LayerError):
    """A layer's trace holds only for some lengths of an open axis."""


class GuardWatch:
    """Follows the layers of a net while it is traced."""

    def __init__(
        self, net: CaffeNet, others: Sequence[Mapping[str, Shape]], remedy: str, option: str
    ) -> None:
        """``others`` are input shapes that the net takes; ``remedy`` ends the message of a refusal."""
        self._net, self._others, self._remedy, self._option = net, others, remedy, option
        self._values: list[dict[Any, int]] = []  # for each of `others`: the lengths of the trace's symbols
        self._seen = 0
        self.layer: Any = None  # the one being traced

    def start(self, inputs: Mapping[str, Tensor]) -> None:
        """Read the symbols of the inputs' open lengths, when the trace begins."""
        symbols: dict[Any, tuple[str, int]] = {}
        for name, value in inputs.items():
            lengths: tuple[Any, ...] = tuple(value.shape)
            for axis, length in enumerate(lengths):
                if isinstance(length, torch.SymInt):
                    symbols[length.node.expr] = name, axis
        self._values = [
            {symbol: shapes[name][axis] for symbol, (name, axis) in symbols.items()}
            for shapes in self._others
        ]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the layers of the net."""
        handles = []
        for _, layer in self._net.steps(self._net.outputs):
            handles.append(layer.register_forward_pre_hook(self._enter))
            handles.append(layer.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, layer: Any, bottoms: Any) -> None:
        self.layer = layer

    def _leave(self, layer: Any, bottoms: Any, tops: Any) -> None:
        self.layer = None
        mode = torch._guards.detect_fake_mode()
        guards = mode.shape_env.guards if mode is not None and mode.shape_env is not None else []
        new, self._seen = guards[self._seen :], len(guards)
        for guard in new:
            if any(guard.expr.xreplace(values) == False for values in self._values):  # noqa: E712 - sympy's false
                raise FixedLengthError(
                    layer.node.name, layer.node.type,
                    f"what torch.export records of it holds for some lengths only; {self._remedy}",
                    option=self._option,
                )  # fmt: skip
