"""Whether a net that is saved still has the weights of the file it was loaded from, and what is said of it if not."""

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
    """What is known of a net as it is now.

    A net that was trained on is not the file whose digest it was loaded with: then digest and release go, and what
    was certain by them is assumed from here on.  Values are compared, for edits of `.data` count no version.
    """
    about = net.about
    source = about.source
    if source is None or not (source.release or source.sha256) or _holds_its_file(net):
        return about
    return replace(
        about, source=replace(source, sha256=None, release=None).after("changed"),
        assumed=about.assumed or bool(about.model),
    )  # fmt: skip


def _holds_its_file(net: CaffeNet) -> bool:
    """Whether every blob equals what the net's file holds, and the file is the one that was read."""
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
