"""The nets that ILGNet's paper compares it with, each as a training net and as a deploy net.

- the first third (to inception_4a), two thirds (to inception_4d) and the whole of GoogLeNet, two classes;
- ILGNet without the local heads;
- ILGNet without Inception: a 1×1 and a 3×3 convolution replace each module.

The paper does not print the last one.  Here the 3×3 has as many channels as the module it replaces and
the 1×1 before it is as wide as makes the two equal the module's parameters within 1 %, so that the two
nets differ in the shape of the block and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from ilgnet_repro.schema import caffe_pb2

from ..zoo import googlenet
from ..zoo.builder import NEW_WEIGHT_AND_BIAS, NetBuilder
from ..zoo.googlenet import MODULES, conv_relu
from . import ilgnet

# Width of the 1×1 that gives a plain block the parameters of the Inception module.
PLAIN_REDUCE = {"3a": 65, "3b": 85, "4a": 74}


def plain_block(net: NetBuilder, module: str, bottom: str) -> str:
    """Two plain convolutions of the size of an Inception module."""
    x = conv_relu(net, f"plain_{module}", "3x3_reduce", bottom, PLAIN_REDUCE[module], kernel_size=1)
    return conv_relu(net, f"plain_{module}", "3x3", x, MODULES[module].num_output, kernel_size=3, pad=1)


def without_local(net: NetBuilder, data: str) -> str:
    """The class scores of ILGNet from the global head only."""
    return ilgnet.scores(net, data, local=False)


def without_inception(net: NetBuilder, data: str) -> str:
    """The class scores of ILGNet from plain convolutions."""
    return ilgnet.scores(net, data, block=plain_block)


def _cut(net: NetBuilder, data: str, last: str, training: bool) -> str:
    return googlenet.body(
        net, data, last=last, classes=2, training=training, suffix="_ava", param=NEW_WEIGHT_AND_BIAS
    )


def _databases(net: NetBuilder) -> str:
    ilgnet.database(net, "AVA2", "train", 48, phase="TRAIN")
    return ilgnet.database(net, "AVA2", "val", 48, phase="TEST")


def _cut_deploy(name: str, last: str) -> caffe_pb2.NetParameter:
    net = NetBuilder(name)
    net.softmax("prob", _cut(net, net.input("data", 1, 3, ilgnet.CROP, ilgnet.CROP), last, training=False))
    return net.net


def _cut_train_val(name: str, last: str) -> caffe_pb2.NetParameter:
    net = NetBuilder(name)
    _cut(net, _databases(net), last, training=True)
    return net.net


def _variant_deploy(name: str, scores: Callable[[NetBuilder, str], str]) -> caffe_pb2.NetParameter:
    net = NetBuilder(name)
    net.softmax("loss1/loss", scores(net, net.input("data", 1, 3, ilgnet.CROP, ilgnet.CROP)))
    return net.net


def _variant_train_val(name: str, scores: Callable[[NetBuilder, str], str]) -> caffe_pb2.NetParameter:
    net = NetBuilder(name)
    classifier = scores(net, _databases(net))
    net.loss("loss1/loss", classifier, top="loss1/loss")
    net.accuracy("loss1/top-1", classifier)
    return net.net


def googlenet_third() -> caffe_pb2.NetParameter:
    """GoogLeNet to inception_4a and its first head, two classes."""
    return _cut_deploy("GoogleNet_third", "4a")


def googlenet_third_train_val() -> caffe_pb2.NetParameter:
    """Training of googlenet_third: one loss."""
    return _cut_train_val("GoogleNet_third", "4a")


def googlenet_two_thirds() -> caffe_pb2.NetParameter:
    """GoogLeNet to inception_4d and its second head, two classes."""
    return _cut_deploy("GoogleNet_two_thirds", "4d")


def googlenet_two_thirds_train_val() -> caffe_pb2.NetParameter:
    """Training of googlenet_two_thirds: two losses."""
    return _cut_train_val("GoogleNet_two_thirds", "4d")


def googlenet_whole() -> caffe_pb2.NetParameter:
    """The whole of GoogLeNet, two classes."""
    return _cut_deploy("GoogleNet_whole", "5b")


def googlenet_whole_train_val() -> caffe_pb2.NetParameter:
    """Training of googlenet_whole: three losses."""
    return _cut_train_val("GoogleNet_whole", "5b")


def ilgnet_without_local() -> caffe_pb2.NetParameter:
    """ILGNet with its global features only."""
    return _variant_deploy("ILGNet_without_local", without_local)


def ilgnet_without_local_train_val() -> caffe_pb2.NetParameter:
    """Training of ilgnet_without_local."""
    return _variant_train_val("ILGNet_without_local", without_local)


def ilgnet_without_inception() -> caffe_pb2.NetParameter:
    """ILGNet with plain convolutions in place of Inception modules."""
    return _variant_deploy("ILGNet_without_inception", without_inception)


def ilgnet_without_inception_train_val() -> caffe_pb2.NetParameter:
    """Training of ilgnet_without_inception."""
    return _variant_train_val("ILGNet_without_inception", without_inception)
