"""Weights of Caffe's own VGG-16, MobileNet v1 and BN-Inception for the backbones, read from a caffemodel by layer name.

The images of these weights are prepared otherwise than for ImageNet's state dicts: in BGR from 0 to 255, less a mean per
channel.  `load_caffe_trunk` returns that preprocessing, and a model states it from then on, so that the backbone's
features equal the Caffe net's blob exactly, at the border of the image too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...caffe.caffemodel import open_caffemodel
from ...caffe.param_sharing import show_shape
from ...errors import WeightsError
from ...reading.preprocessing import Preprocessing
from ...runtime.model import Model
from .backbones import BN_INCEPTION, VGG16, Backbone, InceptionV2, MobileNetV1, MobileNetV2, ResNet18

_SIZE = (224, 224)
VGG_ILSVRC = Preprocessing(_SIZE, "crop", _SIZE, "BGR", (103.939, 116.779, 123.68))
MOBILENET = Preprocessing(_SIZE, "crop", _SIZE, "BGR", (103.94, 116.78, 123.68), scale=0.017)

# A normalization after the convolution C: BatchNorm and Scale, or, without a second name, a fork's BN with all four blobs.
_NORMALIZATIONS = (("{}/bn", "{}/scale"), ("{}/bn", "{}/bn/sc"), ("{}_bn", "{}_scale"), ("{}_bn", ""))


@dataclass(frozen=True)
class Trunk:
    """How a backbone's parameters are called in Caffe.

    ``layers`` maps the name of each convolution or dense layer in torch to Caffe's; ``normalizations`` the name of a
    convolution in Caffe to that of its normalization in torch.  ``classification`` is what a trunk may lack.
    """

    how: Preprocessing
    layers: Mapping[str, str]
    normalizations: Mapping[str, str]
    classification: tuple[str, ...]


def _vgg16(backbone: Backbone) -> Trunk:
    layers = {}
    position = 0
    for stage, (_, count) in enumerate(VGG16.stages, 1):
        for index in range(1, count + 1):
            layers[f"features.{position}"] = f"conv{stage}_{index}"
            position += 2  # the convolution and its ReLU
        position += 1  # the pooling
    dense = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
    return Trunk(VGG_ILSVRC, {**layers, **dense}, {}, ("fc6", "fc7", "fc8"))


def _mobilenet_v1(backbone: Backbone) -> Trunk:
    names = [
        "conv1",
        *(f"{name}/{part}" for name, _, _ in MobileNetV1.blocks for part in ("dw", "sep")),
    ]
    own = {name: f"trunk.{name.replace('/', '_')}" for name in names}
    return Trunk(
        MOBILENET, {**{one: name for name, one in own.items()}, "fc7": "fc7"},
        {name: f"{one}_bn" for name, one in own.items()}, ("fc7",),
    )  # fmt: skip


def _inception_v2(backbone: Backbone) -> Trunk:
    own = [name for name, module in backbone.named_children() if isinstance(module, nn.Conv2d)]
    caffe = {name: _with_slashes(name) for name in own}
    classification = ("fc", "fc_action", "loss3/classifier")
    return Trunk(
        BN_INCEPTION,
        {**caffe, "last_linear": "fc"},
        {one: f"{name}_bn" for name, one in caffe.items()},
        classification,
    )


def _with_slashes(name: str) -> str:
    """Return Caffe's name: ``inception_3a/double_3x3_1`` for ``inception_3a_double_3x3_1``, ``conv1/7x7_s2``."""
    parts = name.split("_")
    stem = 2 if parts[0] == "inception" else 1
    return f"{'_'.join(parts[:stem])}/{'_'.join(parts[stem:])}"


_TRUNKS = {VGG16: _vgg16, MobileNetV1: _mobilenet_v1, InceptionV2: _inception_v2}
# Why a backbone takes no caffemodel.  Of MobileNet v2 the zoo has the Caffe net (`zoo.mobilenet`); the authors
# of ResNet released 50, 101 and 152 layers for Caffe, and others name the layers of 18 in several ways.
_OTHERS = {
    MobileNetV2: "the Caffe release of MobileNet v2 expands in conv2_1 and halves the plane at 96 channels, not at 64, so "
    "it does not fit",
    ResNet18: "the layer names of ResNet-18 in Caffe are not known here",
}


def load_caffe_trunk(backbone: nn.Module, path: str | os.PathLike[str]) -> tuple[Preprocessing, list[str]]:
    """Load a caffemodel into a backbone; return the weights' preprocessing, and the file's layers that were not used.

    Of BatchNorm and Scale become torch's running statistics, weight and bias.  A classification layer that the backbone
    does not have, or that the file lacks, stays as it is.  Raises WeightsError, nothing loaded then, for a backbone whose
    Caffe releases are another network, and a layer that is missing, unknown, or of another shape.
    """
    for kind, why in _OTHERS.items():
        if isinstance(backbone, kind):
            raise WeightsError(f"{path}: {why}; give the published state dict")
    found = next((make for kind, make in _TRUNKS.items() if isinstance(backbone, kind)), None)
    if found is None or not isinstance(backbone, Backbone):
        raise WeightsError(f"{path}: {type(backbone).__name__} takes no caffemodel; give safetensors")
    trunk = found(backbone)
    held = {layer.name: layer.blobs for layer in open_caffemodel(path).layers if layer.blobs}
    file = _File(
        str(path), {name: [torch.from_numpy(blob.array()) for blob in blobs] for name, blobs in held.items()}
    )
    own = backbone.state_dict()
    taken: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, layer in trunk.layers.items():
        if f"{name}.weight" not in own:
            continue
        if layer not in file.layers and layer in trunk.classification:
            continue
        wanted = {key: own[key] for key in (f"{name}.weight", f"{name}.bias") if key in own}
        taken |= file.take(layer, wanted)
        used.add(layer)
        if layer in trunk.normalizations:
            normalized, names = file.normalization(layer, trunk.normalizations[layer], own)
            taken |= normalized
            used |= names
    unused = [name for name in file.layers if name not in used]
    unknown = [name for name in unused if name not in trunk.classification and not name.startswith("loss")]
    if unknown:
        raise WeightsError(
            f"{path}: layer {unknown[0]!r}{_more(unknown)} is unknown to {type(backbone).__name__}; is it another "
            "network's file?"
        )
    backbone.load_state_dict({**own, **taken})
    return trunk.how, unused


def start_from_caffe(model: Model, part: str, path: str | os.PathLike[str]) -> None:
    """Load a caffemodel into a part of a model, which states the weights' preprocessing from then on.

    Raises WeightsError as `load_caffe_trunk` does, and where another part of the model takes the same images.
    """
    others = [name for name, one in model.named_children() if isinstance(one, Backbone) and name != part]
    if others:
        raise WeightsError(
            f"{path}: images prepared for it do not suit {', '.join(others)} of the same model; "
            "give the published state dict"
        )
    how, _ = load_caffe_trunk(getattr(model, part), path)
    stated = model.about.preprocessing
    if stated is not None:
        how = replace(how, path=stated.path, size=stated.size, resize=stated.resize)
    model.about = replace(model.about, preprocessing=how)


@dataclass(frozen=True)
class _File:
    """The layers of a caffemodel with their blobs."""

    path: str
    layers: Mapping[str, list[Tensor]]

    def take(self, layer: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a layer's blobs under these names, in their shapes; a bias that the file lacks is zero."""
        blobs = self._blobs(layer)
        found = {}
        for index, (name, value) in enumerate(wanted.items()):
            if index == len(blobs) and name.endswith(".bias"):
                found[name] = torch.zeros_like(value)
                continue
            if index >= len(blobs) or blobs[index].numel() != value.numel() or not _fits(blobs[index], value):
                shown = show_shape(tuple(blobs[index].shape)) if index < len(blobs) else "missing"
                raise WeightsError(
                    f"{self.path}: blob {index} of layer {layer!r} is {shown}, the model needs "
                    f"{show_shape(tuple(value.shape))}; is it another network's file?"
                )
            found[name] = blobs[index].reshape(value.shape).clone()
        if len(blobs) > len(wanted):
            raise WeightsError(
                f"{self.path}: layer {layer!r} has {len(blobs)} blobs, the model takes {len(wanted)}; is it another "
                "network's file?"
            )
        return found

    def normalization(
        self, layer: str, name: str, own: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], set[str]]:
        """Return the normalization after a convolution as torch's BatchNorm, and the layers that it was read from."""
        for statistics, scale in ((one.format(layer), other.format(layer)) for one, other in _NORMALIZATIONS):
            if statistics in self.layers and (not scale or scale in self.layers):
                break
        else:
            raise WeightsError(
                f"{self.path}: has no normalization after layer {layer!r} ({layer}/bn and {layer}/scale); is it another "
                "network's file?"
            )
        if scale:
            mean, variance, *factor = self._blobs(statistics)
            # Caffe keeps sums and the number that they are to be divided by.
            by = 1.0 if not factor else (0.0 if float(factor[0]) == 0 else 1 / float(factor[0]))
            values = [*self._blobs(scale), mean * by, variance * by]
        else:
            values = list(self._blobs(statistics))  # slope, bias, mean, variance
        fields = ("weight", "bias", "running_mean", "running_var")
        if len(values) != len(fields):
            raise WeightsError(
                f"{self.path}: layers {statistics!r} and {scale!r} have {len(values)} blobs of a normalization, not 4; "
                "is it another network's file?"
            )
        found = {}
        for field, value in zip(fields, values, strict=True):
            wanted = own[f"{name}.{field}"]
            if value.numel() != wanted.numel():
                raise WeightsError(
                    f"{self.path}: layer {statistics!r} is of {value.numel()} channels, the model needs "
                    f"{wanted.numel()}; is it another network's file?"
                )
            found[f"{name}.{field}"] = value.reshape(wanted.shape).clone()
        return found, {statistics, scale} - {""}

    def _blobs(self, layer: str) -> list[Tensor]:
        if layer not in self.layers:
            raise WeightsError(f"{self.path}: has no layer {layer!r}; is it another network's file?")
        return self.layers[layer]


def _fits(blob: Tensor, value: Tensor) -> bool:
    """Whether a blob is the parameter but for axes of one, as dense weights and biases of old files have them."""
    return list(_longer(blob)) == list(_longer(value))


def _longer(tensor: Tensor) -> Iterator[int]:
    return (length for length in tensor.shape if length != 1)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


__all__ = ["MOBILENET", "VGG_ILSVRC", "load_caffe_trunk", "start_from_caffe"]
