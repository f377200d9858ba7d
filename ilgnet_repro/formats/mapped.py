"""Files opened as memory, and the name of what was given where another kind of file was expected."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import FormatError

_HEAD = 1024
_TEXT_BYTES = b"\t\n\v\f\r" + bytes(range(0x20, 0x100))
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIGNATURES = (
    (
        b"version https://git-lfs",
        "a Git-LFS pointer, not the file itself; run `git lfs pull` or download the file",
    ),
    (HDF5_SIGNATURE[:4], "an HDF5 file, not a protocol buffer; name it .h5 to read it as weights"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?), not a Caffe file; give the Caffe file"),
    (b"\x80\x02", "a Python pickle (a PyTorch checkpoint?), not a Caffe file; pickles are never read"),
    (b"\x80\x03", "a Python pickle, not a Caffe file; pickles are never read"),
    (b"\x80\x04", "a Python pickle, not a Caffe file; pickles are never read"),
    (b"\x80\x05", "a Python pickle, not a Caffe file; pickles are never read"),
    (b"\x93NUMPY", "a NumPy array, not a Caffe file; give the Caffe file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
)


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """Map a file into memory, copy-on-write: views are writable and the file never changes.

    Pages are read when they are touched.  Raises FormatError for a file that is absent, empty, no plain
    file, or plainly of another kind (a Git-LFS pointer, a zip archive, a pickle).
    """
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise FormatError(f"{name}: the file is empty; fetch it again")
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError:
                # A private mapping larger than memory and swap together may be refused: read-only then.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise FormatError(f"{path}: cannot be read ({error}); check the path") from error
    return memoryview(mapped)


def refuse_other_kinds(buffer: memoryview, name: str) -> None:
    """Raise FormatError if the first bytes are the signature of a file that is not Caffe's."""
    head = bytes(buffer[:_HEAD])
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            raise FormatError(f"{name}: {what}")


@contextlib.contextmanager
def text_recognised(buffer: memoryview, name: str) -> Iterator[None]:
    """Turn a FormatError raised inside into one that says so where the file is really text."""
    try:
        yield
    except FormatError as error:
        if looks_like_text(bytes(buffer[:_HEAD])):
            raise FormatError(f"{name}: text (a prototxt?), not binary; give the binary file") from error
        raise


def looks_like_text(head: bytes) -> bool:
    """Whether bytes hold no control character but white space: binary protobuf always has some."""
    return bool(head) and not head.translate(None, _TEXT_BYTES)
