"""`save`: a net in, files out; all of them, or none."""

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
from .formats import SaveOptions, check_options, format_of, read_options
from .provenance import present_about
from .saving import Progress, make_saving

PathLike = str | os.PathLike[str]


def save(
    net: CaffeNet, path: PathLike, *, progress: Progress = None, **options: Unpack[SaveOptions]
) -> tuple[Path, ...]:
    """Save a net, as it is now, in the format that the suffix of ``path`` names; return the paths written.

    ``.safetensors`` (all that `load` needs), ``.caffemodel`` and ``.caffemodel.h5`` (with the prototxt beside it),
    ``.onnx``, ``.pt2``, ``.py`` (with its weights beside it).  A file is whole or absent; one that ``net`` itself is
    mapped from may be replaced.  ``fold`` multiplies BatchNorm and the like into the layers before them;
    ``precision`` is that of dense weights; ``dynamic_size`` leaves height and width open; ``with_preprocessing`` takes
    uint8 images in ``input_order``; ``fast_lrn`` writes LRN as a convolution.  Raises IlgnetError where the net holds
    what the format cannot, by layer, and where a different net's prototxt would be replaced.
    """
    target = Path(path)
    format_, chosen = format_of(target), read_options(options)
    check_options([format_], chosen)
    if not target.parent.is_dir():
        raise IlgnetError(f"{target.parent}: is no folder; make it first")
    if target.is_dir():
        raise IlgnetError(f"{target}: is a folder; give a file's name")
    saving = make_saving(net, chosen, progress, present_about(net))
    with staging(target.parent, target.name) as stage, as_loaded(net):
        written = format_.write(saving, stage / target.name)
        return publish(written, target.parent)


def publish(written: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Move files that are whole into place, each main file after those it needs; return their new paths.

    A prototxt that is there and says the same stays.  Raises IlgnetError where it says something else.
    """
    kept = {
        path for path in written if path.suffix == ".prototxt" and _says_the_same(path, folder / path.name)
    }
    for path in reversed(written):
        if path not in kept:
            try:
                os.replace(path, folder / path.name)
            except OSError as error:
                raise IlgnetError(f"{folder / path.name}: cannot be written ({error.strerror})") from error
    return tuple(folder / path.name for path in written)


def _says_the_same(path: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    try:
        same = upgrade_net(read_net(target)) == read_net(path)
    except (IlgnetError, OSError):
        same = False
    if not same:
        raise IlgnetError(
            f"{target}: is there already and holds another net than the one saved; give another name, or remove it"
        )
    return True


@contextmanager
def staging(folder: Path, stem: str) -> Iterator[Path]:
    """A hidden folder beside the results, gone when the block ends, however it ends."""
    try:
        path = Path(tempfile.mkdtemp(prefix=f".{stem}.", dir=folder))
    except OSError as error:
        raise IlgnetError(
            f"{folder}: cannot be written ({error.strerror}); give another as out=", option="out"
        ) from error
    try:
        yield path
    except IlgnetError as error:  # told of the file that the caller named
        error.args = (str(error).replace(printable(str(path)), printable(str(folder))),)
        raise
    finally:
        shutil.rmtree(path, ignore_errors=True)
