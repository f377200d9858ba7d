"""Layers whose fields change with the iteration: Caffe counts the forward passes since the net was made."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Layer


def constant_top(value: float, x: Tensor) -> Tensor:
    """Return a top that holds one value; a gradient given to it reaches ``x`` as zeros, as in Caffe."""
    return x.new_tensor([value]) + x.flatten()[:0].sum()


class CountsPasses(Layer):
    """A layer that depends on the number of passes before this one.

    In Python a net is a function of its inputs: each pass is the first one unless the net was loaded with
    ``carry_state=True``, as the commands load it.  ONNX and written source compute the first pass.
    """

    carry_state = False  # set by the net
    initial_state = "its first iteration"
    passes: Tensor

    def start_counting(self) -> None:
        """Declare the state; to be called by `setup`."""
        self.has_state = True
        self.register_buffer("passes", torch.tensor(0), persistent=False)

    def reset_state(self) -> None:
        """Let the next pass be the first one."""
        self.passes.zero_()

    def take_pass(self) -> int:
        """Return the number of passes before this one, and count this one where state is carried."""
        if not self.carry_state or torch.compiler.is_exporting():
            return 0
        before = int(self.passes)
        self.passes.add_(1)
        return before
