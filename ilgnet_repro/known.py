"""Models that many people hold: what the manifest says of a weights file, or of a net with the same layers.

Everything known of a model is a row of a ``models.toml`` (manifest.py); nothing here is about one model.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .caffe.upgrade import upgrade_net
from .errors import DataError
from .manifest import listed, manifests, resolve
from .reading.preprocessing import Preprocessing
from .schema import caffe_pb2 as pb

_PIECE = 1 << 20


@dataclass(frozen=True)
class ScoreAt:
    """Which value of an output blob is the score: ``index`` counts along a row of ``output``."""

    output: str
    index: int
    meaning: str


@dataclass(frozen=True)
class KnownModel:
    """One row of the manifest.

    ``files`` are the names that its weights were published under, ``digests`` those of published builds
    (``sha256:...``, ``sha1:...``); ``size`` is None where it is not known, or builds differ.  ``builder`` is the
    zoo's function for its deploy net, ``other_nets`` those of nets with the same weights, ``net_layers`` how many layers
    with bottoms each of them has.  ``labels`` are named where they are few; ``classes`` counts them.  ``note`` says why
    there is no preprocessing, where there is none.
    """

    name: str
    title: str
    files: tuple[str, ...]
    size: int | None = None
    digests: tuple[str, ...] = ()
    builder: str | None = None
    other_nets: tuple[str, ...] = ()
    net_layers: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    classes: int = 0
    score: ScoreAt | None = None
    licence: str = ""
    page: str = ""
    note: str = ""

    @property
    def nets(self) -> tuple[str, ...]:
        """The builders of its nets, that of the deploy net first."""
        return (*((self.builder,) if self.builder else ()), *self.other_nets)


@dataclass(frozen=True)
class Identity:
    """What is known of a file.

    ``sha256`` is None where the file was not read for it.  ``model`` is certain: the digest is a published one.
    ``suspected`` is the model that the file is only named after, its digest being another one or unpublished.
    """

    file: str
    bytes: int
    sha256: str | None = None
    model: KnownModel | None = None
    suspected: KnownModel | None = None


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Every model that is listed, in the order of the lists."""
    labels = listed("labels")
    return tuple(_read_row(row, labels) for manifest in manifests() for row in manifest.get("model", ()))


def _read_row(row: dict[str, Any], lists: dict[str, list[str]]) -> KnownModel:
    fields = _with_tuples(row)
    if isinstance(fields.get("labels"), str):
        fields["labels"] = tuple(lists[fields["labels"]])
    if "labels" in fields:
        fields["classes"] = len(fields["labels"])
    if "preprocessing" in fields:
        fields["preprocessing"] = Preprocessing(**_with_tuples(fields["preprocessing"]))
    if "score" in fields:
        fields["score"] = ScoreAt(**fields["score"])
    return KnownModel(**fields)


def _with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def find_model(name: str) -> KnownModel | None:
    """The model of that name, or None."""
    return next((model for model in known_models() if model.name == name), None)


def identify(path: str | os.PathLike[str], *, sha256: bool = False) -> Identity:
    """Say which known model a file is.

    The file is hashed only where its size is a known model's, or its name that of one whose size is not known,
    or where ``sha256`` asks for it: of 600 MB that takes longer than to copy them.
    Raises DataError if the file cannot be read.
    """
    file = Path(path).name
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe would block
        raise DataError(f"{path}: is no file; give the weights")
    size = status.st_size
    named = next((model for model in known_models() if file in model.files), None)
    alike = [model for model in known_models() if _may_be(model, file, size)]
    if not sha256 and not alike:
        return Identity(file, size, suspected=named)
    kinds = {digest.partition(":")[0] for model in alike for digest in model.digests}
    digests = _digests(path, {"sha256", *kinds})
    told = {f"{kind}:{value}" for kind, value in digests.items()}
    model = next((model for model in alike if not told.isdisjoint(model.digests)), None)
    return Identity(file, size, digests["sha256"], model, None if model else named)


def _may_be(model: KnownModel, file: str, size: int) -> bool:
    if not model.digests:
        return False
    return file in model.files if model.size is None else model.size == size


def _digests(path: str | os.PathLike[str], kinds: set[str]) -> dict[str, str]:
    """Several digests of a file in one reading."""
    hashes = {kind: hashlib.new(kind, usedforsecurity=False) for kind in sorted(kinds)}
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                for value in hashes.values():
                    value.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return {kind: value.hexdigest() for kind, value in hashes.items()}


# ------------------------------------------------------------------------------ by its layers alone

# The fields that give a layer's blobs their shapes, in whichever of its messages they stand.
_BLOB_FIELDS = {
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
}
Layers = tuple[tuple[object, ...], ...]
Sizes = tuple[tuple[int, ...], ...]


def assumed(text: pb.NetParameter) -> KnownModel | None:
    """The model whose net has the layers of ``text``: names, types and the shapes of the blobs.

    This is a guess: a net trained on other data has the same layers.  Whoever uses the model's preprocessing or
    labels says so with `assumed_note`.  Of several models with these layers the first of the manifest is taken;
    one whose input is stated to be of another size is not, for its preprocessing would be of no use.
    """
    layers, sizes = _signature(text)
    model, own = _by_layers(len(layers)).get(layers, (None, ()))
    return None if sizes and own and sizes != own else model


ASSUMED = "preprocessing is assumed from "


def assumed_note(model: KnownModel, told_by: str = "the net's layers") -> str:
    """The line that says which preprocessing was assumed, and from what, or why there is none."""
    how = model.preprocessing
    if how is None:
        return f"by {told_by} this is {model.title}: {model.note}"
    return (
        f"{ASSUMED}{told_by} ({model.title}: {how.describe()}); "
        "if these weights were trained otherwise, state the preprocessing"
    )


@cache
def _by_layers(count: int) -> dict[Layers, tuple[KnownModel, Sizes]]:
    """The models with a net of so many layers; to build the nets of all takes longer than to map 604 MB."""
    found: dict[Layers, tuple[KnownModel, Sizes]] = {}
    for model in known_models():
        for builder, layer_count in zip(model.nets, model.net_layers, strict=True):
            if layer_count == count:
                layers, sizes = _signature(build_net(builder))
                found.setdefault(layers, (model, sizes))
    return found


def build_net(builder: str) -> pb.NetParameter:
    """The net that ``module:function`` builds."""
    net: pb.NetParameter = resolve(builder)()
    return net


def _signature(text: pb.NetParameter) -> tuple[Layers, Sizes]:
    """A net's layers, without those that feed it, and the sizes of its inputs where they are stated."""
    net = upgrade_net(text) if text.layers or text.input else text
    sizes = tuple(tuple(shape.dim[1:]) for layer in net.layer for shape in layer.input_param.shape)
    return tuple((layer.name, layer.type, *_blob_fields(layer)) for layer in net.layer if layer.bottom), sizes


def _blob_fields(layer: pb.LayerParameter) -> tuple[object, ...]:
    message = _BLOB_FIELDS.get(layer.type)
    if message is None:
        return ()
    param = getattr(layer, message)
    if message == "inner_product_param":
        return param.num_output, param.bias_term
    kernel = (param.kernel_h, param.kernel_w) if param.kernel_h else tuple(param.kernel_size)
    return param.num_output, param.group, param.bias_term, kernel if len(set(kernel)) > 1 else kernel[:1]
