"""Matching of default boxes to true boxes, as SSD trains with them."""

from __future__ import annotations

import torch
from torch import Tensor

UNMATCHED, IGNORED = -1, -2  # in place of the number of a true box
LEAST_OVERLAP = 1e-6


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of each pair of boxes; 0 where there is no intersection."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    size = (torch.minimum(boxes[:, None, 2:], others[None, :, 2:]) - low).clamp(min=0)
    areas = [box_areas(corners) for corners in (boxes, others)]
    both = size[..., 0] * size[..., 1]
    return torch.where(both > 0, both / (areas[0][:, None] + areas[1] - both), 0)


def box_areas(boxes: Tensor) -> Tensor:
    """Return the areas of boxes; 0 for one whose corners are swapped."""
    size = boxes[:, 2:] - boxes[:, :2]
    return torch.where((size >= 0).all(1), size[:, 0] * size[:, 1], 0)


def match(boxes: Tensor, truth: Tensor, *, each: float | None, ignore_outside: bool) -> tuple[Tensor, Tensor]:
    """Return for each box the number of its true box (`UNMATCHED`, `IGNORED`), and its greatest overlap.

    First each true box takes the free box that overlaps it most, the greatest overlap of all first; then, where
    ``each`` is a threshold, each free box takes the true box that it overlaps most, from the threshold on.
    """
    index = torch.full((len(boxes),), UNMATCHED, device=boxes.device)
    if not len(truth):
        return index, boxes.new_zeros(len(boxes))
    table = overlaps(boxes, truth)
    if ignore_outside:
        index[((boxes < 0) | (boxes > 1)).any(1)] = IGNORED
    table = torch.where((table > LEAST_OVERLAP) & (index == UNMATCHED)[:, None], table, 0)
    most = table.amax(1)
    free = table.clone()
    for _ in range(len(truth)):
        value, place = free.flatten().max(0)
        if value <= 0:
            break
        box, chosen = divmod(int(place), len(truth))
        index[box], most[box] = chosen, value
        free[box] = free[:, chosen] = 0
    if each is not None:
        value, true = table.max(1)
        late = (index == UNMATCHED) & (value >= each) & (value > 0)
        index[late], most[late] = true[late], value[late]
    return index, most


def encode_boxes(boxes: Tensor, priors: Tensor, code_type: str) -> Tensor:
    """Return the offsets of boxes to default boxes, without their variances: the inverse of `decode_boxes`."""
    if code_type == "CORNER":
        return boxes - priors
    size = priors[:, 2:] - priors[:, :2]
    if code_type == "CORNER_SIZE":
        return (boxes - priors) / torch.cat([size, size], 1)
    centre = (boxes[:, :2] + boxes[:, 2:] - priors[:, :2] - priors[:, 2:]) / 2
    return torch.cat([centre / size, ((boxes[:, 2:] - boxes[:, :2]) / size).log()], 1)
