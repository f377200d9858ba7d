"""Running a net in the mode of its phase, whatever `train()` or `eval()` the caller called last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .net import CaffeNet


@contextmanager
def as_loaded(net: Any) -> Iterator[None]:
    """Put a net into the mode of its phase, and restore every module's own mode afterwards.

    The mode is `train()` in phase TRAIN, and `eval()` in phase TEST and for nets that are not Caffe's.  Modules that
    replaced a layer are switched as well.  A net that is not a torch module has no mode and is not changed.
    """
    if not isinstance(net, nn.Module):
        yield
        return
    training = isinstance(net, CaffeNet) and net.graph.phase == "TRAIN"
    # Outer modules come first, so that each module's own mode is restored last.
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
