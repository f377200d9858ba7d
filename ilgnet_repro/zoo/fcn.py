"""FCN-8s (Long et al., CVPR 2015): a fully convolutional VGG-16, upsampled to full resolution in three steps."""

from __future__ import annotations

from ilgnet_repro.schema import caffe_pb2

from . import vgg
from .builder import WEIGHT_AND_BIAS, NetBuilder

CLASSES = 21  # the twenty of Pascal VOC and the background
FIXED = ({"lr_mult": 0},)  # upsampling is bilinear and not learned


def deploy_8s(height: int = 500, width: int = 500) -> caffe_pb2.NetParameter:
    """3×H×W BGR to 21×H×W class scores, 134,489,759 parameters; other H and W by reshaping the input."""
    net = NetBuilder("FCN-8s")

    def conv(name: str, bottom: str, num_output: int, kernel_size: int, pad: int) -> str:
        x = net.convolution(name, bottom, num_output, kernel_size, pad=pad, param=WEIGHT_AND_BIAS)
        return net.relu(vgg.relu_name(name), x)

    def pool(name: str, bottom: str) -> str:
        return net.pooling(name, bottom, "MAX", 2, stride=2)

    def score(name: str, bottom: str) -> str:
        return net.convolution(name, bottom, CLASSES, 1, pad=0, param=WEIGHT_AND_BIAS)

    def upscore(name: str, bottom: str, kernel_size: int, stride: int) -> str:
        return net.convolution(
            name, bottom, CLASSES, kernel_size, stride=stride, bias=False, param=FIXED, type_="Deconvolution"
        )

    def crop(name: str, bottom: str, like: str, offset: int) -> str:
        return net.layer("Crop", name, (bottom, like), crop_param={"axis": 2, "offset": [offset]})

    def fuse(name: str, coarse: str, fine: str) -> str:
        return net.layer("Eltwise", name, (coarse, fine), eltwise_param={"operation": "SUM"})

    data = net.input("data", 1, 3, height, width)
    # With a padding of 100, fc6's 7×7 window fits even small images; the Crop layers remove it again.
    x = vgg.trunk(conv, pool, data, vgg.DEPTH_16, first_pad=100)
    x = net.dropout("drop6", conv("fc6", x, 4096, 7, pad=0), 0.5)
    x = net.dropout("drop7", conv("fc7", x, 4096, 1, pad=0), 0.5)
    x = upscore("upscore2", score("score_fr", x), 4, 2)
    x = fuse("fuse_pool4", x, crop("score_pool4c", score("score_pool4", "pool4"), x, 5))
    x = upscore("upscore_pool4", x, 4, 2)
    x = fuse("fuse_pool3", x, crop("score_pool3c", score("score_pool3", "pool3"), x, 9))
    x = upscore("upscore8", x, 16, 8)
    crop("score", x, data, 31)
    return net.net
