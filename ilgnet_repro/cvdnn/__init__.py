"""cv2.dnn: OpenCV 4's reader of Caffe nets and what goes with it, for applications on OpenCV 5."""

from __future__ import annotations

from typing import Any

from .. import opencv as cv2
from .constants import *  # noqa: F403
from .images import (
    Image2BlobParams,
    NMSBoxes,
    NMSBoxesBatched,
    NMSBoxesRotated,
    blobFromImage,
    blobFromImages,
    blobFromImagesWithParams,
    blobFromImageWithParams,
    imagesFromBlob,
    softNMSBoxes,
)
from .models import ClassificationModel, DetectionModel, KeypointsModel, Model, SegmentationModel
from .net import Layer, Net, NoSuchName
from .reading import readNet, readNetFromCaffe

__all__ = [
    "ClassificationModel",
    "DetectionModel",
    "Image2BlobParams",
    "KeypointsModel",
    "Layer",
    "Model",
    "NMSBoxes",
    "NMSBoxesBatched",
    "NMSBoxesRotated",
    "Net",
    "SegmentationModel",
    "blobFromImage",
    "blobFromImageWithParams",
    "blobFromImages",
    "blobFromImagesWithParams",
    "imagesFromBlob",
    "readNet",
    "readNetFromCaffe",
    "softNMSBoxes",
]

# These run nets of OpenCV's own readers only.
_OF_OTHER_NETS = {
    **dict.fromkeys(
        ("TextDetectionModel", "TextDetectionModel_DB", "TextDetectionModel_EAST", "TextRecognitionModel"),
        "its nets are ONNX and TensorFlow; use cv2.dnn's own",
    ),
    "Net_readFromModelOptimizer": "OpenVINO's files are not Caffe's; use cv2.dnn's own",
    "DictValue": "it is for layers that are made in code; edit the prototxt",
}


def __getattr__(name: str) -> Any:
    """Return what the installed `cv2.dnn` has besides, such as `readNetFromONNX`."""
    if name in _OF_OTHER_NETS:
        raise NoSuchName(f"cvdnn.{name} is not supported: {_OF_OTHER_NETS[name]}")
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(cv2.dnn, name)
