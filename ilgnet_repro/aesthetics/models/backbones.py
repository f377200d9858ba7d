"""Backbones by the parameter names of the published weights: ResNet-18, MobileNet v1 and v2, VGG-16, BN-Inception.

Each is built for ImageNet or Places365 classes and has a ``features_of`` method: N x 3 x H x W, prepared as its ``how``
states, to N x `channels`.  Sources of the names: torchvision (ResNet-18,
MobileNet v2, VGG-16), the PyTorch port of BN-Inception's Caffe net (Inception v2); MobileNet v1, which has none, has the
names of its Caffe net.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...about import About
from ...errors import GraphError
from ...known import ScoreAt
from ...reading.preprocessing import Preprocessing
from ...runtime.model import FeatureMap

# ImageNet's mean and standard deviation per channel, RGB, of values from 0 to 1.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


# How images are prepared for weights of ImageNet's state dicts.
IMAGENET = Preprocessing(
    (224, 224), "crop", (224, 224), "RGB", tuple(255 * value for value in MEAN),
    deviation=tuple(255 * value for value in DEVIATION),
)  # fmt: skip
# For weights of BN-Inception, which stem from Caffe: so its PyTorch port states it too.
BN_INCEPTION = Preprocessing((224, 224), "crop", (224, 224), "BGR", (104.0, 117.0, 128.0))


def about_images(score: ScoreAt | None, *, resize: int = 224, how: Preprocessing = IMAGENET) -> About:
    """Return what is known of a model of 224 x 224 images: they are resized to ``resize``, and the centre is taken.

    ``how`` states the order of channels, mean and scale of the model's backbone.
    """
    return About(replace(how, resize=(resize, resize)), score=score)


class Backbone(nn.Module):
    """A classification network whose last hidden features others build on."""

    channels: ClassVar[int]  # of `features`
    how: ClassVar[Preprocessing] = IMAGENET  # that its published weights were trained with
    least_side: ClassVar[int] = 32  # pixels

    def __init__(self) -> None:
        super().__init__()
        self.last_map = FeatureMap()

    def features_of(self, x: Tensor) -> Tensor:
        """Return the features of images, N x `channels`."""
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise GraphError for images of a size that the backbone does not take, from ``least_side`` on."""

    def map_of(self, x: Tensor) -> Tensor:
        """Return the last feature map, N x C x h x w, which ends in `last_map`: what Grad-CAM looks at."""
        raise NotImplementedError


# ---------------------------------------------------------------------- ResNet-18 (He et al., 2016)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which a 1x1 convolution fits where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        top = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(top)) + self.downsample(x))


class ResNet18(Backbone):
    """ResNet-18; 11,689,512 parameters with 1,000 classes, 11,363,757 with the 365 of Places365."""

    channels = 512

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths), 1):
            blocks = BasicBlock(inputs, outputs, 1 if index == 1 else 2), BasicBlock(outputs, outputs, 1)
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, classes)

    def map_of(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        top: Tensor = self.last_map(x)
        return top

    def features_of(self, x: Tensor) -> Tensor:
        return self.map_of(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = self.fc(self.features_of(x))
        return top


# ---------------------------------------------------------------------- MobileNet v2 (Sandler et al., 2018)


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, its normalization, and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widened by ``expansion``, filtered channel by channel, projected; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_bn_relu6(inputs, hidden, 1, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand, conv_bn_relu6(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = self.conv(x)
        return x + top if self.is_residual else top


class MobileNetV2(Backbone):
    """MobileNet v2 of width 1; 3,504,872 parameters with 1,000 classes."""

    channels = 1280
    # Expansion, channels, repetitions, stride of the first: table 2 of the paper.
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(3, 32, 3, 2)]
        inputs = 32
        for expansion, outputs, count, stride in self.stages:
            for index in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        layers.append(conv_bn_relu6(inputs, self.channels, 1, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(self.channels, classes))

    def map_of(self, x: Tensor) -> Tensor:
        top: Tensor = self.last_map(self.features(x))
        return top

    def features_of(self, x: Tensor) -> Tensor:
        return self.map_of(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = self.classifier(self.features_of(x))
        return top


# ---------------------------------------------------------------------- MobileNet v1 (Howard et al., 2017)


class MobileNetV1(Backbone):
    """MobileNet v1 of width 1; 4,231,976 parameters with 1,000 classes.

    The names are those of the Caffe net that people have (``conv2_1_dw`` for ``conv2_1/dw``).
    """

    channels = 1024
    # Name, output channels, stride of the filter that is applied channel by channel.
    blocks = (
        ("conv2_1", 64, 1), ("conv2_2", 128, 2), ("conv3_1", 128, 1), ("conv3_2", 256, 2), ("conv4_1", 256, 1),
        ("conv4_2", 512, 2), ("conv5_1", 512, 1), ("conv5_2", 512, 1), ("conv5_3", 512, 1), ("conv5_4", 512, 1),
        ("conv5_5", 512, 1), ("conv5_6", 1024, 2), ("conv6", 1024, 1),
    )  # fmt: skip

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers = OrderedDict(self._layer("conv1", 3, 32, 3, 2))
        inputs = 32
        for name, outputs, stride in self.blocks:
            layers.update(self._layer(f"{name}_dw", inputs, inputs, 3, stride, inputs))
            layers.update(self._layer(f"{name}_sep", inputs, outputs, 1, 1))
            inputs = outputs
        self.trunk = nn.Sequential(layers)
        self.fc7 = nn.Linear(self.channels, classes)

    @staticmethod
    def _layer(
        name: str, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
    ) -> list[tuple[str, nn.Module]]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [(name, convolution), (f"{name}_bn", nn.BatchNorm2d(outputs)), (f"{name}_relu", nn.ReLU())]

    def map_of(self, x: Tensor) -> Tensor:
        top: Tensor = self.last_map(self.trunk(x))
        return top

    def features_of(self, x: Tensor) -> Tensor:
        return self.map_of(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = self.fc7(self.features_of(x))
        return top


# ---------------------------------------------------------------------- VGG-16 (Simonyan and Zisserman, 2015)


class VGG16(Backbone):
    """VGG-16; 138,357,544 parameters with 1,000 classes.  Its features are those of the second dense layer.

    ``dense=False`` leaves the dense layers out: the features are then the last map's, averaged (N x 512).
    """

    channels = 4096
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

    def __init__(self, classes: int = 1000, *, dense: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, count in self.stages:
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.is_dense = dense
        if dense:
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
                nn.Linear(4096, classes),
            )  # fmt: skip

    def map_of(self, x: Tensor) -> Tensor:
        top: Tensor = self.last_map(self.features(x))
        return top

    def features_of(self, x: Tensor) -> Tensor:
        found = self.map_of(x)
        if not self.is_dense:
            return found.mean((2, 3))
        hidden: Tensor = self.classifier[:6](F.adaptive_avg_pool2d(found, 7).flatten(1))
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = self.classifier[6](self.features_of(x))
        return top


# ---------------------------------------------------------------------- Inception v2: BN-Inception (Ioffe and Szegedy, 2015)


class InceptionV2(Backbone):
    """BN-Inception; 11,295,240 parameters with 1,000 classes.

    The Caffe net's names with ``_`` for ``/`` (``inception_3a_double_3x3_1``), as its PyTorch port has them; every
    convolution has a bias and a normalization ``..._bn``.
    """

    channels = 1024
    how = BN_INCEPTION
    # Module: channels of 1x1; of 3x3 and its reduction; of the double 3x3 and its reduction; of the pool's projection,
    # 0 for none; the pool.  Modules without 1x1 halve the plane.  Table of the paper's appendix.
    inception_modules: ClassVar[dict[str, tuple[int, tuple[int, int], tuple[int, int], int, str]]] = {
        "3a": (64, (64, 64), (64, 96), 32, "average"),
        "3b": (64, (64, 96), (64, 96), 64, "average"),
        "3c": (0, (128, 160), (64, 96), 0, "max"),
        "4a": (224, (64, 96), (96, 128), 128, "average"),
        "4b": (192, (96, 128), (96, 128), 128, "average"),
        "4c": (160, (128, 160), (128, 160), 128, "average"),
        "4d": (96, (128, 192), (160, 192), 128, "average"),
        "4e": (0, (128, 192), (192, 256), 0, "max"),
        "5a": (352, (192, 320), (160, 224), 128, "average"),
        "5b": (352, (192, 320), (192, 224), 128, "max"),
    }

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._add("conv1_7x7_s2", 3, 64, 7, 2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        inputs = 192
        for name, (
            plain,
            (reduced, three),
            (double_reduced, double),
            projected,
            _,
        ) in self.inception_modules.items():
            stem, stride = f"inception_{name}", 1 if plain else 2
            if plain:
                self._add(f"{stem}_1x1", inputs, plain, 1)
            self._add(f"{stem}_3x3_reduce", inputs, reduced, 1)
            self._add(f"{stem}_3x3", reduced, three, 3, stride)
            self._add(f"{stem}_double_3x3_reduce", inputs, double_reduced, 1)
            self._add(f"{stem}_double_3x3_1", double_reduced, double, 3)
            self._add(f"{stem}_double_3x3_2", double, double, 3, stride)
            if projected:
                self._add(f"{stem}_pool_proj", inputs, projected, 1)
            inputs = plain + three + double + (projected or inputs)
        self.last_linear = nn.Linear(inputs, classes)

    def _add(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        setattr(self, name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))
        setattr(self, f"{name}_bn", nn.BatchNorm2d(outputs))

    def _run(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))
        return x

    def check_size(self, height: int, width: int) -> None:
        """Raise GraphError where a plane before 3c or 4e is odd: there pooling gives one row less than the convolutions."""
        for side in (height, width):
            plane = (side + 1) // 2 // 4  # conv1 rounds up; two times pooling rounds down
            if plane % 4:
                raise GraphError(
                    f"inception_v2: images are {height}x{width}, whose planes cannot be halved five times; give sides that "
                    "are multiples of 32"
                )

    def map_of(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self._run(x, "conv1_7x7_s2"), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self._run(x, "conv2_3x3_reduce", "conv2_3x3"), 3, 2, ceil_mode=True)
        for name, (plain, _, _, projected, pool) in self.inception_modules.items():
            stem = f"inception_{name}"
            tops = [self._run(x, f"{stem}_1x1")] if plain else []
            tops.append(self._run(x, f"{stem}_3x3_reduce", f"{stem}_3x3"))
            tops.append(self._run(x, *(f"{stem}_double_3x3_{part}" for part in ("reduce", "1", "2"))))
            if not plain:
                pooled = F.max_pool2d(x, 3, 2, ceil_mode=True)
            else:
                pooled = F.avg_pool2d(x, 3, 1, 1) if pool == "average" else F.max_pool2d(x, 3, 1, 1)
            tops.append(self._run(pooled, f"{stem}_pool_proj") if projected else pooled)
            x = torch.cat(tops, 1)
        top: Tensor = self.last_map(x)
        return top

    def features_of(self, x: Tensor) -> Tensor:
        return self.map_of(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = self.last_linear(self.features_of(x))
        return top


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": ResNet18,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "vgg16": VGG16,
    "inception_v2": InceptionV2,
}
