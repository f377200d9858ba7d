"""MobileNet v1 (arXiv 1704.04861) and v2 (arXiv 1801.04381), with the names of their widely used Caffe port."""

from __future__ import annotations

from ilgnet_repro.schema import caffe_pb2

from .builder import MSRA, NetBuilder

WEIGHT_ONLY = ({"lr_mult": 1, "decay_mult": 1},)

# v1, each a depthwise 3×3 and a 1×1: name, output channels, stride.
SEPARABLE = (
    ("2_1", 64, 1),
    ("2_2", 128, 2),
    ("3_1", 128, 1),
    ("3_2", 256, 2),
    ("4_1", 256, 1),
    ("4_2", 512, 2),
    *((f"5_{index}", 512, 1) for index in range(1, 6)),
    ("5_6", 1024, 2),
    ("6", 1024, 1),
)
# v2, each an inverted residual: name, expansion, output channels, stride.  The port follows the first
# version of the paper, in which the fourth downsampling has 96 channels.
INVERTED = (
    ("2_1", 1, 16, 1),
    ("2_2", 6, 24, 2),
    ("3_1", 6, 24, 1),
    ("3_2", 6, 32, 2),
    ("4_1", 6, 32, 1),
    ("4_2", 6, 32, 1),
    ("4_3", 6, 64, 1),
    ("4_4", 6, 64, 1),
    ("4_5", 6, 64, 1),
    ("4_6", 6, 64, 1),
    ("4_7", 6, 96, 2),
    ("5_1", 6, 96, 1),
    ("5_2", 6, 96, 1),
    ("5_3", 6, 160, 2),
    ("6_1", 6, 160, 1),
    ("6_2", 6, 160, 1),
    ("6_3", 6, 320, 1),
)


def conv_bn(
    net: NetBuilder,
    name: str,
    bottom: str,
    num_output: int,
    kernel_size: int,
    *,
    stride: int | None = None,
    depthwise: bool = False,
) -> str:
    """Add a convolution without bias, BatchNorm and in-place Scale; the top is ``name/bn``."""
    x = net.convolution(
        name,
        bottom,
        num_output,
        kernel_size,
        stride=stride,
        pad=1 if kernel_size == 3 else None,
        group=num_output if depthwise else None,
        bias=False,
        weight_filler=MSRA,
        param=WEIGHT_ONLY,
    )
    fields = {"use_global_stats": True, "eps": 1e-5}
    x = net.layer("BatchNorm", f"{name}/bn", x, batch_norm_param=fields)
    return net.in_place("Scale", f"{name}/scale", x, scale_param={"bias_term": True})


def conv_bn_relu(
    net: NetBuilder,
    name: str,
    bottom: str,
    num_output: int,
    kernel_size: int,
    *,
    stride: int | None = None,
    depthwise: bool = False,
) -> str:
    """Add `conv_bn` and an in-place ReLU: ``relu2_1/dw`` for ``conv2_1/dw``."""
    x = conv_bn(net, name, bottom, num_output, kernel_size, stride=stride, depthwise=depthwise)
    return net.relu(name.replace("conv", "relu"), x)


def separable(net: NetBuilder, name: str, bottom: str, channels: tuple[int, int], stride: int) -> str:
    """Add a block of v1: depthwise 3×3, then pointwise 1×1 convolution."""
    inputs, outputs = channels
    x = conv_bn_relu(net, f"conv{name}/dw", bottom, inputs, 3, stride=stride, depthwise=True)
    return conv_bn_relu(net, f"conv{name}/sep", x, outputs, 1)


def inverted_residual(
    net: NetBuilder, name: str, bottom: str, channels: tuple[int, int], *, expansion: int, stride: int
) -> str:
    """Add a block of v2: 1×1 expansion, depthwise 3×3, linear 1×1 projection, and a shortcut if shapes match."""
    inputs, outputs = channels
    wide = inputs * expansion
    x = conv_bn_relu(net, f"conv{name}/expand", bottom, wide, 1)
    x = conv_bn_relu(
        net, f"conv{name}/dwise", x, wide, 3, stride=None if stride == 1 else stride, depthwise=True
    )
    x = conv_bn(net, f"conv{name}/linear", x, outputs, 1)
    if stride == 1 and inputs == outputs:
        return net.layer("Eltwise", f"block_{name}", (bottom, x))
    return x


def classify(net: NetBuilder, bottom: str) -> None:
    """Add global average pooling, a 1×1 convolution to 1000 classes, and softmax."""
    x = net.pooling("pool6", bottom, "AVE")
    net.softmax("prob", net.convolution("fc7", x, 1000, 1, weight_filler=MSRA))


def deploy_v1() -> caffe_pb2.NetParameter:
    """3×224×224 BGR to 1000 probabilities (1000×1×1), 4,231,976 parameters."""
    net = NetBuilder("MOBILENET")
    x, channels = conv_bn_relu(net, "conv1", net.input("data", 1, 3, 224, 224), 32, 3, stride=2), 32
    for name, outputs, stride in SEPARABLE:
        x, channels = separable(net, name, x, (channels, outputs), stride), outputs
    classify(net, x)
    return net.net


def deploy_v2() -> caffe_pb2.NetParameter:
    """3×224×224 BGR to 1000 probabilities (1000×1×1).

    3,505,960 parameters: 1,088 more than the paper's net, since the port expands in conv2_1 too.
    """
    net = NetBuilder("MOBILENET_V2")
    x, channels = conv_bn_relu(net, "conv1", net.input("data", 1, 3, 224, 224), 32, 3, stride=2), 32
    for name, expansion, outputs, stride in INVERTED:
        x = inverted_residual(net, name, x, (channels, outputs), expansion=expansion, stride=stride)
        channels = outputs
    classify(net, conv_bn_relu(net, "conv6_4", x, 1280, 1))
    return net.net
