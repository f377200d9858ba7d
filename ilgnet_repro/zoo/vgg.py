"""VGG-16 and VGG-19 (Simonyan and Zisserman, ICLR 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ilgnet_repro.schema import caffe_pb2

from .builder import NetBuilder

CHANNELS = (64, 128, 256, 512, 512)
DEPTH_16 = (2, 2, 3, 3, 3)
DEPTH_19 = (2, 2, 4, 4, 4)

Conv = Callable[[str, str, int, int, int], str]
Pool = Callable[[str, str], str]


def relu_name(name: str) -> str:
    """Return the name of a layer's ReLU: ``relu3_2`` for ``conv3_2``, ``relu6`` for ``fc6``."""
    return f"relu{name.removeprefix('conv').removeprefix('fc')}"


def trunk(conv: Conv, pool: Pool, data: str, depth: Sequence[int], first_pad: int = 1) -> str:
    """Add five stages of 3×3 convolutions, conv1_1 to pool5; return the last top.

    ``conv(name, bottom, num_output, kernel_size, pad)`` and ``pool(name, bottom)`` add the layers, so
    that SSD and FCN, which stand on the same trunk, can set their own fields.
    """
    x = data
    for stage, (repeats, channels) in enumerate(zip(depth, CHANNELS, strict=True), start=1):
        for index in range(1, repeats + 1):
            x = conv(f"conv{stage}_{index}", x, channels, 3, first_pad if x == data else 1)
        x = pool(f"pool{stage}", x)
    return x


def _deploy(name: str, depth: Sequence[int]) -> caffe_pb2.NetParameter:
    net = NetBuilder(name)

    def conv(name: str, bottom: str, num_output: int, kernel_size: int, pad: int) -> str:
        x = net.convolution(name, bottom, num_output, kernel_size, pad=pad)
        return net.relu(relu_name(name), x)

    def pool(name: str, bottom: str) -> str:
        return net.pooling(name, bottom, "MAX", 2, stride=2)

    x = trunk(conv, pool, net.input("data", 10, 3, 224, 224), depth)
    for number in (6, 7):
        x = net.relu(relu_name(f"fc{number}"), net.inner_product(f"fc{number}", x, 4096))
        x = net.dropout(f"drop{number}", x, 0.5)
    net.softmax("prob", net.inner_product("fc8", x, 1000))
    return net.net


def deploy_16() -> caffe_pb2.NetParameter:
    """3×224×224 BGR to 1000 probabilities, 138,357,544 parameters."""
    return _deploy("VGG_ILSVRC_16_layers", DEPTH_16)


def deploy_19() -> caffe_pb2.NetParameter:
    """3×224×224 BGR to 1000 probabilities, 143,667,240 parameters."""
    return _deploy("VGG_ILSVRC_19_layers", DEPTH_19)
