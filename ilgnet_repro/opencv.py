"""OpenCV's functions under the names of ``cv2``, imported when one is first used.

Use it as ``from .. import opencv as cv2``: what needs no images then works without OpenCV, and what does need them says
in one line what to install.
"""

from __future__ import annotations

import sys
from typing import Any

from .errors import IlgnetError

_settings = {"use_one_thread": False}


def use_one_thread() -> None:
    """Let OpenCV start no threads and log errors only: now, or when it is imported, which takes as long as a command."""
    _settings["use_one_thread"] = True
    if "cv2" in sys.modules:
        _cv2()


def __getattr__(name: str) -> Any:
    return getattr(_cv2(), name)


def _cv2() -> Any:
    """Import and return ``cv2``.  Raises IlgnetError, not DataError, which would count as one bad image."""
    try:
        import cv2
    except ImportError as error:
        raise IlgnetError(f"OpenCV cannot be imported ({error}); {_INSTALL}") from error
    # The two packages write the same folder: uninstalling one of them takes the other's files along.
    if not hasattr(cv2, "imdecode"):
        raise IlgnetError(f"OpenCV is incomplete: cv2 has no function imdecode; {_INSTALL}")
    if _settings["use_one_thread"]:
        _settings["use_one_thread"] = False
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2


_INSTALL = (
    "run pip uninstall opencv-python opencv-python-headless, then pip install opencv-python-headless "
    "(or opencv-python, not both)"
)
