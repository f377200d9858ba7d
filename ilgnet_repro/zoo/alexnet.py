"""AlexNet (Krizhevsky et al., NIPS 2012) as deployed by BVLC: two groups, LRN before pooling."""

from __future__ import annotations

from typing import Any

from ilgnet_repro.schema import caffe_pb2

from .builder import WEIGHT_AND_BIAS, NetBuilder


def deploy() -> caffe_pb2.NetParameter:
    """3×227×227 BGR to 1000 probabilities, 60,965,224 parameters."""
    net = NetBuilder("AlexNet")

    def conv(name: str, bottom: str, num_output: int, kernel_size: int, **geometry: Any) -> str:
        x = net.convolution(name, bottom, num_output, kernel_size, param=WEIGHT_AND_BIAS, **geometry)
        return net.relu(name.replace("conv", "relu"), x)

    def pool(name: str, bottom: str) -> str:
        return net.pooling(name, bottom, "MAX", 3, stride=2)

    x = conv("conv1", net.input("data", 10, 3, 227, 227), 96, 11, stride=4)
    x = pool("pool1", net.lrn("norm1", x))
    x = conv("conv2", x, 256, 5, pad=2, group=2)
    x = pool("pool2", net.lrn("norm2", x))
    x = conv("conv3", x, 384, 3, pad=1)
    x = conv("conv4", x, 384, 3, pad=1, group=2)
    x = conv("conv5", x, 256, 3, pad=1, group=2)
    x = pool("pool5", x)
    for number in (6, 7):
        x = net.relu(f"relu{number}", net.inner_product(f"fc{number}", x, 4096, param=WEIGHT_AND_BIAS))
        x = net.dropout(f"drop{number}", x, 0.5)
    net.softmax("prob", net.inner_product("fc8", x, 1000, param=WEIGHT_AND_BIAS))
    return net.net
