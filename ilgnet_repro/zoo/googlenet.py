"""GoogLeNet (Szegedy et al., CVPR 2015) as trained by BVLC, complete or up to one of its three heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilgnet_repro.schema import caffe_pb2

from .builder import WEIGHT_AND_BIAS, XAVIER, Fields, NetBuilder, constant


@dataclass(frozen=True)
class Inception:
    """Channels of one module: the table "#1x1, #3x3 reduce, #3x3, ..." of the paper."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool_proj: int

    @property
    def num_output(self) -> int:
        return self.one + self.three + self.five + self.pool_proj


MODULES: Mapping[str, Inception] = {
    "3a": Inception(64, 96, 128, 16, 32, 32),
    "3b": Inception(128, 128, 192, 32, 96, 64),
    "4a": Inception(192, 96, 208, 16, 48, 64),
    "4b": Inception(160, 112, 224, 24, 64, 64),
    "4c": Inception(128, 128, 256, 24, 64, 64),
    "4d": Inception(112, 144, 288, 32, 64, 64),
    "4e": Inception(256, 160, 320, 32, 128, 128),
    "5a": Inception(256, 160, 320, 32, 128, 128),
    "5b": Inception(384, 192, 384, 48, 128, 128),
}
POOL_AFTER = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}
HEAD_AFTER = {"4a": "loss1", "4d": "loss2", "5b": "loss3"}


def conv_relu(
    net: NetBuilder, block: str, part: str, bottom: str, num_output: int, *, kernel_size: int, **geometry: Any
) -> str:
    """Add the convolution ``block/part`` and its ReLU ``block/relu_part``."""
    top = net.convolution(
        f"{block}/{part}",
        bottom,
        num_output,
        kernel_size,
        weight_filler=XAVIER,
        bias_filler=constant(0.2),
        param=WEIGHT_AND_BIAS,
        **geometry,
    )
    return net.relu(f"{block}/relu_{part.removesuffix('_s2')}", top)


def stem(net: NetBuilder, data: str) -> str:
    """Add the layers before the first Inception module: 3×224×224 to 192×28×28."""
    x = conv_relu(net, "conv1", "7x7_s2", data, 64, kernel_size=7, pad=3, stride=2)
    x = net.pooling("pool1/3x3_s2", x, "MAX", 3, stride=2)
    x = net.lrn("pool1/norm1", x)
    x = conv_relu(net, "conv2", "3x3_reduce", x, 64, kernel_size=1)
    x = conv_relu(net, "conv2", "3x3", x, 192, kernel_size=3, pad=1)
    x = net.lrn("conv2/norm2", x)
    return net.pooling("pool2/3x3_s2", x, "MAX", 3, stride=2)


def inception(net: NetBuilder, module: str, bottom: str) -> str:
    """Add module ``3a`` to ``5b``: four branches concatenated over channels."""
    block, size = f"inception_{module}", MODULES[module]
    one = conv_relu(net, block, "1x1", bottom, size.one, kernel_size=1)
    three = conv_relu(net, block, "3x3_reduce", bottom, size.three_reduce, kernel_size=1)
    three = conv_relu(net, block, "3x3", three, size.three, kernel_size=3, pad=1)
    five = conv_relu(net, block, "5x5_reduce", bottom, size.five_reduce, kernel_size=1)
    five = conv_relu(net, block, "5x5", five, size.five, kernel_size=5, pad=2)
    pool = net.pooling(f"{block}/pool", bottom, "AVE", 3, stride=1, pad=1)
    pool = conv_relu(net, block, "pool_proj", pool, size.pool_proj, kernel_size=1)
    return net.concat(f"{block}/output", (one, three, five, pool))


def pooled_conv(net: NetBuilder, head: str, bottom: str) -> str:
    """Add the first layers of an auxiliary head: average pooling 5/3 and a 1×1 convolution, 128×4×4."""
    x = net.pooling(f"{head}/ave_pool", bottom, "AVE", 5, stride=3)
    return conv_relu(net, head, "conv", x, 128, kernel_size=1)


def head_scores(
    net: NetBuilder,
    head: str,
    bottom: str,
    classes: int,
    *,
    suffix: str = "",
    param: Sequence[Fields] = WEIGHT_AND_BIAS,
) -> str:
    """Add the class scores of ``loss1``, ``loss2`` (auxiliary heads) or ``loss3`` (the main head).

    ``suffix`` renames the classifier and ``param`` sets its learning rates, for nets fine-tuned from
    the 1000-class weights: Caffe copies weights by layer name.
    """
    if head == "loss3":
        x = net.pooling("pool5/7x7_s1", bottom, "AVE", 7, stride=1)
        x = net.dropout("pool5/drop_7x7_s1", x, 0.4)
    else:
        x = pooled_conv(net, head, bottom)
        x = net.inner_product(
            f"{head}/fc", x, 1024, weight_filler=XAVIER, bias_filler=constant(0.2), param=WEIGHT_AND_BIAS
        )
        x = net.relu(f"{head}/relu_fc", x)
        x = net.dropout(f"{head}/drop_fc", x, 0.7)
    return net.inner_product(
        f"{head}/classifier{suffix}", x, classes, weight_filler=XAVIER, bias_filler=constant(0), param=param
    )


def losses(net: NetBuilder, head: str, scores: str, *, weight: float, top_5: bool) -> None:
    """Add the loss and accuracies of a head; BVLC names the last loss differently from the other two."""
    name = "loss3/loss3" if head == "loss3" else f"{head}/loss"
    top = "loss3/loss3" if head == "loss3" else f"{head}/loss1"
    net.loss(name, scores, top=top, weight=weight)
    net.accuracy(f"{head}/top-1", scores)
    if top_5:
        net.accuracy(f"{head}/top-5", scores, top_k=5)


def body(
    net: NetBuilder,
    data: str,
    *,
    last: str = "5b",
    classes: int = 1000,
    training: bool,
    suffix: str = "",
    param: Sequence[Fields] = WEIGHT_AND_BIAS,
) -> str:
    """Add the trunk up to module ``last`` (4a, 4d or 5b) and the scores of the head that follows it.

    In training every head passed on the way adds its loss with weight 0.3, the last one with weight 1.
    """
    x, scores = stem(net, data), ""
    for module in list(MODULES)[: list(MODULES).index(last) + 1]:
        x = inception(net, module, x)
        head = HEAD_AFTER.get(module)
        if head and (training or module == last):
            scores = head_scores(net, head, x, classes, suffix=suffix, param=param)
            if training:
                losses(net, head, scores, weight=1 if module == last else 0.3, top_5=classes > 5)
        if module in POOL_AFTER and module != last:
            x = net.pooling(POOL_AFTER[module], x, "MAX", 3, stride=2)
    return scores


def train_val() -> caffe_pb2.NetParameter:
    """Return the ImageNet net with its three losses; means are BGR."""
    net = NetBuilder("GoogleNet")
    mean = (104, 117, 123)
    for phase, batch_size in (("TRAIN", 32), ("TEST", 50)):
        source = "train_lmdb" if phase == "TRAIN" else "val_lmdb"
        data = net.data(
            f"../../data/ILSVRC12/{source}",
            batch_size=batch_size,
            crop_size=224,
            mirror=phase == "TRAIN",
            mean_value=mean,
            phase=phase,
        )
    body(net, data, training=True)
    return net.net


def deploy() -> caffe_pb2.NetParameter:
    """The main branch only: 3×224×224 BGR to 1000 probabilities, 6,998,552 parameters."""
    net = NetBuilder("GoogleNet")
    net.softmax("prob", body(net, net.input("data", 10, 3, 224, 224), training=False))
    return net.net
