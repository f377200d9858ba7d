"""The small residual-inception net released beside ILGNet as its "v4": neither Inception v4 nor ILGNet.

Field for field the authors' net: PReLU, a ``BN`` layer with slope, bias, moving mean and variance, 224
crops and a shuffling Data layer, which need a fork of Caffe.
"""

from __future__ import annotations

from typing import Any

from ilgnet_repro.schema import caffe_pb2

from ..zoo.builder import WEIGHT_AND_BIAS, Fields, NetBuilder, constant, gaussian

CROP = 224


def conv(net: NetBuilder, name: str, bottom: str, num_output: int, kernel_size: int, **geometry: Any) -> str:
    """A convolution from small normal weights and zero biases."""
    return net.convolution(
        name,
        bottom,
        num_output,
        kernel_size,
        weight_filler=gaussian(0.01),
        bias_filler=constant(0),
        param=WEIGHT_AND_BIAS,
        **geometry,
    )


def conv_prelu(
    net: NetBuilder, block: str, part: str, bottom: str, num_output: int, *, kernel_size: int, **geometry: Any
) -> str:
    """The convolution ``block/part`` and its PReLU ``block/relu_part``."""
    top = conv(net, f"{block}/{part}", bottom, num_output, kernel_size, **geometry)
    return net.in_place("PReLU", f"{block}/relu_{part}", top)


def batch_norm(net: NetBuilder, blob: str) -> str:
    """``BN`` over moving averages and a ReLU, both in place; mean and variance are not learned."""
    fixed: Fields = {"lr_mult": 0, "decay_mult": 0}
    net.in_place(
        "BN",
        f"{blob}_bn",
        blob,
        param=({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 1, "decay_mult": 0}, fixed, fixed),
        bn_param={"slope_filler": constant(1), "bias_filler": constant(0.001), "moving_average": True},
    )
    return net.relu(f"{blob}/relu", blob)


def add(net: NetBuilder, name: str, shortcut: str, residual: str) -> str:
    """The sum that makes a block residual."""
    return net.layer("Eltwise", name, (shortcut, residual), eltwise_param={"operation": "SUM"})


def wide_inception(net: NetBuilder, module: str, bottom: str) -> str:
    """Modules 2a, 2b: 3×3, 5×5 and 1×1 branches, concatenated and projected to 128 channels."""
    block = f"inception_{module}"
    three = conv_prelu(net, block, "3x3_reduce", bottom, 32, kernel_size=1)
    three = conv_prelu(net, block, "3x3", three, 64, kernel_size=3, pad=1)
    five = conv_prelu(net, block, "5x5_reduce", bottom, 16, kernel_size=1)
    five = conv_prelu(net, block, "5x5", five, 32, kernel_size=5, pad=2)
    one = conv_prelu(net, block, "1x1", bottom, 32, kernel_size=1)
    joined = net.concat(f"{block}/output", (three, five, one))
    return conv(net, f"{block}/output_proj", joined, 128, 1)


def narrow_inception(net: NetBuilder, module: str, bottom: str) -> str:
    """Modules 3a, 3b: 1×1 and 3×3 branches, concatenated and projected to 256 channels."""
    block = f"inception_{module}"
    one = conv_prelu(net, block, "1x1", bottom, 128, kernel_size=1)
    three = conv_prelu(net, block, "3x3_reduce", bottom, 64, kernel_size=1)
    three = conv_prelu(net, block, "3x3", three, 128, kernel_size=3, pad=1)
    joined = net.concat(f"{block}/output", (one, three))
    return conv(net, f"{block}/output_proj", joined, 256, 1)


def halve(net: NetBuilder, stage: int, bottom: str, num_output: int) -> str:
    """Half the height and width, twice the channels: a strided convolution beside max pooling."""
    convolved = conv_prelu(
        net, f"conv_pooling{stage}", "3x3", bottom, num_output, kernel_size=3, pad=1, stride=2
    )
    pooled = net.pooling(f"pool{stage}", bottom, "MAX", 2, stride=2)
    return net.concat(f"pooling{stage}/output", (convolved, pooled))


def bottleneck(net: NetBuilder, block: str, bottom: str, middle: str) -> str:
    """1×1, 3×3, 1×1 to 1024 channels; ``middle`` names the 3×3."""
    x = conv_prelu(net, block, "1x1_s1_1", bottom, 224, kernel_size=1, stride=1)
    x = conv_prelu(net, block, middle, x, 256, kernel_size=3, pad=1, stride=1)
    return conv(net, f"{block}/1x1_s1_3", x, 1024, 1, stride=1)


def scores(net: NetBuilder, data: str) -> str:
    """The two class scores of a 3×224×224 image."""
    x = conv(net, "conv1/7x7_s3", data, 64, 7, stride=2)
    x = net.in_place("PReLU", "conv1/relu_7x7", x)
    x = net.pooling("pool1/3x3_s2", x, "MAX", 2, stride=2)

    residual = wide_inception(net, "2a", x)
    x = conv(net, "conv2_1/1x1_s1_1_sc", x, 128, 1, stride=1)
    x = batch_norm(net, add(net, "conv2_1", x, residual))
    x = batch_norm(net, add(net, "conv2_2", x, wide_inception(net, "2b", x)))
    x = halve(net, 2, x, 128)

    x = batch_norm(net, add(net, "conv3_1", x, narrow_inception(net, "3a", x)))
    x = batch_norm(net, add(net, "conv3_2", x, narrow_inception(net, "3b", x)))
    x = halve(net, 3, x, 256)

    residual = bottleneck(net, "conv4_1", x, "3x3_s2_2")
    x = conv(net, "conv4_1/1x1_s1_1_sc", x, 1024, 1, stride=1)
    x = net.in_place("PReLU", "conv4_1/relu", add(net, "conv4_1", x, residual))
    x = batch_norm(net, add(net, "conv4_2", x, bottleneck(net, "conv4_2", x, "3x3_s1_2")))

    x = net.pooling("pool4/6x6_s1", x, "AVE", 7, stride=1)
    x = net.dropout("drop1", x, 0.4)
    return net.inner_product(
        "loss/classifier_wule",
        x,
        2,
        weight_filler=gaussian(0.01),
        bias_filler=constant(0),
        param=WEIGHT_AND_BIAS,
        top="loss/classifier",
    )


def train_val() -> caffe_pb2.NetParameter:
    """Training and test net; only the training database is shuffled."""
    net = NetBuilder("resnet_inception")
    folder, mean_file = "../../data/AVA2", "../../data/AVA2/mean.binaryproto"
    net.data(
        f"{folder}/train_lmdb",
        batch_size=32,
        crop_size=CROP,
        mirror=True,
        mean_file=mean_file,
        phase="TRAIN",
        shuffle=True,
    )
    data = net.data(
        f"{folder}/val_lmdb", batch_size=32, crop_size=CROP, mirror=False, mean_file=mean_file, phase="TEST"
    )
    classifier = scores(net, data)
    net.loss("loss", classifier, top="loss")
    net.accuracy("loss/top-1", classifier)
    return net.net


def deploy() -> caffe_pb2.NetParameter:
    """3×224×224 BGR minus mean to the probabilities (low, high)."""
    net = NetBuilder("resnet_inception")
    net.softmax("prob", scores(net, net.input("data", 1, 3, CROP, CROP)))
    return net.net
