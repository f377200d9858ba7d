"""ILGNet (Jin et al., arXiv 1610.02256): GoogLeNet to inception_4a, with local and global features concatenated.

Two local heads read whole early blobs (``temp1`` at inception_3a, ``temp2`` at inception_3b), a global
one at the ``loss1`` branch (``temp3``).  Their 1024 features decide between low (0) and high (1) quality.
Layer for layer and field for field these are the nets the authors released, in modern form.
"""

from __future__ import annotations

from collections.abc import Callable

from ilgnet_repro.schema import caffe_pb2

from ..zoo.builder import NEW_WEIGHT_AND_BIAS, XAVIER, NetBuilder, constant
from ..zoo.googlenet import inception, pooled_conv, stem

CROP = 227
Block = Callable[[NetBuilder, str, str], str]


def dense(net: NetBuilder, name: str, bottom: str, num_output: int, bias: float = 0.2) -> str:
    """A new dense layer, which learns ten times as fast as those that come from GoogLeNet."""
    return net.inner_product(
        name,
        bottom,
        num_output,
        weight_filler=XAVIER,
        bias_filler=constant(bias),
        param=NEW_WEIGHT_AND_BIAS,
    )


def features(net: NetBuilder, name: str, bottom: str, num_output: int, drop: str = "") -> str:
    """Dense, ReLU, dropout 0.7; ``drop`` names the dropout layer where it is named irregularly."""
    x = net.relu(f"{name}_relu", dense(net, name, bottom, num_output))
    return net.dropout(drop or f"{name}_drop", x, 0.7)


def scores(net: NetBuilder, data: str, *, block: Block = inception, local: bool = True) -> str:
    """The two class scores of a 3×227×227 image.

    ``block`` builds modules 3a, 3b and 4a; without ``local`` the two early heads are left out
    (both are there for the ablations of the paper).
    """
    x = block(net, "3a", stem(net, data))
    heads = [features(net, "temp1", x, 256)] if local else []
    x = block(net, "3b", x)
    heads += [features(net, "temp2", x, 256)] if local else []
    x = net.pooling("pool3/3x3_s2", x, "MAX", 3, stride=2)
    x = block(net, "4a", x)
    heads.append(features(net, "temp3", pooled_conv(net, "loss1", x), 512))
    joined = net.concat("temp", heads) if local else heads[0]
    # The authors' dropout after temp_cjy is called temp3_cjy_drop.
    joined = features(net, "temp_cjy", joined, 1024, drop="temp3_cjy_drop")
    return dense(net, "loss1/classifier_cjy", joined, 2, bias=0)


def database(net: NetBuilder, partition: str, part: str, batch_size: int, phase: str | None = None) -> str:
    """256×256 images of AVA1 or AVA2 (``part`` is train or val), minus the mean image, cropped to 227."""
    folder = f"../../data/{partition}"
    return net.data(
        f"{folder}/{part}_lmdb",
        batch_size=batch_size,
        crop_size=CROP,
        mirror=part == "train",
        mean_file=f"{folder}/mean.binaryproto",
        phase=phase,
    )


def deploy() -> caffe_pb2.NetParameter:
    """3×227×227 BGR minus mean to the probabilities (low, high): 150,938,082 parameters."""
    net = NetBuilder("GoogleNet")
    net.softmax("loss1/loss", scores(net, net.input("data", 1, 3, CROP, CROP)))
    return net.net


def train(partition: str = "AVA2") -> caffe_pb2.NetParameter:
    """The training net: batches of 48 random crops, mirrored at random."""
    net = NetBuilder("GoogleNet")
    classifier = scores(net, database(net, partition, "train", 48))
    # The authors name no top; Caffe then makes one for the loss.
    net.layer("SoftmaxWithLoss", "loss1/loss", (classifier, "label"), tops=())
    return net.net


def val(partition: str = "AVA2", batch_size: int = 48) -> caffe_pb2.NetParameter:
    """The test net: centre crops, accuracy and loss."""
    net = NetBuilder("GoogleNet")
    classifier = scores(net, database(net, partition, "val", batch_size))
    net.layer("SoftmaxWithLoss", "loss1/loss", (classifier, "label"), tops=())
    net.accuracy("loss1/top-1", classifier, phase=None)
    return net.net


def train_ava1() -> caffe_pb2.NetParameter:
    """The training net on AVA1."""
    return train("AVA1")


def val_ava1() -> caffe_pb2.NetParameter:
    """The test net on AVA1: 400 batches of 50 are its 20,000 images."""
    return val("AVA1", batch_size=50)
