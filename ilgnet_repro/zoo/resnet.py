"""ResNet-50 (He et al., CVPR 2016) with the names and layers of the released Caffe weights."""

from __future__ import annotations

from ilgnet_repro.schema import caffe_pb2

from .builder import NetBuilder

# Stage number: (bottleneck blocks, channels inside a block).
STAGES = {2: (3, 64), 3: (4, 128), 4: (6, 256), 5: (3, 512)}


def conv_bn(
    net: NetBuilder,
    name: str,
    bottom: str,
    num_output: int,
    *,
    kernel_size: int,
    stride: int = 1,
    pad: int = 0,
    bias: bool = False,
) -> str:
    """Add a convolution ``res2a_branch1`` and, in place, ``bn2a_branch1`` and ``scale2a_branch1``."""
    suffix = name.removeprefix("res")
    separator = "_" if name == suffix else ""
    x = net.convolution(name, bottom, num_output, kernel_size, stride=stride, pad=pad, bias=bias)
    net.in_place("BatchNorm", f"bn{separator}{suffix}", x, batch_norm_param={"use_global_stats": True})
    return net.in_place("Scale", f"scale{separator}{suffix}", x, scale_param={"bias_term": True})


def block(net: NetBuilder, name: str, bottom: str, channels: int, *, stride: int, project: bool) -> str:
    """Add a bottleneck: 1×1 (strided), 3×3, 1×1 to four times the channels, plus its shortcut."""
    shortcut = bottom
    if project:
        shortcut = conv_bn(net, f"{name}_branch1", bottom, 4 * channels, kernel_size=1, stride=stride)
    x = conv_bn(net, f"{name}_branch2a", bottom, channels, kernel_size=1, stride=stride)
    x = net.relu(f"{name}_branch2a_relu", x)
    x = conv_bn(net, f"{name}_branch2b", x, channels, kernel_size=3, pad=1)
    x = net.relu(f"{name}_branch2b_relu", x)
    x = conv_bn(net, f"{name}_branch2c", x, 4 * channels, kernel_size=1)
    return net.relu(f"{name}_relu", net.layer("Eltwise", name, (shortcut, x)))


def deploy_50() -> caffe_pb2.NetParameter:
    """3×224×224 BGR to 1000 probabilities.

    25,557,096 parameters: the released net has a bias in conv1 (64), though BatchNorm follows it.
    """
    net = NetBuilder("ResNet-50")
    x = conv_bn(
        net, "conv1", net.input("data", 1, 3, 224, 224), 64, kernel_size=7, stride=2, pad=3, bias=True
    )
    x = net.pooling("pool1", net.relu("conv1_relu", x), "MAX", 3, stride=2)
    for stage, (blocks, channels) in STAGES.items():
        for index in range(blocks):
            first = index == 0
            stride = 2 if first and stage > 2 else 1
            x = block(net, f"res{stage}{'abcdef'[index]}", x, channels, stride=stride, project=first)
    x = net.pooling("pool5", x, "AVE", 7, stride=1)
    net.softmax("prob", net.inner_product("fc1000", x, 1000))
    return net.net
