"""Data layers of forks, whose tops the caller feeds: SSD's AnnotatedData and VideoData, and those of segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..caffe.fork_fields import without_indices
from ..errors import LayerError
from .support.base import LayerPlan, Shape
from .support.fed import FedLayer
from .support.registry import register_layer

BOX = 8  # image, label, instance, four corners, difficult
YOLO_BOX = 5  # class, centre, width, height
YOLO_BOXES = 300  # of an image


class _ForkData(FedLayer):
    """What such a layer reads, and how, does not matter here: its fields are not used but for the sizes that they state."""

    other_messages = ("data_param", "image_data_param", "transform_param")
    top_count: ClassVar[tuple[int, int | None]] = (1, 3)
    sizes = ""  # its own message, for batch_size, new_height and new_width
    note = "a data layer of a fork: its tops are inputs; how it reads and transforms its data is not used"

    def _check_fork_fields(self) -> None:
        """No field of a fork changes what the caller feeds."""

    def _stated(self, *paths: str) -> int:
        """Return the first of the fields that is stated as a number over 0, or 0."""
        for path in paths:
            text = self.fork_field(path) or ""
            if text.isdigit() and int(text):
                return int(text)
        return 0

    def _image(self) -> Shape:
        layer, own = self.node.layer, self.sizes
        messages = (layer.data_param, layer.image_data_param)  # the second has 1 by default
        stated = [message.batch_size for message in messages if message.HasField("batch_size")]
        batch = stated[0] if stated else self._stated(f"{own}.batch_size")
        crop: int = layer.transform_param.crop_size
        resize = "transform_param.resize_param"
        height = (
            crop or layer.image_data_param.new_height or self._stated(f"{own}.new_height", f"{resize}.height")
        )
        width = (
            crop or layer.image_data_param.new_width or self._stated(f"{own}.new_width", f"{resize}.width")
        )
        if not (batch and height and width):
            raise self._unknown_size()
        return (batch, 1 if layer.transform_param.force_gray else 3, height, width)

    def _unknown_size(self) -> LayerError:
        name = self.node.top_names[0]
        return self.error(
            f"the size of {name!r} is known only from its source; give its shape "
            f"(input_shapes={{{name!r}: (N, C, H, W)}})",
            option="input_shapes",
        )

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        """Return the shapes of the tops after the image, for an image of a shape."""
        raise NotImplementedError

    def plan(self) -> LayerPlan:
        image = self._image()
        return LayerPlan([image, *self._others(image)][: len(self.node.tops)])

    def input_shapes(self, given: Mapping[str, Shape]) -> list[Shape]:
        first, *others = self.node.top_names
        if first in given and len(given[first]) == 4:
            given = {**dict(zip(others, self._others(given[first]), strict=False)), **given}
        return super().input_shapes(given)


@register_layer("AnnotatedData", "VideoData", "LaneData")
class AnnotatedData(_ForkData):
    """Images and their boxes, 1×1×boxes×8 (SSD); the number of boxes is that of the batch, here planned as 1.

    The image's size is that of `transform_param` (`crop_size` or `resize_param`).  With `yolo_data_type: 1` the boxes
    are N×1×300×5: class, centre, width and height, and zeros. Source: SSD, src/caffe/layers/annotated_data_layer.cpp
    and video_data_layer.cpp; MobileNet-YOLO's AnnotatedData and LaneData.
    """

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        boxes = (1, 1, 1, BOX)
        if self._stated("annotated_data_param.yolo_data_type") == 1:
            boxes = (image[0], 1, YOLO_BOXES, YOLO_BOX)
        return boxes, (image[0], 1, *image[2:])


@register_layer("DenseImageData", "ImageSegData")
class DenseImageData(_ForkData):
    """Images and a label per pixel (SegNet, DeepLab); a third top is the size of each image.

    Source: caffe-segnet, src/caffe/layers/dense_image_data_layer.cpp; DeepLab,
    src/caffe/layers/image_seg_data_layer.cpp.
    """

    sizes = "dense_image_data_param"

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        return (image[0], 1, *image[2:]), (image[0], 1, 1, 2)


@register_layer("ImageGtData")
class ImageGtData(_ForkData):
    """Images, for each of MS-CNN's maps the labels N×6×H×W (class, box, overlap), and with `output_gt_boxes` the true boxes.

    Those are G×7×1×1 (image, corners, label, ignored), here planned as 1.  The image's size is that of the crop, else
    of the resizing; a map's is that over its `downsample_rate`, rounded.  Source: zhaoweicai/mscnn,
    src/caffe/layers/image_gt_data_layer.cpp.
    """

    sizes = "image_gt_data_param"
    top_count = (2, None)
    boxes = 7

    def _image(self) -> Shape:
        own = self.sizes
        batch = self._stated(f"{own}.batch_size")
        sides = tuple(
            self._stated(f"{own}.crop_{side}", f"{own}.resize_{side}") for side in ("height", "width")
        )
        if not batch or not all(sides):
            raise self._unknown_size()
        return (batch, 3, *sides)

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        rates = [
            float(field.text)
            for field in self.node.layer.fork_field
            if without_indices(field.path) == f"{self.sizes}.downsample_rate"
            and field.text.isdigit()
            and int(field.text)
        ]
        coordinates = self._stated(f"{self.sizes}.coord_num") or 4
        maps = [
            (image[0], 2 + coordinates, *(int(side / rate + 0.5) for side in image[2:])) for rate in rates
        ]
        return *maps, (1, self.boxes, 1, 1)


@register_layer("DetectNetTransformation")
class DetectNetTransformation(_ForkData):
    """Augmented images and the map of what their boxes cover: N×(8 + classes)×H×W over ``stride``, inputs here.

    The channels are foreground, the box's corners, two inverse sides, the object's norm and a coverage per class; the
    classes are those that ``object_class`` maps to.
    Source: NVIDIA/caffe, src/caffe/layers/detectnet_transform_layer.cpp and
    src/caffe/util/detectnet_coverage.cpp.
    """

    sizes = "detectnet_groundtruth_param"
    top_count = (2, 2)
    replaces_feeders = True
    note = "augments DetectNet's images and draws its coverage maps: its tops are inputs, and its data layers are left out"

    def _image(self) -> Shape:
        batch = self.node.layer.data_param.batch_size
        sides = tuple(self._stated(f"{self.sizes}.image_size_{side}") for side in "yx")
        if not batch or not all(sides):
            raise self._unknown_size()
        return (batch, 3, *sides)

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        stride = self._stated(f"{self.sizes}.stride")
        if not stride:
            raise self.error("detectnet_groundtruth_param.stride is missing; state the pixels of a cell")
        places = [
            int(field.text)
            for field in self.node.layer.fork_field
            if without_indices(field.path) == f"{self.sizes}.object_class.dst" and field.text.isdigit()
        ]
        cells = (round(side / stride) for side in image[2:])
        return ((image[0], BOX + max(places, default=0) + 1, *cells),)
