"""Files opened as memory."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from ..errors import FormatError


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """Map a file into memory, copy-on-write: views are writable and the file never changes.

    Pages are read when they are touched.  Raises FormatError for a file that is absent, empty or no plain file.
    """
    name = Path(path).name
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would wait for its writer
            raise FormatError(f"{path}: is not a plain file (a pipe or device); save its content to a file")
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
