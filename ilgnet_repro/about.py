"""What is known of a net besides its layers and weights: source, preprocessing, labels, score."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, FormatError, printable
from .files import json_text
from .known import ASSUMED, Identity, KnownModel, ScoreAt, assumed, assumed_note, find_model
from .reading.images import LARGEST_SIDE
from .reading.net_preprocessing import preprocessing_of
from .reading.preprocessing import ORDERS, Preprocessing, read_bgr
from .schema import caffe_pb2 as pb

FEW = 8  # labels shown in a repr


@dataclass(frozen=True)
class Source:
    """Where the weights came from; ``net`` is what the weights file itself calls its net.

    ``sha256`` is None where the file was not hashed, ``release`` the name of the known model.  ``derived``
    lists what was done to its weights since ("folded", "int8", or "changed" for anything else).
    """

    file: str
    bytes: int
    sha256: str | None = None
    release: str | None = None
    net: str = ""
    derived: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "release": self.release,
            "net": self.net,
            **({"derived": self.derived} if self.derived else {}),
        }

    def after(self, change: str) -> Source:
        """Return this with ``change`` added to ``derived``, unless it is there already."""
        known = self.derived.split(", ") if self.derived else []
        return self if change in known else replace(self, derived=", ".join([*known, change]))

    @classmethod
    def from_json(cls, values: Any) -> Source:
        """Read the result of `to_json`; missing keys are unknown.  Raises FormatError on anything else."""
        kinds: dict[str, type | tuple[type, ...]] = {
            "file": str, "bytes": int, "sha256": (str, type(None)), "release": (str, type(None)), "net": str,
            "derived": str,
        }  # fmt: skip
        if not isinstance(values, dict) or not {"file", "bytes"} <= values.keys():
            raise FormatError("source: not as this package writes it; convert the weights again")
        stated = {key: values[key] for key in kinds if key in values}
        for key, value in stated.items():
            if not isinstance(value, kinds[key]) or isinstance(value, bool):
                raise FormatError(
                    f"source: {key} {value!r:.60} is of the wrong type; convert the weights again"
                )
        return cls(**stated)


@dataclass(frozen=True, repr=False)
class About:
    """The metadata of a net.

    ``assumed`` means that preprocessing, labels and score are those of a model with the same layers, which
    may differ from the model these weights were trained as.  ``model`` is the name of the known model.  ``prototxt``
    is where the net's text was found, ``extra_layers`` are layers of the weights file that the net lacks.
    ``image_order`` is the channel order of a net that prepares uint8 images itself.
    """

    preprocessing: Preprocessing | None = None
    assumed: bool = False
    source: Source | None = None
    labels: tuple[str, ...] = ()
    score: ScoreAt | None = None
    model: str = ""
    notes: tuple[str, ...] = ()
    prototxt: str = ""
    extra_layers: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    image_order: str = ""

    def of_model(self, model: KnownModel, *, assumed: bool = False) -> About:
        """Return this with the metadata of a known model."""
        return replace(
            self, preprocessing=model.preprocessing, assumed=assumed, labels=model.labels, score=model.score,
            model=model.name,
        )  # fmt: skip

    def stating(self, preprocessing: Preprocessing) -> About:
        """Return this with the caller's preprocessing; a note keeps what else was assumed."""
        if not self.assumed:
            return replace(self, preprocessing=preprocessing)
        notes = tuple(note for note in self.notes if not note.startswith(ASSUMED))
        if self.labels or self.score:
            notes += (f"labels and score are assumed from those of {self.model}",)
        return replace(self, preprocessing=preprocessing, assumed=False, model="", notes=notes)

    def __repr__(self) -> str:
        guess = " (assumed)" if self.assumed else ""
        how = self.preprocessing.describe() if self.preprocessing else "unknown"
        lines = [f"preprocessing: {how}{guess if self.preprocessing else ''}"]
        if self.source:
            known = [one for one in (self.source.release, self.source.derived) if one]
            lines.append(", ".join([f"source: {self.source.file}, {self.source.bytes:,} bytes", *known]))
        if self.model:
            lines.append(f"model: {self.model}{guess}")
        if self.labels:
            more = ", ..." if len(self.labels) > FEW else ""
            lines.append(f"labels: {len(self.labels)} ({', '.join(self.labels[:FEW])}{more})")
        if self.score:
            lines.append(f"score: {self.score.output}[{self.score.index}], {self.score.meaning}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(["About:", *(f"  {printable(line)}" for line in lines)])

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of a converted file; a mean image is stored separately, as a tensor."""
        about = {
            **({"model": self.model} if self.model else {}),
            **({"assumed": True} if self.assumed else {}),
            **({"labels": list(self.labels)} if self.labels else {}),
            **({"score": vars(self.score)} if self.score else {}),
        }
        return {
            **({"source": json_text(self.source.to_json())} if self.source else {}),
            **({"preprocessing": self.preprocessing.to_json()} if self.preprocessing else {}),
            **({"about": json_text(about)} if about else {}),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], mean_image: np.ndarray | None = None) -> About:
        """Read the result of `to_metadata`, also of earlier versions, which wrote no ``about``.

        Raises FormatError, or DataError for the preprocessing, on anything else.
        """
        how = metadata.get("preprocessing")
        source = metadata.get("source")
        about = cls(
            preprocessing=None if how is None else Preprocessing.from_json(how, mean_image),
            source=None if source is None else Source.from_json(_object("source", source)),
            **_read_about(_object("about", metadata.get("about", "{}"))),
        )
        notes = () if about.source is None or not about.source.derived else (
            f"the weights are those of {about.source.file}, {about.source.derived} since",
        )  # fmt: skip
        model = find_model(about.model) if about.assumed else None
        return replace(about, notes=(*notes, assumed_note(model)) if model else notes)


def _object(key: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{key}: is not JSON ({error}); convert the weights again") from error
    if not isinstance(values, dict):
        raise FormatError(f"{key}: not as this package writes it; convert the weights again")
    return values


def _read_about(values: dict[str, Any]) -> dict[str, Any]:
    model, guess = values.get("model", ""), values.get("assumed", False)
    labels, score = values.get("labels", []), values.get("score")
    is_valid = (
        isinstance(model, str)
        and isinstance(guess, bool)
        and isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
    )
    if is_valid and score is not None:
        is_valid = (
            isinstance(score, dict)
            and score.keys() == {"output", "index", "meaning"}
            and isinstance(score["output"], str)
            and type(score["index"]) is int
            and score["index"] >= 0
            and isinstance(score["meaning"], str)
        )
    if not is_valid:
        raise FormatError("about: not as this package writes it; convert the weights again")
    at = None if score is None else ScoreAt(**score)
    return {"model": model, "assumed": guess, "labels": tuple(labels), "score": at}


# --------------------------------------------------------------------------- what is known of a net


def about_net(
    text: pb.NetParameter,
    identity: Identity | None = None,
    *,
    net: str = "",
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    shape: tuple[int, ...] | None = None,
    outputs: Collection[str] = (),
    folder: Path | None = None,
) -> About:
    """Return what is known of a net in modern form and of the file of its weights.

    The preprocessing is that of the net's own data layer; otherwise that of the known model, if the file is one;
    otherwise, with a note, that of a model with the same layers or file name.  ``net``
    is the file's own name for its net, ``shape`` that of the net's image input, ``outputs`` the net's, ``folder``
    the prototxt's.
    """
    channels, size = (shape[1], (shape[2], shape[3])) if shape and len(shape) == 4 else (None, None)
    how, notes_of_text = preprocessing_of(
        text, phase, size, folder, channels=channels, level=level, stages=stages
    )
    notes = list(notes_of_text)
    model, reason = (identity.model if identity else None), ""
    if model is None and how is None:  # no guess where the net states its own
        model, reason = _guess(text, identity.suspected if identity else None, size)
        if model:
            notes.append(assumed_note(model, reason))
    source = None
    if identity:
        release = identity.model.name if identity.model else None
        source = Source(identity.file, identity.bytes, identity.sha256, release, net)
    if model is None:
        return About(how, source=source, notes=tuple(notes))
    score = model.score if model.score and model.score.output in outputs else None
    return About(
        how or model.preprocessing, assumed=bool(reason), source=source, labels=model.labels, score=score,
        model=model.name, notes=tuple(notes),
    )  # fmt: skip


def _guess(
    text: pb.NetParameter, named: KnownModel | None, size: tuple[int, int] | None
) -> tuple[KnownModel | None, str]:
    """Return the model that a net may be, and the reason: its layers, or its file's name if the layers allow it."""
    alike = assumed(text)
    if named is not None:
        if named.builder and alike and named.builder == alike.builder:
            return named, "the net's layers and the file's name"
        if not named.builder and not alike and named.preprocessing and named.preprocessing.size == size:
            return named, "the file's name"
    return alike, "the net's layers" if alike else ""


# --------------------------------------------------------------------------------- from images to a blob


def prepare(
    about: About,
    images: Any,
    *,
    preprocessing: Preprocessing | None = None,
    size: tuple[int, int] | None = None,
    order: str = "BGR",
    net: str = "",
) -> np.ndarray:
    """Return images as the net's input blob: float32 N x C x H x W.

    An image is a path, a PIL image, or a uint8 array height x width (grey) or height x width x 1, 3 or 4
    (transparency is dropped), its channels in ``order``: BGR as `cv2.imread` gives them, or RGB.  ``images`` is
    one of these, several of them in any mix, or one array N x height x width x channels.  Arrays of other types are
    refused: whether their range is 0 to 1 or 0 to 255 is unknown.  ``size`` (height, width) replaces the
    preprocessing's.  Raises DataError, with the file's name or the image's number, for anything else.
    """
    listed = _listed(images)
    if about.image_order:
        return _stacked(listed, about.image_order, order)
    how = preprocessing or about.preprocessing
    if how is None:
        raise DataError(
            f"net {net!r}: nothing says how its images are prepared; give preprocessing=Preprocessing(size=..., "
            "mean_value=...)",
            option="preprocessing",
        )
    if order not in ORDERS:
        raise DataError(f"order {order!r}: the channels of an array are in the order BGR or RGB")
    if size is not None and size != how.size:
        how = replace(how, size=size)
    try:
        blob = np.empty((len(listed), 3, *how.size), np.float32)
    except MemoryError as error:
        raise DataError(f"{len(listed)} images do not fit in memory; prepare fewer at a time") from error
    for index, image in enumerate(listed):
        blob[index] = _prepare_one(how, image, order, f"image {index + 1} of {len(listed)}")
    return blob


def _stacked(listed: list[Any], wanted: str, order: str) -> np.ndarray:
    """Return images unprepared, uint8 N x height x width x 3 in ``wanted`` order, for a net that prepares them."""
    pixels = [
        _pixels(image, order, f"image {index + 1} of {len(listed)}") for index, image in enumerate(listed)
    ]
    sizes = {one.shape[:2] for one in pixels}
    if len(sizes) > 1:
        shown = ", ".join("x".join(map(str, size)) for size in sorted(sizes)[:3])
        raise DataError(f"images of several sizes ({shown}) cannot form a batch; give them one at a time")
    stacked = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), np.uint8)
    return np.ascontiguousarray(stacked if wanted == "BGR" else stacked[..., ::-1])


def _pixels(image: Any, order: str, where: str) -> np.ndarray:
    found = _opened(image, order, where, upright=True)
    return found if isinstance(found, np.ndarray) else read_bgr(found)


def _listed(images: Any) -> list[Any]:
    """Return ``images`` as a list; a single image and a 4-D array are accepted."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike) or _is_pil(images):
        return [images]
    if isinstance(images, bytes | Mapping) or not isinstance(images, Iterable) or _is_tensor(images):
        raise DataError(f"images: is of type {_kind(images)}; give paths, uint8 arrays or PIL images")
    return list(images)


def _prepare_one(how: Preprocessing, image: Any, order: str, where: str) -> np.ndarray:
    opened = _opened(image, order, where, upright=how.path == "crop")
    where = where if isinstance(opened, np.ndarray) else os.fsdecode(opened)
    try:
        return how(opened)
    except DataError as error:
        raise error if str(error).startswith(printable(where)) else DataError(f"{where}: {error}") from error


def _opened(image: Any, order: str, where: str, *, upright: bool) -> str | os.PathLike[str] | np.ndarray:
    """Return the path of an existing file, or pixels in BGR."""
    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):
            is_folder = os.path.isdir(image)
            where = os.fsdecode(image) or "''"
            raise DataError(f"{where}: {'is a folder; give its files' if is_folder else 'no such file'}")
        return image
    if isinstance(image, np.ndarray):
        return _bgr(image, order, where)
    if _is_pil(image):
        return _from_pil(image, where, upright=upright)
    raise DataError(f"{where}: is of type {_kind(image)}; give a path, a uint8 array or a PIL image")


def _bgr(image: np.ndarray, order: str, where: str) -> np.ndarray:
    """Return an array as uint8 height x width x 3, BGR."""
    if image.dtype != np.uint8:
        raise DataError(
            f"{where}: values are {image.dtype}; give uint8 from 0 to 255 (pass a prepared blob to the net itself)"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise DataError(f"{where}: shape {image.shape}; give height x width, or height x width x 3")
    if not all(1 <= side <= LARGEST_SIDE for side in image.shape[:2]):
        raise DataError(f"{where}: shape {image.shape}; sides are from 1 to {LARGEST_SIDE}")
    pixels = np.atleast_3d(image)[:, :, :3]
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return np.ascontiguousarray(pixels if order == "BGR" else pixels[:, :, ::-1])


# ---------------------------------------------------------------------------------------- PIL images

_ORIENTATION = 0x0112  # EXIF's tag
# The transform from stored pixels to the upright image, by the tag's value.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def _is_pil(image: Any) -> bool:
    """Return whether it is a PIL image, by its methods, since PIL may not be installed."""
    return isinstance(getattr(image, "mode", None), str) and callable(getattr(image, "convert", None))


def _from_pil(image: Any, where: str, *, upright: bool) -> np.ndarray:
    """Return a PIL image as BGR; ``upright`` applies its EXIF orientation, as decoding the file does."""
    where = getattr(image, "filename", "") or where
    if image.mode not in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
    ):
        raise DataError(f"{where}: PIL mode {image.mode} is not 8-bit; convert it to L or RGB")
    try:
        pixels = np.asarray(image.convert("RGB"))
        orientation = image.getexif().get(_ORIENTATION, 1) if upright and hasattr(image, "getexif") else 1
    except (OSError, ValueError, SyntaxError) as error:  # PIL decodes lazily
        raise DataError(f"{where}: cannot be decoded ({error}); give a JPEG or PNG") from error
    pixels = _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels
    return _bgr(pixels, "RGB", where)


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
