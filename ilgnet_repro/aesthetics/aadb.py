"""The ranking network of AADB's authors (Kong et al., ECCV 2016): AlexNet with a head per attribute and one for the score.

The authors released its weights by themselves (``initModel.caffemodel``, earlier ``wholeNetInitial.caffemodel``) for
non-commercial use.  The layers and their names are those of that release, which users' programs and ports of it to
other frameworks state: pooling before LRN, as in CaffeNet, and the score from the hidden features of all heads.

Their demo resizes the whole image to 227 and subtracts the centre of ``mean_AADB_regression_warp256.binaryproto``; give
that file as the mean (256 x 256, the centre of 227 taken, is what the network was trained on).
"""

from __future__ import annotations

from typing import Any

from ilgnet_repro.schema import caffe_pb2

from ..zoo.builder import NEW_WEIGHT_AND_BIAS, WEIGHT_AND_BIAS, NetBuilder

ATTRIBUTES = (
    "BalancingElement", "ColorHarmony", "Content", "DoF", "Light", "MotionBlur", "Object", "Repetition", "RuleOfThirds",
    "Symmetry", "VividColor",
)  # fmt: skip


def deploy() -> caffe_pb2.NetParameter:
    """3×227×227 BGR to eleven attributes from -1 to 1 (``fc9_...``) and the score from 0 to 1 (``fc11_score``)."""
    net = NetBuilder("AADB")

    def conv(number: int, bottom: str, num_output: int, kernel_size: int, **geometry: Any) -> str:
        x = net.convolution(
            f"conv{number}", bottom, num_output, kernel_size, param=WEIGHT_AND_BIAS, **geometry
        )
        return net.relu(f"relu{number}", x)

    def pool(number: int, bottom: str) -> str:
        return net.pooling(f"pool{number}", bottom, "MAX", 3, stride=2)

    def dense(name: str, bottom: str, num_output: int) -> str:
        return net.inner_product(name, bottom, num_output, param=NEW_WEIGHT_AND_BIAS)

    x = conv(1, net.input("imgLow", 1, 3, 227, 227), 96, 11, stride=4)
    x = net.lrn("norm1", pool(1, x))
    x = conv(2, x, 256, 5, pad=2, group=2)
    x = net.lrn("norm2", pool(2, x))
    x = conv(3, x, 384, 3, pad=1)
    x = conv(4, x, 384, 3, pad=1, group=2)
    x = pool(5, conv(5, x, 256, 3, pad=1, group=2))
    for number in (6, 7):
        x = net.relu(f"relu{number}", net.inner_product(f"fc{number}", x, 4096, param=WEIGHT_AND_BIAS))
        x = net.dropout(f"drop{number}", x, 0.5)
    heads = [net.relu("relu8new", dense("fc8new", x, 512))]
    for name in ATTRIBUTES:
        heads.append(net.relu(f"relu8_{name}", dense(f"fc8_{name}", x, 256)))
        dense(f"fc9_{name}", heads[-1], 1)
    merged = net.relu("relu10_merge", dense("fc10_merge", net.concat("Concat9", heads), 128))
    dense("fc11_score", merged, 1)
    return net.net
