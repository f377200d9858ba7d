"""Data layers of forks, whose tops the caller feeds: boxes, lanes, labels per pixel and videos."""

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
LANES = (5, 64, 3)  # lanes, their points, and x, y and lane of a point


class _ForkData(FedLayer):
    """What such a layer reads, and how, does not matter here: its fields are not used but for the sizes that they state."""

    other_messages = ("data_param", "image_data_param", "transform_param")
    top_count: ClassVar[tuple[int, int | None]] = (1, 3)
    sizes = ""  # its own message, for batch_size, new_height, new_width, crop_height and crop_width
    image_axes = 4
    note = "a data layer of a fork: its tops are inputs; how it reads and transforms its data is not used"

    def _check_fork_fields(self) -> None:
        """Fields that state no size do not change what the caller feeds."""

    def _stated(self, *paths: str) -> int:
        """Return the first of the fields that is stated as a number over 0, or 0."""
        for path in paths:
            text = self.fork_field(path) or ""
            if text.isdigit() and int(text):
                return int(text)
        return 0

    def _texts(self, path: str) -> list[str]:
        """Return the texts of a repeated field."""
        return [field.text for field in self.node.layer.fork_field if without_indices(field.path) == path]

    def _factor(self, path: str) -> int:
        """Return the field as a divisor: 1 where it is not stated."""
        text = self.fork_field(path)
        if text is not None and not self._stated(path):
            raise self.error(f"{path} {text} must be an integer over 0")
        return self._stated(path) or 1

    def _batch(self) -> int:
        layer = self.node.layer
        messages = (layer.data_param, layer.image_data_param)  # the second has 1 by default
        stated: list[int] = [message.batch_size for message in messages if message.HasField("batch_size")]
        return stated[0] if stated else self._stated(f"{self.sizes}.batch_size")

    def _channels(self) -> int:
        layer, own = self.node.layer, self.sizes
        is_gray = layer.transform_param.force_gray or not layer.image_data_param.is_color
        return 1 if is_gray or self.fork_field(f"{own}.is_color") == "false" else 3

    def _crop(self, side: str) -> int:
        """Return the crop's height or width; 0 where there is none."""
        whole: int = self.node.layer.transform_param.crop_size
        names = (
            f"transform_param.crop_{side}",
            f"transform_param.crop_{side[0]}",
            f"{self.sizes}.crop_{side}",
        )
        return whole or self._stated(*names)

    def _side(self, side: str) -> int:
        """Return the height or width that the image is cropped or resized to; 0 where only the source shows it."""
        resize = "transform_param.resize_param"
        stated: int = self._crop(side) or getattr(self.node.layer.image_data_param, f"new_{side}")
        if stated or self.fork_field(f"{resize}.resize_mode") == "FIT_SMALL_SIZE":  # keeps the image's ratio
            return stated
        first = self._texts(f"{resize}.{side}")[:1]  # of several Caffe draws one for each batch
        return self._stated(f"{self.sizes}.new_{side}") or sum(int(text) for text in first if text.isdigit())

    def _image(self) -> Shape:
        batch, height, width = self._batch(), self._side("height"), self._side("width")
        if not (batch and height and width):
            raise self._unknown_size()
        return (batch, self._channels(), height, width)

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
        if first in given and len(given[first]) == self.image_axes and not given.keys() >= set(others):
            given = {**dict(zip(others, self._others(given[first]), strict=False)), **given}
        return super().input_shapes(given)


@register_layer("AnnotatedData")
class AnnotatedData(_ForkData):
    """Images and their boxes, 1×1×boxes×8 (SSD); the number of boxes is that of the batch, here planned as 1.

    The image's size is that of `transform_param` (`crop_size` or `resize_param`).  With `yolo_data_type: 1` the boxes
    are N×1×300×5: class, centre, width and height, and zeros; a third top is a mask, smaller by `seg_scales` or of
    `seg_resize_height`×`seg_resize_width`.  Source: SSD, src/caffe/layers/annotated_data_layer.cpp; MobileNet-YOLO's.
    """

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        boxes = (1, 1, 1, BOX)
        if self._stated("annotated_data_param.yolo_data_type") == 1:
            boxes = (image[0], 1, YOLO_BOXES, YOLO_BOX)
        return boxes, self._mask(image)

    def _mask(self, image: Shape) -> Shape:
        sides = [self._stated(f"annotated_data_param.seg_resize_{side}") for side in ("height", "width")]
        if not all(sides):
            factor = self._factor("annotated_data_param.seg_scales")
            sides = [side // factor for side in image[2:]]
        return (image[0], 1, *sides)


@register_layer("LaneData")
class LaneData(AnnotatedData):
    """Images, the points of their lanes, N×5×64×3 (x, y, lane), and a mask as AnnotatedData's.

    Source: eric612/MobileNet-YOLO, src/caffe/layers/lane_data_layer.cpp.
    """

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        return (image[0], *LANES), self._mask(image)


@register_layer("DenseImageData", "ImageSegData")
class DenseImageData(_ForkData):
    """Images and a label per pixel (SegNet, DeepLab); a third top is the size of each image.

    With ENet's `label_divide_factor` the label has that fraction of the image's rows and columns, but not where a crop
    is stated, which both have the size of.  Source: caffe-segnet, src/caffe/layers/dense_image_data_layer.cpp, and
    that of TimoSaemann/caffe-enet; DeepLab, src/caffe/layers/image_seg_data_layer.cpp.
    """

    sizes = "dense_image_data_param"

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        factor = self._factor(f"{self.sizes}.label_divide_factor")
        if self._crop("height") and self._crop("width"):
            factor = 1
        label = [side // factor for side in image[2:]]
        if not all(label):
            raise self.error(
                f"label_divide_factor {factor} leaves nothing of an image of {image[2]}×{image[3]}"
            )
        return (image[0], 1, *label), (image[0], 1, 1, 2)


FORKS_OF_VIDEO = {
    "SSD": "VideoData of SSD's Caffe: single frames; its tops are inputs",
    "TSN": "VideoData of yjxiong's Caffe (TSN): the frames of all segments as channels; its tops are inputs",
    "C3D": "VideoData of C3D's Caffe: clips of frames; its tops are inputs",
    "": _ForkData.note,
}


@register_layer("VideoData")
class VideoData(_ForkData):
    """Frames of videos and their classes, as the fork reads them that the text shows.

    - SSD: `data_param`; frames N×3×H×W, classes N.
    - TSN: `num_segments` or `modality`; N×(c · num_segments · new_length)×H×W with c 3 for RGB and 2 for FLOW,
      classes N×1×1×1.
    - C3D: `image_data_param.new_length`; N×3×new_length×H×W, classes N×1×1×1×1.

    Where the text shows none of them the shapes are asked for.  Source: weiliu89/caffe, zhujiagang/caffe-tpp-net and
    facebookarchive/C3D, src/caffe/layers/video_data_layer.cpp.
    """

    sizes = "video_data_param"
    top_count = (1, 2)

    image_axes = 0  # images or videos

    def setup(self) -> None:
        self.fork = self._shown_fork()
        self.image_axes = 5 if self.fork == "C3D" else 4
        self.note = FORKS_OF_VIDEO[self.fork]

    def _shown_fork(self) -> str:
        if self.fork_field(f"{self.sizes}.num_segments") or self.fork_field(f"{self.sizes}.modality"):
            return "TSN"
        if self.fork_field("image_data_param.new_length"):
            return "C3D"
        return "SSD" if self.node.layer.HasField("data_param") else ""

    def _crop(self, side: str) -> int:
        stated: int = (
            self.node.layer.image_data_param.crop_size if self.fork == "C3D" else super()._crop(side)
        )
        return stated

    def _needed(self, path: str) -> int:
        if not self._stated(path):
            raise self.error(f"{path} is missing; state an integer over 0")
        return self._stated(path)

    def _image(self) -> Shape:
        if not self.fork:
            raise self._unknown_fork()
        batch, channels, *sides = super()._image()
        if self.fork == "C3D":
            return (batch, 3, self._needed("image_data_param.new_length"), *sides)
        if self.fork == "TSN":
            modality = self.fork_field(f"{self.sizes}.modality")
            if modality not in ("RGB", "FLOW"):
                raise self.error(f"{self.sizes}.modality {modality or 'is missing'}; state RGB or FLOW")
            frames = self._needed(f"{self.sizes}.num_segments") * self._needed(f"{self.sizes}.new_length")
            channels = (3 if modality == "RGB" else 2) * frames
        return (batch, channels, *sides)

    def _others(self, image: Shape) -> tuple[Shape, ...]:
        if not self.fork:
            raise self._unknown_fork()
        return ((image[0], *(1,) * {"SSD": 0, "TSN": 3, "C3D": 4}[self.fork]),)

    def _unknown_fork(self) -> LayerError:
        names = self.node.top_names
        shapes = ", ".join(
            f"{name!r}: {shape}" for name, shape in zip(names, ("(N, C, H, W)", "(N,)"), strict=False)
        )
        return self.error(
            "several forks have a layer of this name with other tops, and the text shows none of them "
            "(data_param: SSD; num_segments and modality: TSN; image_data_param.new_length: C3D); "
            f"give the shapes of {' and '.join(names)} (input_shapes={{{shapes}}})",
            option="input_shapes",
        )


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
            float(text)
            for text in self._texts(f"{self.sizes}.downsample_rate")
            if text.isdigit() and int(text)
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
        places = [int(text) for text in self._texts(f"{self.sizes}.object_class.dst") if text.isdigit()]
        cells = (round(side / stride) for side in image[2:])
        return ((image[0], BOX + max(places, default=0) + 1, *cells),)
