"""NumPy's files of arrays (.npy, .npz), their sizes checked before memory is taken; nothing pickled is read."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError
from ..files import open_input

# What a damaged header, archive or stream makes NumPy and zipfile raise.
_DAMAGED = (
    *(OSError, ValueError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError, OverflowError),
    *(
        zipfile.BadZipFile,
        zlib.error,
        tokenize.TokenError,
        NotImplementedError,
        RuntimeError,
        KeyError,
        IndexError,
    ),
)


def load_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array of an .npy file. Raises DataError if it is none, or shorter than its header states."""
    try:
        with open_input(path) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except _DAMAGED as error:
        raise DataError(f"{path}: is not an npy file ({_reason(error)}); write it with numpy.save") from error


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name. Raises DataError if it, or a member of it, is none."""
    arrays = {}
    try:
        with open_input(path) as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = _read(stream, member.file_size)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: is not an npz file ({_reason(error)}); write it with numpy.savez"
        ) from error
    return arrays


def _read(stream: IO[bytes], size: int) -> np.ndarray:
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    stated, held = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or stated > held:
        raise ValueError(f"its header states {stated:,} bytes of values and {held:,} follow")
    stream.seek(0)
    return np.asarray(npy.read_array(stream, allow_pickle=False))


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
