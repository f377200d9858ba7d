"""Whether the weights of a net that is saved are still those of the file it was loaded from, and the note if not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..about import About
from ..errors import IlgnetError
from ..runtime.load import open_weights
from ..runtime.net import CaffeNet
from ..runtime.origin import Origin
from ..runtime.weights import take_weights


def present_about(net: CaffeNet) -> About:
    """Return what is known of a net in its present state.

    If its weights have changed since loading, the file's digest and release no longer apply and are removed, and what
    they proved is marked as assumed.  Values are compared, because edits of `.data` change no version counter.
    """
    about = net.about
    source = about.source
    if source is None or not (source.release or source.sha256) or _is_unchanged(net):
        return about
    return replace(
        about, source=replace(source, sha256=None, release=None).after("changed"),
        assumed=about.assumed or bool(about.model),
    )  # fmt: skip


def _is_unchanged(net: CaffeNet) -> bool:
    """Return whether every blob equals the one in the net's file, and that file is unchanged."""
    origin = net.origin
    if origin is None or Origin.of(origin.path) != origin:
        return False
    plan = net.plan
    try:
        layers = open_weights(origin.path).layers
        stored = take_weights(plan.blobs, layers, source=str(origin.path), owners=plan.owners)
    except IlgnetError:
        return False
    return all(
        np.array_equal(blob.detach().to("cpu", torch.float32).numpy(), array, equal_nan=True)
        for name, blobs in net.params.items()
        for blob, array in zip(blobs, stored[name], strict=True)
    )
