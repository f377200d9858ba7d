"""Boxes of detectors: greedy non-maximum suppression, and decoding offsets to default boxes."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .base import Layer, Shape, uses
from .tracing import refuse_tracing


def default_box_count(
    layer: Layer, loc: Shape, conf: Shape, boxes: Shape, classes: int, is_shared: bool
) -> int:
    """Return the number of SSD's default boxes; raise LayerError where the predictions are not one for each."""
    if len(boxes) < 3 or boxes[:2] != (1, 2) or boxes[2] % 4:
        raise layer.error(f"default boxes {list(boxes)} must be 1×2×4P")
    count = boxes[2] // 4
    each = 4 if is_shared else 4 * classes
    for what, shape, wanted in (("offsets", loc, count * each), ("scores", conf, count * classes)):
        if len(shape) < 2 or shape[1] != wanted or prod(shape[2:]) != 1:
            more = shape[1] - wanted if len(shape) > 1 else 0
            is_faceboxes = what == "offsets" and more > 0 and more % (each * (21 - 3)) == 0
            cause = (
                "; if its boxes are FaceBoxes', of which three sizes make 21, state "
                "prior_box_param { variant: FACEBOXES }"
            )
            raise layer.error(
                f"{what} {list(shape)} must be N×{wanted} for {count} default boxes{cause if is_faceboxes else ''}"
            )
    if loc[0] != conf[0]:
        raise layer.error(f"offsets {list(loc)} and scores {list(conf)} differ in their number of images")
    return count


def greedy_nms(
    boxes: Tensor,
    threshold: float,
    *,
    pixel: float = 0.0,
    eta: float = 1.0,
    limit: int | None = None,
    drop_equal: bool = False,
) -> Tensor:
    """Return the indices of boxes (sorted best first) that overlap no better kept box by more than the threshold.

    With ``drop_equal`` an overlap equal to the threshold is too much.  ``pixel`` is 1 where corners are pixels that
    belong to the box, 0 where they are its edges.
    With ``eta`` under 1 each kept box lowers a threshold over 0.5 by that factor, SSD's adaptive NMS.
    """
    refuse_tracing()
    x1, y1, x2, y2 = boxes.unbind(1)
    areas = (x2 - x1 + pixel).clamp(min=0) * (y2 - y1 + pixel).clamp(min=0)
    most = torch.full_like(areas, -1)  # the greatest overlap with any kept box
    kept: list[int] = []
    start = 0
    while len(kept) != limit:
        left = most[start:]
        candidates = (left < threshold if drop_equal else left <= threshold).nonzero()
        if not len(candidates):
            break
        best = start + int(candidates[0])
        kept.append(best)
        width = (torch.minimum(x2, x2[best]) - torch.maximum(x1, x1[best]) + pixel).clamp(min=0)
        height = (torch.minimum(y2, y2[best]) - torch.maximum(y1, y1[best]) + pixel).clamp(min=0)
        both = width * height
        overlap = torch.where(both > 0, both / (areas + areas[best] - both), 0)
        most = torch.maximum(most, overlap)
        start = best + 1
        if eta < 1 and threshold > 0.5:
            threshold *= eta
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


uses(greedy_nms, refuse_tracing)


def decode_boxes(offsets: Tensor, priors: Tensor, variances: Tensor, code_type: str) -> Tensor:
    """Return the corners of boxes given as offsets to default boxes (last axis 4), in SSD's three encodings."""
    offsets = offsets * variances
    if code_type == "CORNER":
        return priors + offsets
    size = priors[..., 2:] - priors[..., :2]
    if code_type == "CORNER_SIZE":
        return priors + offsets * torch.cat([size, size], -1)
    centre = (priors[..., :2] + priors[..., 2:]) / 2 + offsets[..., :2] * size
    reach = offsets[..., 2:].exp() * size / 2
    return torch.cat([centre - reach, centre + reach], -1)
