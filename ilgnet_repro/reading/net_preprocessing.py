"""The preprocessing that a net's own data layer states, for images that the caller supplies.

Caffe's training nets state crop, mean and scale in ``transform_param``, and sizes beside it.  A deploy net, whose
input the caller feeds, states nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..caffe.named_files import READ_INSTEAD, file_name
from ..caffe.phase_rules import is_included, net_state
from ..errors import DataError, IlgnetError
from ..schema import caffe_pb2 as pb
from .mean import read_mean
from .preprocessing import CHANNELS, Preprocessing

Sides = tuple[int, int]
_READ = tuple(field.name for field in pb.TransformationParameter.DESCRIPTOR.fields)


def preprocessing_of(
    text: pb.NetParameter,
    phase: str = "TEST",
    size: Sides | None = None,
    folder: Path | None = None,
    *,
    channels: int | None = None,
    level: int = 0,
    stages: Iterable[str] = (),
) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """Return the preprocessing that the data layer of a phase states, or None, and notes for the user.

    ``text`` is in modern form (`upgrade_net`), whose ``transform_param`` includes what older texts state elsewhere.
    ``size`` is the (height, width) of the net's input, for layers that do not state it, ``channels`` its channels.
    A ``mean_file`` is looked up in ``folder``, that of the prototxt, and in the working directory, where Caffe
    looks it up.  Never raises: a net may be used without its data layer, so what cannot be read becomes a note.
    """
    state = net_state(phase, level, (*text.state.stage, *stages))
    feeding = [layer for layer in text.layer if _is_image_layer(layer) and is_included(layer, state)]
    if not feeding:
        return None, ()
    first = feeding[0]
    where = f"{first.name} ({first.type})"
    if any(_preparation(layer) != _preparation(first) for layer in feeding):
        names = ", ".join(layer.name for layer in feeding)
        return None, (f"{names}: prepare images differently, so no preprocessing is read from them",)
    notes: list[str] = []
    try:
        if channels not in (None, CHANNELS):
            raise DataError(f"the net's input has {channels} channels, preprocessing has {CHANNELS}")
        preprocessing = _read(first, size, folder, notes)
    except IlgnetError as error:
        return None, (f"{where}: its preprocessing is not read: {error}",)
    param = first.transform_param
    if param.mirror:
        notes.append("mirror: true mirrors images at random in Caffe; preprocessing does not")
    if phase == "TRAIN" and param.crop_size:
        notes.append("Caffe crops at random in phase TRAIN; preprocessing takes the centre")
    unread = _unread_fields(first)
    if unread:
        notes.append(f"transform_param.{unread[0]} is not part of the preprocessing that is read")
    notes.insert(0, f"preprocessing is read from this layer: {preprocessing.describe()}")
    return preprocessing, tuple(f"{where}: {note}" for note in notes)


def _is_image_layer(layer: pb.LayerParameter) -> bool:
    if layer.bottom:
        return False
    return layer.type in ("Data", "ImageData", "WindowData", "MemoryData") or layer.HasField(
        "transform_param"
    )


def _preparation(layer: pb.LayerParameter) -> tuple[bytes, tuple[int, ...]]:
    """The fields that determine how a layer prepares its images, not where they come from."""
    image = layer.image_data_param
    memory = layer.memory_data_param
    sides = (image.new_height, image.new_width, image.is_color, memory.channels, memory.height, memory.width)
    return layer.transform_param.SerializeToString(deterministic=True), sides


def _unread_fields(layer: pb.LayerParameter) -> list[str]:
    """Fields of forks in ``transform_param``, such as SSD's resize_param."""
    parts = [field.path.split(".") for field in layer.fork_field if field.path.startswith("transform_param.")]
    return [part[1] for part in parts if part[1] not in _READ]


def _read(
    layer: pb.LayerParameter, size: Sides | None, folder: Path | None, notes: list[str]
) -> Preprocessing:
    param = layer.transform_param
    if layer.type == "WindowData":
        raise DataError("it crops windows from its images")
    if _is_grey(layer):
        raise DataError("its images do not have three channels, which preprocessing needs")
    if param.force_color and param.force_gray:
        raise DataError("force_color and force_gray cannot both be set")
    if param.mean_file and param.mean_value:
        raise DataError("mean_file and mean_value cannot both be given")
    crop = (param.crop_size, param.crop_size) if param.crop_size else None
    if crop and size and crop != size:
        raise DataError(f"crop_size is {param.crop_size} and the net's input {_show(size)}")
    resize = _stored_size(layer)
    mean = _read_mean(param.mean_file, folder, notes) if param.mean_file else None
    if mean is not None:
        if resize not in (None, mean.shape[1:]):
            sizes = f"is {_show(mean.shape[1:])} and its images {_show(resize or ())}"
            raise DataError(f"mean_file {param.mean_file} {sizes}")
        resize = mean.shape[1:]
    elif resize is None and crop is None:
        resize = size
        if size is None:
            raise DataError("the size of its images is known only from its source")
    elif resize is None:
        notes.append(
            "the size of its stored images is not stated; give images of that size, or state the size to resize to"
        )
    if size and not crop and resize != size:
        raise DataError(f"its images are {_show(resize or ())} and the net's input {_show(size)}")
    input_size = crop or resize
    assert input_size is not None
    return Preprocessing(
        size=input_size, path="crop", resize=resize, mean_image=mean, mean_value=tuple(param.mean_value), scale=param.scale
    )  # fmt: skip


def _show(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _is_grey(layer: pb.LayerParameter) -> bool:
    if layer.type == "ImageData":
        return not layer.image_data_param.is_color
    if layer.type == "MemoryData":
        return layer.memory_data_param.channels != CHANNELS
    return bool(layer.transform_param.force_gray)


def _stored_size(layer: pb.LayerParameter) -> Sides | None:
    """The (height, width) of a layer's images before the crop, if its text states it."""
    image, memory = layer.image_data_param, layer.memory_data_param
    if layer.type == "MemoryData":
        return memory.height, memory.width
    if bool(image.new_height) != bool(image.new_width):
        raise DataError("new_height and new_width must be set together")
    return (image.new_height, image.new_width) if image.new_height else None


def _read_mean(name: str, folder: Path | None, notes: list[str]) -> np.ndarray:
    """A mean file, looked up beside the prototxt, in the working directory, and beside the prototxt by file name only."""
    names = dict.fromkeys([name, name.replace("\\", "/")])
    places = [place / form for form in names for place in ([] if folder is None else [folder]) + [Path()]]
    places += [] if folder is None else [folder / file_name(name)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(
            f"mean_file {name} is neither beside the prototxt nor in the working directory; state the mean"
        )
    if folder is not None and found == places[-1] != places[0]:
        notes.append(f"mean_file {name} does not exist; {found} {READ_INSTEAD}")
    return read_mean(found)
