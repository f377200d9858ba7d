"""Refuses a file of the wrong kind, in one line: what it is, what was expected, what to do.

`expect` is what a reader calls first; `naming_kind` and `kind_named` are for formats that have no kind of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FormatError, IlgnetError
from .kinds import Kind, kind_of


def expect(path: str | os.PathLike[str], *kinds: Kind, what: str = "weights") -> Kind:
    """Return the kind of a file that must be one of ``kinds``.

    A reader with its own errors for damaged files lists UNKNOWN too. ``what`` names the expected file in the
    message: a key of `WANTED`, or another phrase. Raises the FormatError of `refusal`.
    """
    kind = kind_of(path)
    if kind not in kinds:
        raise refusal(path, kind, what)
    return kind


# A file damaged beyond recognition is read by its suffix, because that reader reports what is wrong.
_NAMED = {
    ".caffemodel": Kind.CAFFEMODEL,
    ".caffemodel.h5": Kind.CAFFEMODEL_H5,
    ".safetensors": Kind.SAFETENSORS,
    ".onnx": Kind.ONNX,
    ".pt2": Kind.PT2,
}


def expect_or_named(path: str | os.PathLike[str], *kinds: Kind, what: str = "weights") -> Kind:
    """Return the kind of a file as `expect`; a damaged file has the kind of its suffix."""
    kind = kind_of(path)
    if kind is Kind.UNKNOWN or kind is Kind.EMPTY:
        name = Path(path).name.lower()
        kind = next((named for suffix, named in _NAMED.items() if name.endswith(suffix)), kind)
    if kind not in kinds:
        raise refusal(path, kind, what)
    return kind


def refusal(path: str | os.PathLike[str], kind: Kind, what: str = "weights") -> FormatError:
    """Return the error for a file of this kind where ``what`` was expected: what it is, what it is not, what to do."""
    name = Path(path).name
    if kind is Kind.EMPTY:
        return FormatError(f"{name}: the file is empty; fetch it again")
    if kind is Kind.LFS_POINTER:
        return FormatError(
            f"{name}: is a Git-LFS pointer, not the file itself; run `git lfs pull` or download the file"
        )
    name_of_what = what.partition(" (")[0]
    keys = ((kind, name_of_what), (kind, _ALIKE.get(name_of_what, "")), (kind, ""))
    remedy = next((_REMEDIES[key] for key in keys if key in _REMEDIES), "")
    remedy = remedy or f"give {WANTED.get(name_of_what, what)}"
    option = "prototxt" if "prototxt=" in remedy else ""
    return FormatError(f"{name}: is {kind.value}, not {what}; {remedy}", option=option)


def naming_kind(error: IlgnetError, path: str | os.PathLike[str], what: str, *kinds: Kind) -> IlgnetError:
    """Return a reader's ``error`` for a file, or the refusal that names its kind where it is plainly another one.

    For formats that have no kind of their own: lists, tables, logs.  ``kinds`` may hold what is expected.
    """
    try:
        kind = kind_of(path)
    except FormatError:  # it cannot be read, which the reader has said
        return error
    return error if kind in (*kinds, Kind.EMPTY, Kind.TEXT, Kind.UNKNOWN) else refusal(path, kind, what)


@contextmanager
def kind_named(path: str | os.PathLike[str], what: str, *kinds: Kind) -> Iterator[None]:
    """Raise an error of the block as `naming_kind` returns it."""
    try:
        yield
    except IlgnetError as error:
        named = naming_kind(error, path, what, *kinds)
        if named is error:
            raise
        raise named from error


WANTED = {
    "weights": "the weights file",
    "Caffe weights": "the .caffemodel, .caffemodel.h5 or .safetensors file",
    "a net with its weights": "a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file",
    "a net that can be compared": "one of these",
    "a net to draw": "a prototxt, or a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file",
    "a net's prototxt": "the net's text",
    "a solver's prototxt": "the solver's text",
    "a solver state": "the .solverstate of a snapshot",
    "a mean file": "the .binaryproto",
    "an LMDB database": "the folder of data.mdb",
    "an image": "a JPEG or PNG",
    "a list of labels": "one label per line",
    "an image list": "rows of `path label`",
    "a list of HDF5 files": "one path per row",
    "an npz file": "what numpy.savez wrote",
    "a run's result": "the run.json that `ilgnet test` wrote",
    "a log of `caffe test`": "the log",
    "a scores file": "what `ilgnet partition --scores` wrote",
    "a list of image ids": "rows of ID or ID.jpg",
}
# Expected files with the remedies of another.
_ALIKE = dict.fromkeys(("Caffe weights", "a net with its weights", "a net that can be compared"), "weights")
_SWAPPED = "the arguments may be swapped"
_ORIGINAL = "give the .caffemodel, .caffemodel.h5 or .safetensors file that it was made from"
_PAGE = "download the file itself, not a web page about it"
_REMEDIES: dict[tuple[Kind, str], str] = {
    (Kind.PROTOTXT, "weights"): f"give the weights file here and this one as prototxt=; {_SWAPPED}",
    (Kind.PROTOTXT, "a net with its weights"): (
        f"give the weights file here and this one as prototxt=; {_SWAPPED}; to draw weights, "
        "load_net(prototxt) in Python"
    ),
    **{
        (kind, "weights"): _ORIGINAL
        for kind in (Kind.ONNX, Kind.PT2, Kind.PYTHON, Kind.TFLITE, Kind.OPENVINO, Kind.COREML)
    },
    (Kind.SAFETENSORS, "a net's prototxt"): "give it as the weights: it contains its own net",
    (Kind.PROTOTXT, "a solver's prototxt"): "give the solver that names this net",
    (Kind.SOLVER, "weights"): "give the weights file here, not the solver",
    (Kind.SOLVER, "a net's prototxt"): "give the file that its `net` or `train_net` names",
    (Kind.SOLVERSTATE, "weights"): "give the .caffemodel of the same snapshot",
    (Kind.SOLVERSTATE_H5, "weights"): "give the .caffemodel.h5 of the same snapshot",
    (Kind.CAFFEMODEL, "a solver state"): "give the .solverstate of the same snapshot",
    (Kind.CAFFEMODEL_H5, "a solver state"): "give the .solverstate.h5 of the same snapshot",
    (Kind.BINARYPROTO, "weights"): "give the weights file here and this one as the mean",
    **{
        (kind, "a net's prototxt"): f"give the net's text as prototxt= and this file as the weights; {_SWAPPED}"
        for kind in (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5)
    },
    **{(kind, ""): _PAGE for kind in (Kind.HTML, Kind.XML, Kind.JSON)},
    **{
        (kind, ""): "unpack it first"
        for kind in (Kind.ZIP, Kind.TAR, Kind.GZIP, Kind.BZIP2, Kind.XZ, Kind.ZSTD, Kind.SEVEN_ZIP, Kind.RAR)
    },
    **{
        (kind, "a list of HDF5 files"): "write its path into a text file and give that"
        for kind in (Kind.HDF5, Kind.CAFFEMODEL_H5)
    },
    **{
        (kind, what): "pickles are never read; give the Caffe file"
        for kind in (Kind.TORCH, Kind.PICKLE)
        for what in ("weights", "a net to draw", "a net's prototxt", "a solver's prototxt", "a solver state", "a mean file")
    },
    (Kind.UNKNOWN, ""): "fetch it again or give another",
}  # fmt: skip
