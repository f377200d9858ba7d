"""pycaffe's `caffe.io`: arrays to messages and back, and images prepared for a net.

Images are (height, width, channels), RGB from 0 to 1, as `load_image` returns them.  The numbers are those of pycaffe
with the scikit-image of its time, which smoothed nothing before shrinking an image; neither is needed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from scipy.ndimage import zoom

from ..caffe.blob import LARGEST_COUNT, scan_blob
from ..errors import DataError, FormatError, IlgnetError, did_you_mean
from ..reading.datum import datum_image
from ..reading.preprocessing import load_grey
from ..reading.preprocessing import load_image as load_rgb
from ..reading.preprocessing import resize_image as resize_linearly
from ..schema import caffe_pb2
from .failures import WrongCall, WrongValue

_LINEAR = 1
_BY_SKIMAGE = (1, 3)  # channels of the images that pycaffe hands to scikit-image, others to SciPy
_MOST_ORDER = 5

# ------------------------------------------------------------------------------------------- messages


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> np.ndarray:
    """Return a blob's values, or with ``return_diff`` its gradient, in the shape that it states.

    float64 as in pycaffe.  Raises a ValueError where values and shape disagree, and takes ``double_data``, which
    pycaffe ignores.
    """
    values: Any = (blob.diff or blob.double_diff) if return_diff else (blob.data or blob.double_data)
    if not values and not return_diff:
        values = _raw_values(blob)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        shape: tuple[int, ...] = (blob.num, blob.channels, blob.height, blob.width)
    else:
        shape = tuple(blob.shape.dim)
    array = np.array(values, dtype=np.float64)
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise WrongValue(
            f"BlobProto: has {array.size} values where its shape {list(shape)} needs {_count(shape)}; state its shape"
        ) from error


def _raw_values(blob: caffe_pb2.BlobProto) -> np.ndarray:
    """Values in half precision, which other Caffes store as bytes in a field that Caffe 1.0 does not know."""
    data = blob.SerializeToString()
    try:
        return scan_blob(memoryview(data), 0, len(data), "BlobProto").array()
    except FormatError:
        return np.empty(0)


def _count(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> caffe_pb2.BlobProto:
    """Return an array, and its gradient if given, as a BlobProto of that shape."""
    blob = caffe_pb2.BlobProto()
    arr = np.asarray(arr)
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        diff = np.asarray(diff)
        if diff.shape != arr.shape:
            raise WrongValue(
                f"diff of shape {list(diff.shape)} for an array of {list(arr.shape)}; give the same shape"
            )
        blob.diff.extend(diff.astype(float).flat)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """Return arrays as the bytes of a BlobProtoVector."""
    return caffe_pb2.BlobProtoVector(blobs=[array_to_blobproto(arr) for arr in arraylist]).SerializeToString()


arraylist_to_blobprotovecor_str = arraylist_to_blobprotovector_str  # as pycaffe spells it


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """Return the arrays of a BlobProtoVector's bytes."""
    try:
        vector = caffe_pb2.BlobProtoVector.FromString(str)
    except (DecodeError, TypeError) as error:
        raise WrongValue(f"not the bytes of a BlobProtoVector ({error})") from error
    return [blobproto_to_array(blob) for blob in vector.blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> caffe_pb2.Datum:
    """Return (channels, height, width) as a Datum: uint8 as bytes, other types as floats."""
    arr = np.asarray(arr)
    if arr.ndim != 3:
        raise WrongValue("Incorrect array shape.")
    datum = caffe_pb2.Datum()
    datum.channels, datum.height, datum.width = arr.shape
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).flat)
    if label is not None:
        datum.label = int(label)
    return datum


def datum_to_array(datum: caffe_pb2.Datum) -> np.ndarray:
    """Return a Datum's image, (channels, height, width): uint8, or float64 where it holds floats.

    An encoded image is decoded to BGR, as Caffe's data layers do; pycaffe fails there.
    """
    try:
        image = datum_image(datum, "Datum")
    except DataError as error:
        raise WrongValue(str(error)) from error
    return np.array(image) if len(datum.data) else image.astype(float)


# ------------------------------------------------------------------------------------------- Transformer


class Transformer:
    """Prepares images for the inputs of a net, whose shapes are given by name: ``{"data": net.blobs["data"].data.shape}``.

    In this order: resized to the input, `set_transpose`, `set_channel_swap`, `set_raw_scale`, `set_mean`,
    `set_input_scale`.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        """Take the shapes of the inputs; nothing but the size is changed until it is set."""
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            known = list(self.inputs)
            raise IlgnetError(f"{in_} is not one of the net inputs: {known}{did_you_mean(str(in_), known)}")
        return tuple(int(length) for length in self.inputs[in_])

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Return an image (height, width, channels) as the net's input; the image itself is not changed."""
        size = self._shape(in_)[2:]
        caffe_in = np.asarray(data).astype(np.float32, copy=False)
        if caffe_in.shape[:2] != size:
            caffe_in = resize_image(caffe_in, size)
        if in_ in self.transpose:
            caffe_in = _transposed(caffe_in, self.transpose[in_])
        if in_ in self.channel_swap:
            caffe_in = caffe_in[list(self.channel_swap[in_]), :, :]
        caffe_in = np.array(caffe_in)  # in the order of the axes as they are now
        if in_ in self.raw_scale:
            caffe_in *= self.raw_scale[in_]
        if in_ in self.mean:
            caffe_in -= _fitting(self.mean[in_], caffe_in.shape)
        if in_ in self.input_scale:
            caffe_in *= self.input_scale[in_]
        return caffe_in

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Return the image that `preprocess` made an input from, but for its size."""
        self._shape(in_)
        decaf_in = np.array(data).squeeze()
        if decaf_in.dtype.kind != "f":
            decaf_in = decaf_in.astype(np.float32)
        if in_ in self.input_scale:
            decaf_in /= self.input_scale[in_]
        if in_ in self.mean:
            decaf_in += _fitting(self.mean[in_], decaf_in.shape)
        if in_ in self.raw_scale:
            decaf_in /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            decaf_in = decaf_in[np.argsort(self.channel_swap[in_]), :, :]
        if in_ in self.transpose:
            decaf_in = _transposed(decaf_in, np.argsort(self.transpose[in_]).tolist())
        return decaf_in

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the axes: (2, 0, 1) makes channels the first."""
        if len(order) != len(self._shape(in_)) - 1:
            raise IlgnetError("Transpose order needs to have the same number of dimensions as the input.")
        if sorted(order) != list(range(len(order))):
            raise WrongValue(
                f"Transpose order {tuple(order)} does not hold each of the {len(order)} axes once"
            )
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the channels, the first axis after the transpose: (2, 1, 0) makes BGR of RGB."""
        if len(order) != self._shape(in_)[1]:
            raise IlgnetError(
                "Channel swap needs to have the same number of dimensions as the input channels."
            )
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor before the mean is subtracted: 255 for nets whose pixels range from 0 to 255."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """Set the mean to subtract: one value per channel, or an image (channels, height, width).

        An image of another size than the input is resized to it, as in the last pycaffe.
        """
        _, *shape = self._shape(in_)
        mean = np.asarray(mean)
        if mean.ndim == 1:
            if mean.shape[0] != shape[0]:
                raise WrongValue("Mean channels incompatible with input.")
            mean = mean[:, np.newaxis, np.newaxis]
        elif mean.ndim not in (2, 3):
            raise WrongValue("Mean shape invalid")
        else:
            stated = mean.shape if mean.ndim == 3 else (1, *mean.shape)
            if stated != tuple(shape):
                if stated[0] != shape[0]:
                    raise WrongValue("Mean channels incompatible with input.")
                mean = _resize_mean(mean.reshape(stated), (shape[1], shape[2]))
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor after the mean is subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale


def _transposed(array: np.ndarray, order: Sequence[int]) -> np.ndarray:
    if array.ndim != len(order):
        raise WrongValue(f"array of shape {array.shape}: the transpose is of {len(order)} axes")
    return array.transpose(order)


def _fitting(mean: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        if np.broadcast_shapes(mean.shape, shape) == shape:
            return mean
    except ValueError:
        pass
    raise WrongValue(
        f"mean of shape {mean.shape} does not fit the image, {shape}; set a transpose that puts channels first"
    )


def _resize_mean(mean: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    low, high = mean.min(), mean.max()
    span = (high - low) or 1
    resized = resize_image(((mean - low) / span).transpose(1, 2, 0), size).transpose(2, 0, 1)
    result: np.ndarray = resized * span + low
    return result


# ------------------------------------------------------------------------------------------- images


def load_image(filename: str | os.PathLike[str], color: bool = True) -> np.ndarray:
    """Return an image file as float32 (height, width, 3) in RGB, or (height, width, 1) in grey, from 0 to 1.

    A grey image is repeated to three channels, transparency dropped.  Raises DataError if it is not an image.
    """
    return load_rgb(filename) if color else load_grey(filename)


def resize_image(
    im: np.ndarray, new_dims: Sequence[int] | np.ndarray, interp_order: int = _LINEAR
) -> np.ndarray:
    """Resize (height, width, channels) to (height, width) as float32, by splines of ``interp_order``, linear by default.

    As in pycaffe, images of one or three channels go by scikit-image's rules (half-pixel centres, the image's minimum
    beyond its border) and others by those of SciPy's `zoom`, whose corners stay in place.
    """
    im, size = np.asarray(im), (int(new_dims[0]), int(new_dims[1]))
    if im.ndim != 3 or min(*im.shape, *size) < 1:
        raise WrongValue(
            f"image of shape {im.shape} to {size}: needs (height, width, channels), none of them 0"
        )
    if size[0] * size[1] * im.shape[2] > LARGEST_COUNT:
        raise WrongValue(
            f"image of shape {im.shape} to {size}: has more values than a blob holds; give a smaller size"
        )
    if interp_order not in range(_MOST_ORDER + 1):
        raise WrongValue(
            f"interp_order {interp_order} is not from 0 to {_MOST_ORDER}; 0 is nearest, 1 linear, 3 cubic"
        )
    if im.shape[-1] not in _BY_SKIMAGE:
        scale = tuple(np.array(size, dtype=float) / np.array(im.shape[:2]))
        resized: np.ndarray = zoom(im, (*scale, 1), order=interp_order)
        return resized.astype(np.float32)
    if interp_order == _LINEAR:
        return resize_linearly(im, size)
    low, high = im.min(), im.max()
    if low == high:
        return np.full((*size, im.shape[2]), low, np.float32)
    unit = (im - low) / (high - low)
    factors = (size[0] / im.shape[0], size[1] / im.shape[1], 1)
    drawn = zoom(unit, factors, order=interp_order, mode="grid-constant", cval=0, grid_mode=True)
    enlarged: np.ndarray = np.clip(drawn, 0, 1) * (high - low) + low
    return enlarged.astype(np.float32)


def oversample(
    images: Sequence[np.ndarray] | np.ndarray, crop_dims: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return ten crops (height, width) of each image: the corners, the centre, and the same five mirrored.

    ``images`` are (height, width, channels), all of one size; the crops are (10 N, height, width, channels).
    """
    if not len(images):
        raise WrongCall("no images to crop; give at least one")
    shape = np.asarray(images[0]).shape
    height, width = (int(length) for length in crop_dims)
    if len(shape) != 3 or not (0 < height <= shape[0] and 0 < width <= shape[1]):
        raise WrongValue(f"crops of {height}x{width} from an image of shape {shape}; resize the image first")
    below, right = shape[0] - height, shape[1] - width
    corners = ((0, 0), (0, right), (below, 0), (below, right), (below // 2, right // 2))
    crops = np.empty((10 * len(images), height, width, shape[2]), dtype=np.float32)
    for index, image in enumerate(images):
        if np.shape(image) != shape:
            raise WrongValue(
                f"image {index + 1} of {len(images)}: shape {np.shape(image)}, the first has {shape}"
            )
        for number, (top, left) in enumerate(corners):
            crop = np.asarray(image)[top : top + height, left : left + width]
            crops[10 * index + number] = crop
            crops[10 * index + 5 + number] = crop[:, ::-1]
    return crops


__all__: list[Any] = [
    "Transformer", "array_to_blobproto", "array_to_datum", "arraylist_to_blobprotovecor_str",
    "arraylist_to_blobprotovector_str", "blobproto_to_array", "blobprotovector_str_to_arraylist", "caffe_pb2",
    "datum_to_array", "load_image", "oversample", "resize_image",
]  # fmt: skip
