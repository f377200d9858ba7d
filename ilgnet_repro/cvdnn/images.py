"""Images as blobs and boxes without overlaps: OpenCV's own functions, which OpenCV 5 still has.

What they refuse is an IlgnetError here, in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from .. import opencv as cv2
from ..errors import IlgnetError, excerpt


def one_line(error: BaseException) -> str:
    """Return OpenCV's message without its version and place: ``error: (-215:Assertion failed) ...``."""
    text = " ".join(str(error).split())
    return excerpt(text.rpartition("error: ")[2] or type(error).__name__, 200)


def _of_opencv(name: str) -> Callable[..., Any]:
    def call(*given: Any, **options: Any) -> Any:
        try:
            return getattr(cv2.dnn, name)(*given, **options)
        except (cv2.error, TypeError, ValueError) as error:
            raise IlgnetError(f"{name}: {one_line(error)}") from error

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"OpenCV's `cv2.dnn.{name}`."
    return call


blobFromImage = _of_opencv("blobFromImage")
blobFromImages = _of_opencv("blobFromImages")
blobFromImageWithParams = _of_opencv("blobFromImageWithParams")
blobFromImagesWithParams = _of_opencv("blobFromImagesWithParams")
imagesFromBlob = _of_opencv("imagesFromBlob")
NMSBoxes = _of_opencv("NMSBoxes")
NMSBoxesBatched = _of_opencv("NMSBoxesBatched")
NMSBoxesRotated = _of_opencv("NMSBoxesRotated")
softNMSBoxes = _of_opencv("softNMSBoxes")


@wraps(blobFromImage)
def Image2BlobParams(*given: Any, **options: Any) -> Any:
    """OpenCV's class of parameters for `blobFromImageWithParams`."""
    return cv2.dnn.Image2BlobParams(*given, **options)
