"""Caffe's pooling as slow loops, straight from its rules."""

from __future__ import annotations

from math import ceil, floor

import numpy as np

LOWEST = np.finfo(np.float32).min


def slow_counts(size, kernel, stride, pad, ceil_mode):
    """The number of Caffe's windows, from its documentation of ceil, floor and the clip."""
    counts = [
        (ceil if ceil_mode else floor)((n + 2 * p - k) / s) + 1
        for n, k, s, p in zip(size, kernel, stride, pad, strict=True)
    ]
    if any(pad):
        counts = [
            c - 1 if (c - 1) * s >= n + p else c for c, n, s, p in zip(counts, size, stride, pad, strict=True)
        ]
    return counts


def slow_pool(x, method, kernel, stride, pad, *, ceil_mode):
    """Pool with four loops; returns the tops and, for MAX, the index in the plane."""
    count, channels, height, width = x.shape
    rows, columns = slow_counts((height, width), kernel, stride, pad, ceil_mode)
    top = np.zeros((count, channels, rows, columns), np.float64)
    mask = np.full(top.shape, -1.0)
    for place in np.ndindex(*top.shape):
        n, c, i, j = place
        top0, left0 = i * stride[0] - pad[0], j * stride[1] - pad[1]
        below, right = min(top0 + kernel[0], height + pad[0]), min(left0 + kernel[1], width + pad[1])
        area = (below - top0) * (right - left0)
        y0, x0 = max(top0, 0), max(left0, 0)
        window = x[n, c, y0 : max(min(below, height), y0), x0 : max(min(right, width), x0)].astype(np.float64)
        if method == "MAX":
            top[place] = LOWEST
            if window.size:
                y, z = np.unravel_index(window.argmax(), window.shape)
                top[place], mask[place] = window[y, z], (y0 + y) * width + x0 + z
        elif method == "AVE":
            top[place] = window.sum() / area if area else np.nan
        else:
            top[place] = (window**2).sum() / window.sum() if window.sum() > 0 else 0.0
    return top, mask
