"""The mode of the phase that a net was loaded in, for what gives Caffe's numbers whatever mode the caller left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .net import CaffeNet


@contextmanager
def as_loaded(net: Any) -> Iterator[None]:
    """Put a net into the mode of its phase; afterwards every module has the mode again that it had.

    In phase TRAIN that is `train()`, in phase TEST, and for nets that are not Caffe's, `eval()`.  Modules that
    stand in the place of a layer are switched as well.  What is no torch module has no mode, and stays as it is.
    """
    if not isinstance(net, nn.Module):
        yield
        return
    training = isinstance(net, CaffeNet) and net.graph.phase == "TRAIN"
    # Outer modules come first, so that each module's own mode is the last that it is given.
    before = [(module, module.training) for module in net.modules()]
    if all(mode is training for _, mode in before):
        yield
        return
    net.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.train(mode)
