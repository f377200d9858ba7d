"""Caffe's buffers simulated in numpy: small random nets whose blobs really share memory.

Slow and independent of the package: a layer that shares its bottom's memory returns a view of it, a layer
in place writes into it, and every blob is looked at after the whole pass, as Caffe's callers do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

FUNCTIONS = {
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "TanH": np.tanh,
    "Power": lambda x: 0.75 * x + 0.5,
    "Dropout": lambda x: x,  # in phase TEST
}
POWER = "power_param { scale: 0.75 shift: 0.5 }"


@dataclass
class RandomNet:
    """A net's text, and its blobs after a pass over ``inputs``; ``unread`` are its outputs."""

    inputs: dict[str, np.ndarray]
    lines: list[str] = field(default_factory=list)
    blobs: dict[str, np.ndarray] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)  # blobs whose present value some layer has read

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def add(self, type_: str, bottoms: list[str], tops: dict[str, np.ndarray], more: str = "") -> None:
        names = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
        self.lines.append(
            f'layer {{ name: "l{len(self.lines)}" type: "{type_}" {" ".join(names)} {more} }}\n'
        )
        for blob in bottoms:
            self.unread.pop(blob, None)
            self.read.add(blob)
        for top, values in tops.items():
            self.blobs[top] = values
            self.unread[top] = None
            self.read.discard(top)


def random_net(seed: int, layers: int = 9) -> RandomNet:
    """Draw a net in which many blobs share memory; it keeps to Caffe's rules for layers in place."""
    draw = random.Random(seed)
    shape = (draw.choice((2, 3)), 4, 3, draw.choice((2, 5)))
    x = np.random.default_rng(seed).standard_normal(shape)
    net = RandomNet({"x": x.astype(np.float32)})
    dims = " ".join(f"dim: {size}" for size in shape)
    net.add("Input", [], {"x": x.copy()}, f"input_param {{ shape {{ {dims} }} }}")
    for number in range(layers):
        _grow(net, draw, f"t{number}")
    return net


def _grow(net: RandomNet, draw: random.Random, top: str) -> None:
    bottom = draw.choice(list(net.blobs))
    values = net.blobs[bottom]
    kind = draw.choice(("share", "share", "in place", "in place", "in place", "apply", "sum"))
    if kind == "share":
        _share(net, draw, bottom, top)
    elif kind == "in place" and bottom not in net.read:
        type_ = draw.choice(list(FUNCTIONS))
        values[...] = FUNCTIONS[type_](values)
        net.add(type_, [bottom], {bottom: values}, POWER if type_ == "Power" else "")
    elif kind == "sum":
        others = [name for name, other in net.blobs.items() if other.shape == values.shape]
        other = draw.choice(others)
        in_place = bottom not in net.read and not np.shares_memory(values, net.blobs[other])
        if in_place:
            values[...] = net.blobs[other]  # Caffe clears its top, the first bottom, and adds the second
            net.add("Eltwise", [bottom, other], {bottom: values})
        else:
            net.add("Eltwise", [bottom, other], {top: values + net.blobs[other]})
    else:
        type_ = draw.choice(list(FUNCTIONS))
        more = POWER if type_ == "Power" else ""
        net.add(type_, [bottom], {top: FUNCTIONS[type_](values).copy()}, more)


def _share(net: RandomNet, draw: random.Random, bottom: str, top: str) -> None:
    values = net.blobs[bottom]
    type_ = draw.choice(("Split", "Flatten", "Reshape", "Concat", "Slice"))
    if type_ == "Split":
        net.add(type_, [bottom], {f"{top}a": values[...], f"{top}b": values[...]})
    elif type_ == "Flatten":
        net.add(type_, [bottom], {top: values.reshape(len(values), -1)})
    elif type_ == "Reshape":
        more = "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }"
        net.add(type_, [bottom], {top: values.reshape(len(values), 2, -1)}, more)
    else:
        net.add(type_, [bottom], {top: values[...]})
