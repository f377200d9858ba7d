"""The boxes of SSD, Fast and Faster R-CNN and R-FCN in slow loops, box by box and pixel by pixel."""

from __future__ import annotations

import math

import numpy as np

F32 = np.float32


def c_round(x: float | np.float32) -> int:
    """Round halves away from zero."""
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)


def roi_bins(roi, pooled, size, scale):
    """Fast R-CNN's bins of one region in float32: (row, column) -> (top, bottom, left, right)."""
    x1, y1, x2, y2 = (c_round(F32(corner) * F32(scale)) for corner in roi[1:])
    tall = F32(max(y2 - y1 + 1, 1)) / F32(pooled[0])
    wide = F32(max(x2 - x1 + 1, 1)) / F32(pooled[1])
    for row, column in np.ndindex(*pooled):
        edges = []
        for place, step, first, limit in ((row, tall, y1, size[0]), (column, wide, x1, size[1])):
            edges.append(min(max(math.floor(F32(place) * step) + first, 0), limit))
            edges.append(min(max(math.ceil(F32(place + 1) * step) + first, 0), limit))
        yield (row, column), edges


def roi_pooling(x, rois, pooled, scale, diff=None):
    """The top, and for a given top gradient the bottom's: all of it goes to the first of equal maxima."""
    top = np.zeros((len(rois), x.shape[1], *pooled), x.dtype)
    slope = np.zeros_like(x)
    for index, roi in enumerate(rois):
        image = int(roi[0])
        for place, (y1, y2, x1, x2) in roi_bins(roi, pooled, x.shape[2:], scale):
            if y2 <= y1 or x2 <= x1:
                continue
            for channel in range(x.shape[1]):
                window = x[image, channel, y1:y2, x1:x2]
                row, column = np.unravel_index(window.argmax(), window.shape)
                top[(index, channel, *place)] = window[row, column]
                if diff is not None:
                    slope[image, channel, y1 + row, x1 + column] += diff[(index, channel, *place)]
    return top, slope


def psroi_pooling(x, rois, outputs, group, scale, diff=None):
    """R-FCN's position-sensitive average, and for a given top gradient the bottom's."""
    top = np.zeros((len(rois), outputs, group, group), x.dtype)
    slope = np.zeros_like(x)
    for index, roi in enumerate(rois):
        image = int(roi[0])
        low = [F32(c_round(roi[axis])) * F32(scale) for axis in (2, 1)]
        high = [F32(c_round(roi[axis]) + 1) * F32(scale) for axis in (4, 3)]
        step = [max(last - first, F32(0.1)) / F32(group) for first, last in zip(low, high, strict=True)]
        for channel, *place in np.ndindex(outputs, group, group):
            edges = []
            for axis in (0, 1):
                limit = x.shape[2 + axis]
                edges.append(min(max(math.floor(F32(place[axis]) * step[axis] + low[axis]), 0), limit))
                edges.append(min(max(math.ceil(F32(place[axis] + 1) * step[axis] + low[axis]), 0), limit))
            y1, y2, x1, x2 = edges
            if y2 <= y1 or x2 <= x1:
                continue
            own = (image, (channel * group + place[0]) * group + place[1], slice(y1, y2), slice(x1, x2))
            top[(index, channel, *place)] = x[own].astype(np.float64).mean()
            if diff is not None:
                slope[own] += diff[(index, channel, *place)] / ((y2 - y1) * (x2 - x1))
    return top, slope


def overlap(a, b, pixel):
    """Intersection over union; ``pixel`` is 1 where corners belong to the box."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + pixel
    height = min(a[3], b[3]) - max(a[1], b[1]) + pixel
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + pixel) * (box[3] - box[1] + pixel) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def suppress(boxes, scores, threshold, pixel=0, eta=1.0):
    """Indices that survive greedy suppression, best first."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        if all(overlap(boxes[index], boxes[other], pixel) <= threshold for other in kept):
            kept.append(index)
            if eta < 1 and threshold > 0.5:
                threshold *= eta
    return kept


def decode(offsets, prior, variance, code_type):
    """One box from its default box."""
    offsets = offsets * variance
    if code_type == "CORNER":
        return prior + offsets
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if code_type == "CORNER_SIZE":
        return prior + offsets * np.array([width, height, width, height])
    x = (prior[0] + prior[2]) / 2 + offsets[0] * width
    y = (prior[1] + prior[3]) / 2 + offsets[1] * height
    reach = width * math.exp(offsets[2]) / 2, height * math.exp(offsets[3]) / 2
    return np.array([x - reach[0], y - reach[1], x + reach[0], y + reach[1]])


def detect(loc, conf, priors, *, classes, background=0, shared=True, code_type="CORNER", encoded=False,
           threshold=0.3, eta=1.0, top_k=None, keep=None, confidence=-math.inf):  # fmt: skip
    """SSD's detections, 1×1×R×7."""
    count = priors.shape[2] // 4
    boxes = priors[0].reshape(2, count, 4)
    rows: list = []
    for image in range(len(loc)):
        found: list = []
        offsets = loc[image].reshape(count, -1, 4)
        scores = conf[image].reshape(count, classes)
        for label in range(classes):
            if label == background:
                continue
            likely = [p for p in range(count) if scores[p, label] > confidence]
            likely = sorted(likely, key=lambda p: -scores[p, label])[:top_k]
            variances = [np.ones(4) if encoded else boxes[1, p] for p in likely]
            own = [
                decode(offsets[p, 0 if shared else label], boxes[0, p], variance, code_type)
                for p, variance in zip(likely, variances, strict=True)
            ]
            for index in suppress(own, [scores[p, label] for p in likely], threshold, eta=eta):
                found.append([image, label, scores[likely[index], label], *own[index]])
        if keep is not None:
            least = sorted((row[2] for row in found), reverse=True)[:keep]
            found = [row for row in found if row[2] in least]
        rows += found
    rows = rows or [[image, *[-1] * 6] for image in range(len(loc))]
    return np.array(rows, F32)[None, None]


def unstable_sort(entries, count):
    """PVANet's `sort_box`: rows by falling score, the rows of one score in the order its swaps leave them."""

    def sort(start, end):
        pivot, left, right = entries[start][0], start + 1, end
        while left <= right:
            while left <= end and entries[left][0] >= pivot:
                left += 1
            while right > start and entries[right][0] <= pivot:
                right -= 1
            if left <= right:
                entries[left], entries[right] = entries[right], entries[left]
                left, right = left + 1, right - 1
        entries[start], entries[right] = entries[right], entries[start]
        if start < right - 1:
            sort(start, right - 1)
        if right + 1 < min(count, end):
            sort(right + 1, end)

    sort(0, len(entries) - 1)


def propose(scores, deltas, info, anchors, *, stride, top_n, threshold, min_size, keep_small=False):
    """Faster R-CNN's regions and their scores; with ``keep_small`` PVANet's (four values of ``info``) or R-FCN's."""
    height, width = scores.shape[2:]
    found = []
    for y, x in np.ndindex(height, width):
        for index, anchor in enumerate(anchors):
            x1, y1, x2, y2 = np.array(anchor) + [x * stride, y * stride] * 2
            wide, tall = x2 - x1 + 1, y2 - y1 + 1
            dx, dy, dw, dh = deltas[0, 4 * index : 4 * index + 4, y, x].astype(np.float64)
            centre_x, centre_y = x1 + wide / 2 + dx * wide, y1 + tall / 2 + dy * tall
            reach_x, reach_y = wide * math.exp(dw) / 2, tall * math.exp(dh) / 2
            box = [centre_x - reach_x, centre_y - reach_y, centre_x + reach_x, centre_y + reach_y]
            limits = [info[1] - 1, info[0] - 1] * 2
            box = [min(max(edge, 0), limit) for edge, limit in zip(box, limits, strict=True)]
            large = box[2] - box[0] + 1 >= min_size * info[-1] and box[3] - box[1] + 1 >= min_size * info[2]
            if large or keep_small:
                found.append((scores[0, len(anchors) + index, y, x] if large else 0, box))
    if len(info) == 4:
        unstable_sort(found, top_n[0])
    else:
        found.sort(key=lambda entry: -entry[0])
    found = found[: top_n[0]]
    kept = suppress([box for _, box in found], [score for score, _ in found], threshold, pixel=1)[: top_n[1]]
    regions = np.array([[0, *found[index][1]] for index in kept], F32).reshape(-1, 5)
    found_scores = np.array([found[index][0] for index in kept], F32)
    return regions, found_scores if keep_small else found_scores[:, None]


def prior_boxes(feature, image, sizes, variance, step=None, offset=0.5, clip=False):
    """SSD's default boxes for sizes in pixels, 1×2×4P."""
    step = step or (image[0] / feature[0], image[1] / feature[1])
    boxes = []
    for row, column in np.ndindex(*feature):
        y, x = (row + offset) * step[0], (column + offset) * step[1]
        for wide, tall in sizes:
            box = [(x - wide / 2) / image[1], (y - tall / 2) / image[0]]
            box += [(x + wide / 2) / image[1], (y + tall / 2) / image[0]]
            boxes += [min(max(edge, 0), 1) for edge in box] if clip else box
    variances = np.resize(np.asarray(variance), len(boxes))
    return np.array([[boxes, variances]], F32)
