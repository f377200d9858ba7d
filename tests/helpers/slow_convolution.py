"""Convolution and its transpose as slow loops over any number of axes, straight from their sums."""

from __future__ import annotations

from itertools import product

import numpy as np


def slow_convolution(x, weight, bias, geometry, group):
    """Sum over every tap separately; ``geometry`` is (stride, pad, dilation), one number per axis each."""
    stride, pad, dilation = geometry
    kernel = weight.shape[2:]
    axes = range(len(kernel))
    extents = [
        (x.shape[2 + a] + 2 * pad[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in axes
    ]
    outputs, inputs = weight.shape[0] // group, weight.shape[1]
    top = np.zeros((x.shape[0], weight.shape[0], *extents))
    for n, o, *place in np.ndindex(*top.shape):
        total = 0.0 if bias is None else float(bias[o])
        for c, *tap in product(range(inputs), *map(range, kernel)):
            at = [place[a] * stride[a] - pad[a] + tap[a] * dilation[a] for a in axes]
            if all(0 <= at[a] < x.shape[2 + a] for a in axes):
                total += float(x[(n, o // outputs * inputs + c, *at)]) * float(weight[(o, c, *tap)])
        top[(n, o, *place)] = total
    return top


def slow_deconvolution(x, weight, bias, geometry, group):
    """Add every input value's weighted kernel to the output, then crop the padding."""
    stride, pad, dilation = geometry
    kernel = weight.shape[2:]
    axes = range(len(kernel))
    extents = [
        stride[a] * (x.shape[2 + a] - 1) + dilation[a] * (kernel[a] - 1) + 1 - 2 * pad[a] for a in axes
    ]
    inputs, outputs = weight.shape[0] // group, weight.shape[1]
    top = np.zeros((x.shape[0], outputs * group, *extents))
    if bias is not None:
        top += bias.reshape(-1, *[1] * len(kernel))
    for n, c, *place in np.ndindex(*x.shape):
        for o, *tap in product(range(outputs), *map(range, kernel)):
            at = [place[a] * stride[a] - pad[a] + tap[a] * dilation[a] for a in axes]
            if all(0 <= at[a] < extents[a] for a in axes):
                top[(n, c // inputs * outputs + o, *at)] += float(x[(n, c, *place)]) * float(
                    weight[(c, o, *tap)]
                )
    return top
