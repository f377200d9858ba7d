"""Layers without bottoms (inputs, DummyData, Parameter), and without tops (Silence and HDF5Output)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..caffe.dummy_inputs import DUMMY_NOTE
from ..caffe.graph import Graph
from ..schema import caffe_pb2 as pb
from .support.base import BlobSpec, Layer, LayerPlan, OnnxGraph, Shape, SourceCode
from .support.fed import FedLayer
from .support.fillers import fill
from .support.registry import register_layer

ASSUMED_CHANNELS = 3


@register_layer("Input")
class Input(FedLayer):
    """Tops that the caller feeds, with one shape for all or one per top."""

    message = "input_param"
    fields = ("shape",)
    top_count = (1, None)

    def plan(self) -> LayerPlan:
        shapes = [tuple(shape.dim) for shape in self.param.shape]
        tops = len(self.node.tops)
        if len(shapes) not in (1, tops):
            raise self.error(
                f"states {len(shapes)} shapes for {tops} tops; state one for all or one per top, or give the input's shape",
                option="" if shapes else "input_shapes",
            )
        return LayerPlan(shapes * tops if len(shapes) == 1 else shapes)


class _ImageLayer(FedLayer):
    """Images and, in a second top, labels, read from a source and put through `transform_param`."""

    other_messages = ("transform_param",)
    top_count = (1, 2)
    image_axes = 4

    def _batch(self) -> int:
        size: int = self.param.batch_size
        if not size:
            raise self.error("batch_size is 0 or absent; state how many images make a batch")
        return size

    def _size(self) -> tuple[int, int] | None:
        crop = self.node.layer.transform_param.crop_size
        return (crop, crop) if crop else None

    def _channels(self) -> int:
        # Where the text does not say it, known only from the source; all but a few nets take colour.
        return 1 if self.node.layer.transform_param.force_gray else ASSUMED_CHANNELS

    def plan(self) -> LayerPlan:
        size = self._size()
        if size is None:
            raise self.error(
                f"the size of {self.node.top_names[0]!r} is known only from its source; give its shape "
                f"(input_shapes={{{self.node.top_names[0]!r}: (N, C, H, W)}}), or set transform_param.crop_size",
                option="input_shapes",
            )
        batch = self._batch()
        return LayerPlan([(batch, self._channels(), *size), (batch,)][: len(self.node.tops)])

    def input_shapes(self, given: Mapping[str, Shape]) -> list[Shape]:
        image, *labels = self.node.top_names
        if image in given and labels:
            given = {labels[0]: (given[image][0],), **given}
        return super().input_shapes(given)


@register_layer("Data")
class Data(_ImageLayer):
    """Rows of an LMDB of Datum messages (read by `reading`); LevelDB is not supported."""

    message = "data_param"
    fields = ("source", "batch_size", "backend", "rand_skip", "shuffle")
    ignored_fields = ("prefetch",)

    def setup(self) -> None:
        if _leaves_channels_open(self.node.layer):
            self.note = "channels are those of the given shape or of the weights, else 3"


def _leaves_channels_open(layer: pb.LayerParameter) -> bool:
    transform = layer.transform_param
    states = transform.force_color or transform.force_gray
    return layer.type == "Data" and bool(transform.crop_size) and not states


def assumed_shapes(graph: Graph, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes, by name, of the images of Data layers whose number of channels is assumed."""
    found: dict[str, Shape] = {}
    for node in graph.layers:
        if _leaves_channels_open(node.layer) and node.tops and node.top_names[0] not in given:
            side = node.layer.transform_param.crop_size
            found[node.top_names[0]] = (node.layer.data_param.batch_size, ASSUMED_CHANNELS, side, side)
    return found


@register_layer("ImageData")
class ImageData(_ImageLayer):
    """Image files from a list of `path label` rows."""

    message = "image_data_param"
    fields = (
        "source",
        "batch_size",
        "rand_skip",
        "shuffle",
        "new_height",
        "new_width",
        "is_color",
        "root_folder",
    )

    def _size(self) -> tuple[int, int] | None:
        resized = (self.param.new_height, self.param.new_width)
        return super()._size() or (resized if all(resized) else None)

    def _channels(self) -> int:
        return 3 if self.param.is_color else 1


@register_layer("WindowData")
class WindowData(_ImageLayer):
    """Windows of images from R-CNN's window files (sampled by `reading`)."""

    message = "window_data_param"
    fields = (
        *(
            "source",
            "batch_size",
            "crop_size",
            "scale",
            "mean_file",
            "mirror",
            "fg_threshold",
            "bg_threshold",
        ),
        *("fg_fraction", "context_pad", "crop_mode", "root_folder"),
    )
    ignored_fields = ("cache_images",)

    def _size(self) -> tuple[int, int] | None:
        crop = self.node.layer.transform_param.crop_size or self.param.crop_size
        return (crop, crop) if crop else None


@register_layer("MemoryData")
class MemoryData(FedLayer):
    """Images and labels in memory, of the stated size."""

    message = "memory_data_param"
    other_messages = ("transform_param",)
    fields = ("batch_size", "channels", "height", "width")
    top_count = (2, 2)

    def plan(self) -> LayerPlan:
        shape = (self.param.batch_size, self.param.channels, self.param.height, self.param.width)
        if not all(shape):
            raise self.error("batch_size, channels, height and width must all be stated and over 0")
        return LayerPlan([shape, shape[:1]])


@register_layer("HDF5Data")
class HDF5Data(FedLayer):
    """Datasets of HDF5 files, one per top, of the top's name."""

    message = "hdf5_data_param"
    refused_messages = {"transform_param": "does not transform data"}  # noqa: RUF012
    fields = ("source", "batch_size", "shuffle")
    top_count = (1, None)

    def plan(self) -> LayerPlan:
        raise self.error(
            f"the shapes of {', '.join(self.node.top_names)} are known only from its files; "
            f"give them (input_shapes={{{self.node.top_names[0]!r}: (N, C, H, W)}})",
            option="input_shapes",
        )


@register_layer("DummyData")
class DummyData(Layer):
    """Tops generated by fillers, random ones again in each pass; the caller may feed any of them instead."""

    message = "dummy_data_param"
    fields = ("data_filler", "shape", "num", "channels", "height", "width")
    bottom_count = (0, 0)
    top_count = (1, None)
    may_be_fed = True
    note = DUMMY_NOTE
    has_gradient = False
    no_onnx = "its values are drawn again in each pass"
    no_source = "its values are drawn again in each pass"

    def setup(self) -> None:
        tops = len(self.node.tops)
        fillers = list(self.param.data_filler) or [None]
        if len(fillers) not in (1, tops):
            raise self.error(
                f"has {len(fillers)} data_fillers for {tops} tops; state none, one or one per top"
            )
        fillers = fillers * tops if len(fillers) == 1 else fillers
        self.specs = [
            BlobSpec("data", shape, filler)
            for shape, filler in zip(self._stated_shapes(), fillers, strict=True)
        ]
        self._generator = torch.Generator().manual_seed(0)

    def plan(self) -> LayerPlan:
        return LayerPlan([spec.shape for spec in self.specs])

    def _stated_shapes(self) -> list[Shape]:
        shapes: list[Shape] = [tuple(shape.dim) for shape in self.param.shape]
        legacy = [getattr(self.param, field) for field in ("num", "channels", "height", "width")]
        if shapes and any(legacy):
            raise self.error("states both shape and num/channels/height/width; state one kind")
        if not shapes:
            if len({len(values) for values in legacy}) != 1:
                raise self.error("num, channels, height and width must be stated equally often")
            shapes = list(zip(*legacy, strict=True))
        tops = len(self.node.tops)
        if len(shapes) not in (1, tops):
            raise self.error(f"states {len(shapes)} shapes for {tops} tops; state one for all or one per top")
        return shapes * tops if len(shapes) == 1 else shapes

    def forward(self) -> tuple[Tensor, ...]:
        # In training as Dropout draws: from the generator that a trainer seeds in each iteration, so that a resumed
        # run draws the same values.
        generator = torch.default_generator if self.training else self._generator
        return tuple(fill(spec, generator, self.error) for spec in self.specs)


@register_layer("Parameter")
class Parameter(Layer):
    """A learned blob as a top; happynear's Caffe fills it by ``blob_filler``."""

    value: Tensor
    message = "parameter_param"
    fields = ("shape", "blob_filler")
    bottom_count = (0, 0)

    def plan(self) -> LayerPlan:
        shape = tuple(self.param.shape.dim)
        filler = self.param.blob_filler if self.param.HasField("blob_filler") else None
        return LayerPlan([shape], [BlobSpec("value", shape, filler)])

    def forward(self) -> tuple[Tensor]:
        return (self.value,)

    def onnx(self, graph: OnnxGraph) -> list[str]:
        return [graph.parameter("value")]

    def source(self, code: SourceCode) -> list[str]:
        return [code.parameter("value", self.value)]


class _Sink(Layer):
    """A layer without tops."""

    bottom_count: ClassVar[tuple[int, int | None]] = (1, None)
    top_count = (0, 0)

    def plan(self, *bottoms: Shape) -> LayerPlan:
        return LayerPlan([])

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()

    def onnx(self, graph: OnnxGraph, *bottoms: str) -> list[str]:
        return []

    def source(self, code: SourceCode, *bottoms: str) -> list[str]:
        return []


@register_layer("Silence")
class Silence(_Sink):
    """Removes blobs from the net's outputs."""


@register_layer("HDF5Output")
class HDF5Output(_Sink):
    """Marks the two blobs (data, label) that `caffe test` would write to a file; here the caller reads them."""

    message = "hdf5_output_param"
    fields = ("file_name",)
    bottom_count = (2, 2)
    has_gradient = False
