"""SqueezeNet v1.1 (Iandola et al., arXiv 1602.07360)."""

from __future__ import annotations

from ilgnet_repro.schema import caffe_pb2

from .builder import NetBuilder

# Fire module: (squeeze channels, channels of each of its two expansions).
FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}


def fire(net: NetBuilder, number: int, bottom: str) -> str:
    """Add a fire module: a 1×1 squeeze, then 1×1 and 3×3 expansions, concatenated."""
    squeeze, expand = FIRES[number]

    def conv(part: str, bottom: str, num_output: int, kernel_size: int, pad: int | None = None) -> str:
        x = net.convolution(f"fire{number}/{part}", bottom, num_output, kernel_size, pad=pad)
        return net.relu(f"fire{number}/relu_{part}", x)

    squeezed = conv("squeeze1x1", bottom, squeeze, 1)
    parts = conv("expand1x1", squeezed, expand, 1), conv("expand3x3", squeezed, expand, 3, pad=1)
    return net.concat(f"fire{number}/concat", parts)


def deploy() -> caffe_pb2.NetParameter:
    """3×227×227 BGR to 1000 probabilities (1000×1×1), 1,235,496 parameters."""
    net = NetBuilder("SqueezeNet_v1.1")
    x = net.convolution("conv1", net.input("data", 10, 3, 227, 227), 64, 3, stride=2)
    x = net.pooling("pool1", net.relu("relu_conv1", x), "MAX", 3, stride=2)
    for number in FIRES:
        x = fire(net, number, x)
        if number in (3, 5):
            x = net.pooling(f"pool{number}", x, "MAX", 3, stride=2)
    x = net.dropout("drop9", x, 0.5)
    x = net.relu("relu_conv10", net.convolution("conv10", x, 1000, 1))
    net.softmax("prob", net.pooling("pool10", x, "AVE"))
    return net.net
