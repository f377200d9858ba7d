"""Single-shot detectors (Liu et al., ECCV 2016) at 300×300: on VGG-16, and on MobileNet.

In both, each feature map predicts box offsets and class scores for its default boxes, the predictions of all maps
are concatenated, and DetectionOutput decodes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ilgnet_repro.schema import caffe_pb2

from . import vgg
from .builder import MSRA, WEIGHT_AND_BIAS, XAVIER, Fields, NetBuilder, constant, without_none

SIZE = 300
CLASSES = 21  # the twenty of Pascal VOC and the background


@dataclass(frozen=True)
class Source:
    """A feature map with predictions, and its default boxes; sizes in pixels of the input."""

    blob: str
    min_size: float
    max_size: float | None
    aspect_ratio: Sequence[float]
    step: float | None = None

    @property
    def boxes(self) -> int:
        """Boxes per position: the square, the larger square, and each aspect ratio with its inverse."""
        return 1 + (self.max_size is not None) + 2 * len(self.aspect_ratio)


VGG_SOURCES = (
    Source("conv4_3_norm", 30, 60, (2,), 8),
    Source("fc7", 60, 111, (2, 3), 16),
    Source("conv6_2", 111, 162, (2, 3), 32),
    Source("conv7_2", 162, 213, (2, 3), 64),
    Source("conv8_2", 213, 264, (2,), 100),
    Source("conv9_2", 264, 315, (2,), 300),
)
MOBILENET_SOURCES = (
    Source("conv11", 60, None, (2,)),
    Source("conv13", 105, 150, (2, 3)),
    Source("conv14_2", 150, 195, (2, 3)),
    Source("conv15_2", 195, 240, (2, 3)),
    Source("conv16_2", 240, 285, (2, 3)),
    Source("conv17_2", 285, 300, (2, 3)),
)


def predict(
    net: NetBuilder, source: Source, data: str, kernel_size: int, filler: Fields
) -> tuple[str, str, str]:
    """Add the predictions of one feature map; return its flattened offsets and scores, and its default boxes."""

    def flat(kind: str, num_output: int) -> str:
        name = f"{source.blob}_mbox_{kind}"
        x = net.convolution(
            name,
            source.blob,
            num_output,
            kernel_size,
            pad=kernel_size // 2 or None,
            weight_filler=filler,
            bias_filler=constant(0),
            param=WEIGHT_AND_BIAS,
        )
        x = net.layer("Permute", f"{name}_perm", x, permute_param={"order": (0, 2, 3, 1)})
        return net.layer("Flatten", f"{name}_flat", x, flatten_param={"axis": 1})

    boxes = without_none(
        min_size=[source.min_size],
        max_size=None if source.max_size is None else [source.max_size],
        aspect_ratio=source.aspect_ratio,
        flip=True,
        clip=False,
        variance=(0.1, 0.1, 0.2, 0.2),
        step=source.step,
        offset=0.5,
    )
    return (
        flat("loc", 4 * source.boxes),
        flat("conf", CLASSES * source.boxes),
        net.layer("PriorBox", f"{source.blob}_mbox_priorbox", (source.blob, data), prior_box_param=boxes),
    )


def detect(
    net: NetBuilder,
    data: str,
    sources: Sequence[Source],
    *,
    kernel_size: int,
    filler: Fields,
    top_k: int,
    keep_top_k: int,
    confidence_threshold: float,
) -> None:
    """Add the predictions of all feature maps and the layers that decode them.

    The output has rows (image, label, score, xmin, ymin, xmax, ymax). Non-maximum suppression is applied to the
    ``top_k`` best boxes above the threshold of each class; at most ``keep_top_k`` boxes per image are returned.
    """
    predictions = [predict(net, source, data, kernel_size, filler) for source in sources]
    loc, conf, boxes = zip(*predictions, strict=True)
    all_loc = net.layer("Concat", "mbox_loc", loc, concat_param={"axis": 1})
    all_conf = net.layer("Concat", "mbox_conf", conf, concat_param={"axis": 1})
    all_boxes = net.layer("Concat", "mbox_priorbox", boxes, concat_param={"axis": 2})
    shape = {"dim": (0, -1, CLASSES)}
    x = net.layer("Reshape", "mbox_conf_reshape", all_conf, reshape_param={"shape": shape})
    x = net.layer("Softmax", "mbox_conf_softmax", x, softmax_param={"axis": 2})
    x = net.layer("Flatten", "mbox_conf_flatten", x, flatten_param={"axis": 1})
    output: Fields = {
        "num_classes": CLASSES,
        "share_location": True,
        "background_label_id": 0,
        "nms_param": {"nms_threshold": 0.45, "top_k": top_k},
        "code_type": "CENTER_SIZE",
        "keep_top_k": keep_top_k,
        "confidence_threshold": confidence_threshold,
    }
    net.layer(
        "DetectionOutput",
        "detection_out",
        (all_loc, x, all_boxes),
        phase="TEST",
        detection_output_param=output,
    )


def vgg_300() -> caffe_pb2.NetParameter:
    """SSD300 on VGG-16: 8,732 default boxes, 26,285,486 parameters."""
    net = NetBuilder("VGG_VOC0712_SSD_300x300_deploy")

    def linear(name: str, bottom: str, num_output: int, kernel_size: int, **geometry: Any) -> str:
        return net.convolution(
            name,
            bottom,
            num_output,
            kernel_size,
            weight_filler=XAVIER,
            bias_filler=constant(0),
            param=WEIGHT_AND_BIAS,
            **geometry,
        )

    def conv(name: str, bottom: str, num_output: int, kernel_size: int, pad: int) -> str:
        return net.relu(vgg.relu_name(name), linear(name, bottom, num_output, kernel_size, pad=pad))

    def extra(name: str, bottom: str, num_output: int, kernel_size: int, **geometry: int) -> str:
        return net.relu(f"{name}_relu", linear(name, bottom, num_output, kernel_size, **geometry))

    def pool(name: str, bottom: str) -> str:
        if name == "pool5":  # stride 1; fc6 is dilated instead
            return net.pooling(name, bottom, "MAX", 3, stride=1, pad=1)
        return net.pooling(name, bottom, "MAX", 2, stride=2)

    data = net.input("data", 1, 3, SIZE, SIZE)
    x = vgg.trunk(conv, pool, data, vgg.DEPTH_16)
    x = net.relu("relu6", linear("fc6", x, 1024, 3, pad=6, dilation=6))
    x = net.relu("relu7", linear("fc7", x, 1024, 1))
    x = extra("conv6_2", extra("conv6_1", x, 256, 1), 512, 3, pad=1, stride=2)
    x = extra("conv7_2", extra("conv7_1", x, 128, 1), 256, 3, pad=1, stride=2)
    x = extra("conv8_2", extra("conv8_1", x, 128, 1), 256, 3)
    extra("conv9_2", extra("conv9_1", x, 128, 1), 256, 3)
    net.layer(
        "Normalize",
        "conv4_3_norm",
        "conv4_3",
        norm_param={"across_spatial": False, "scale_filler": constant(20), "channel_shared": False},
    )
    detect(
        net,
        data,
        VGG_SOURCES,
        kernel_size=3,
        filler=XAVIER,
        top_k=400,
        keep_top_k=200,
        confidence_threshold=0.01,
    )
    return net.net


def mobilenet_300() -> caffe_pb2.NetParameter:
    """MobileNet-SSD with BatchNorm folded into the convolutions: 1,917 default boxes."""
    net = NetBuilder("MobileNet-SSD")

    def conv(
        name: str, bottom: str, num_output: int, kernel_size: int, *, stride: int = 1, group: int = 1
    ) -> str:
        x = net.convolution(
            name,
            bottom,
            num_output,
            kernel_size,
            pad=1 if kernel_size == 3 else None,
            stride=None if stride == 1 else stride,
            group=None if group == 1 else group,
            weight_filler=MSRA,
            bias_filler=constant(0),
            param=WEIGHT_AND_BIAS,
        )
        return net.relu(f"{name}/relu", x)

    data = net.input("data", 1, 3, SIZE, SIZE)
    x, channels = conv("conv0", data, 32, 3, stride=2), 32
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for number, width in enumerate(widths, start=1):
        stride = 2 if number in (2, 4, 6, 12) else 1
        x = conv(f"conv{number}/dw", x, channels, 3, stride=stride, group=channels)
        x, channels = conv(f"conv{number}", x, width, 1), width
    for number, width in ((14, 256), (15, 128), (16, 128), (17, 64)):
        x = conv(f"conv{number}_1", x, width, 1)
        x = conv(f"conv{number}_2", x, 2 * width, 3, stride=2)
    detect(
        net,
        data,
        MOBILENET_SOURCES,
        kernel_size=1,
        filler=MSRA,
        top_k=100,
        keep_top_k=100,
        confidence_threshold=0.25,
    )
    return net.net
