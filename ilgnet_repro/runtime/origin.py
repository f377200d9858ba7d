"""The file that a net's weights were loaded from, as it was then."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """A file and its stamp, which changes when the file is replaced or written."""

    path: Path
    stamp: tuple[int, int, int, int]  # device, inode, bytes, time of its last change

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Origin | None:
        """Return the file with its present stamp; None where there is no file."""
        absolute = Path(os.path.abspath(path))
        try:
            status = absolute.stat()
        except OSError:
            return None
        return cls(absolute, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
