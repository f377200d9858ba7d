"""Published models: what the manifest lists for a weights file, or for a net with the same layers.

Everything known of a model is a row of a ``models.toml`` (manifest.py); this module names no model.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .caffe.upgrade import upgrade_net
from .errors import DataError
from .files import file_digests
from .manifest import listed, model_rows, resolve
from .reading.preprocessing import Preprocessing
from .schema import caffe_pb2 as pb


@dataclass(frozen=True)
class ScoreAt:
    """Which value of an output blob is the score: ``index`` is the position in a row of ``output``.

    ``distribution`` is the output with the shares of the votes for 1, 2 and so on whose mean the score is, where there is
    one.
    """

    output: str
    index: int
    meaning: str
    distribution: str = ""


@dataclass(frozen=True)
class KnownModel:
    """One row of the manifest.

    ``files`` are the published names of its weights, ``digests`` the digests of published builds
    (``sha256:...``, ``sha1:...``); ``size`` is None where it is unknown or builds differ.  ``builder`` is the
    function that builds its deploy net, ``other_nets`` those of nets with the same weights, ``net_layers`` the numbers
    of layers with bottoms of these nets.  ``labels`` are listed where they are few; ``classes`` is their number.
    ``note`` is the reason where there is no preprocessing.
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
        """The builders of its nets, the deploy net first."""
        return (*((self.builder,) if self.builder else ()), *self.other_nets)


@dataclass(frozen=True)
class Identity:
    """What is known of a file.

    ``sha256`` is None where the file was not hashed.  ``model`` is certain: its digest was published.
    ``suspected`` is the model whose file name it has, while its digest differs or was not published.
    """

    file: str
    bytes: int
    sha256: str | None = None
    model: KnownModel | None = None
    suspected: KnownModel | None = None


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return every listed model, in the order of the manifests."""
    labels = listed("labels")
    return tuple(_read_row(row, labels) for row in model_rows())


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
    """Return the model of that name, or None."""
    return next((model for model in known_models() if model.name == name), None)


def identify(path: str | os.PathLike[str], *, sha256: bool = False) -> Identity:
    """Identify a file as a known model.

    The file is hashed only where its size is a known model's, or its name that of one whose size is not known,
    or with ``sha256``: hashing 600 MB takes longer than copying them.
    Raises DataError if the file cannot be read.
    """
    file = Path(path).name
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe would block
        raise DataError(f"{path}: is not a file; give the weights")
    size = status.st_size
    named = next((model for model in known_models() if file in model.files), None)
    alike = [model for model in known_models() if _may_be(model, file, size)]
    if not sha256 and not alike:
        return Identity(file, size, suspected=named)
    kinds = {digest.partition(":")[0] for model in alike for digest in model.digests}
    digests = file_digests(path, {"sha256", *kinds})
    found = {f"{kind}:{value}" for kind, value in digests.items()}
    model = next((model for model in alike if not found.isdisjoint(model.digests)), None)
    return Identity(file, size, digests["sha256"], model, None if model else named)


def _may_be(model: KnownModel, file: str, size: int) -> bool:
    if not model.digests:
        return False
    return file in model.files if model.size is None else model.size == size


# ------------------------------------------------------------------------------ by layers

# The messages with the fields that determine a layer's blob shapes.
_BLOB_FIELDS = {
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
}
BlobFields = tuple[int | tuple[int, ...], ...]
Layers = tuple[tuple[str | int | tuple[int, ...], ...], ...]
Sizes = tuple[tuple[int, ...], ...]


def assumed(text: pb.NetParameter) -> KnownModel | None:
    """Return the model whose net has the layers of ``text`` (names, types and blob shapes), or None.

    This is a guess: a net trained on other data may have the same layers.  Callers that use the model's preprocessing or
    labels add `assumed_note`.  Of several models with these layers the first one listed is returned;
    a model with another input size does not match, because its preprocessing would not fit.
    """
    layers, sizes = _signature(text)
    model, own = _by_layers(len(layers)).get(layers, (None, ()))
    return None if sizes and own and sizes != own else model


ASSUMED = "preprocessing is assumed from "


def assumed_note(model: KnownModel, reason: str = "the net's layers") -> str:
    """Return the note on which preprocessing was assumed, and from what, or why there is none."""
    how = model.preprocessing
    if how is None:
        return f"by {reason} this is {model.title}: {model.note}"
    return (
        f"{ASSUMED}{reason} ({model.title}: {how.describe()}); "
        "if these weights were trained otherwise, state the preprocessing"
    )


@cache
def _by_layers(count: int) -> dict[Layers, tuple[KnownModel, Sizes]]:
    """Return the models with a net of that many layers; building the nets of all models would be slow."""
    found: dict[Layers, tuple[KnownModel, Sizes]] = {}
    for model in known_models():
        for builder, layer_count in zip(model.nets, model.net_layers, strict=True):
            if layer_count == count:
                layers, sizes = _signature(build_net(builder))
                found.setdefault(layers, (model, sizes))
    return found


def build_net(builder: str) -> pb.NetParameter:
    """Return the net that ``module:function`` builds."""
    net: pb.NetParameter = resolve(builder)()
    return net


def _signature(text: pb.NetParameter) -> tuple[Layers, Sizes]:
    """Return a net's layers without its inputs, and the input sizes where they are stated."""
    net = upgrade_net(text) if text.layers or text.input else text
    sizes = tuple(tuple(shape.dim[1:]) for layer in net.layer for shape in layer.input_param.shape)
    return tuple((layer.name, layer.type, *_blob_fields(layer)) for layer in net.layer if layer.bottom), sizes


def _blob_fields(layer: pb.LayerParameter) -> BlobFields:
    message = _BLOB_FIELDS.get(layer.type)
    if message is None:
        return ()
    param = getattr(layer, message)
    if message == "inner_product_param":
        return param.num_output, param.bias_term
    kernel = (param.kernel_h, param.kernel_w) if param.kernel_h else tuple(param.kernel_size)
    return param.num_output, param.group, param.bias_term, kernel if len(set(kernel)) > 1 else kernel[:1]
