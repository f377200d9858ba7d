"""`save`: writes a net to files, all of them or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from ..caffe.prototxt import read_net
from ..caffe.upgrade import upgrade_net
from ..errors import IlgnetError, printable
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from .changed_weights import present_about
from .formats import check_options, format_of, read_options
from .saving import Progress, SaveOptions, make_saving

PathLike = str | os.PathLike[str]


def save(
    net: CaffeNet, path: PathLike, *, progress: Progress = None, **options: Unpack[SaveOptions]
) -> tuple[Path, ...]:
    """Save a net in its present state in the format of the suffix of ``path``; return the paths written.

    ``.safetensors`` (all that `load` needs), ``.caffemodel`` and ``.caffemodel.h5`` (with the prototxt beside it),
    ``.onnx``, ``.pt2``, ``.py`` (with its weights beside it).  Files are complete or absent; the file that ``net`` is
    mapped from may be replaced.  ``fold`` multiplies BatchNorm and the like into the layers before them;
    ``precision`` is that of dense weights; ``dynamic_size`` leaves height and width open; ``with_preprocessing`` makes
    the input uint8 images in ``input_order``; ``fast_lrn`` writes LRN as a convolution.  Raises IlgnetError where the
    format cannot store the net, by layer, and where a different net's prototxt would be replaced.
    """
    target = Path(path)
    format_, chosen = format_of(target), read_options(options)
    check_options([format_], chosen)
    if not target.parent.is_dir():
        raise IlgnetError(f"{target.parent}: is not a folder; create it first")
    if target.is_dir():
        raise IlgnetError(f"{target}: is a folder; give a file's name")
    saving = make_saving(net, chosen, progress, present_about(net))
    with staging(target.parent, target.name) as stage, as_loaded(net):
        written = format_.write(saving, stage / target.name)
        return publish(written, target.parent)


def publish(written: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Move finished files into place, each main file after those it needs; return their new paths.

    An existing prototxt with the same content is kept.  Raises IlgnetError where its content differs.
    """
    kept = {path for path in written if path.suffix == ".prototxt" and _is_same_net(path, folder / path.name)}
    for path in reversed(written):
        if path not in kept:
            try:
                os.replace(path, folder / path.name)
            except OSError as error:
                raise IlgnetError(f"{folder / path.name}: cannot be written ({error.strerror})") from error
    return tuple(folder / path.name for path in written)


def _is_same_net(path: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    try:
        same = upgrade_net(read_net(target)) == read_net(path)
    except (IlgnetError, OSError):
        same = False
    if not same:
        raise IlgnetError(
            f"{target}: already exists and holds another net than the one saved; give another name, or remove it"
        )
    return True


@contextmanager
def staging(folder: Path, stem: str) -> Iterator[Path]:
    """Yield a hidden temporary folder beside the results, removed when the block ends."""
    try:
        path = Path(tempfile.mkdtemp(prefix=f".{stem}.", dir=folder))
    except OSError as error:
        raise IlgnetError(
            f"{folder}: cannot be written ({error.strerror}); give another as out=", option="out"
        ) from error
    try:
        yield path
    except IlgnetError as error:  # name the file that the caller gave
        error.args = (str(error).replace(printable(str(path)), printable(str(folder))),)
        raise
    finally:
        shutil.rmtree(path, ignore_errors=True)
