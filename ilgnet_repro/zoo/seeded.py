"""Weights drawn from a seed, for tests against recorded numbers without a 604 MB file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod, sqrt

import numpy as np

from ilgnet_repro.errors import WeightsError
from ilgnet_repro.schema import caffe_pb2

Shape = Sequence[int]
LEARNED = ("Convolution", "Deconvolution", "DepthwiseConvolution", "InnerProduct")


def seeded_blobs(
    net: caffe_pb2.NetParameter,
    shapes: Mapping[str, Sequence[Shape]],
    *,
    seed: int = 7,
    biases: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield each convolution's and dense layer's name with its float32 blobs, in the order of ``net``.

    Weights are normal with variance 2 / fan-in, biases uniform in ±0.1, drawn from one
    ``numpy.random.RandomState(seed)``, as for the golden arrays of the tests. Only one layer is in memory at a
    time.

    ``shapes`` has the shapes of each layer's blobs, ``biases`` the values that replace the drawn bias of some
    layers. Raises WeightsError if a layer's shapes are missing, are not those of a weight and an optional bias,
    or do not match a given bias.
    """
    given = dict(biases or {})
    layers = [layer for layer in net.layer if layer.type in LEARNED]
    for name in given.keys() - {layer.name for layer in layers}:
        raise WeightsError(f"{name}: bias values are given but the net has no such layer; remove them")
    random = np.random.RandomState(seed)
    for layer in layers:
        where = f"{layer.name} ({layer.type})"
        expected = shapes.get(layer.name, ())
        if not 1 <= len(expected) <= 2:
            raise WeightsError(f"{where}: {len(expected)} blob shapes; give those of its weight and its bias")
        if layer.name in given and len(expected) == 1:
            raise WeightsError(f"{where}: has no bias; remove it from biases")
        weight = np.empty(tuple(expected[0]), np.float32)
        for row in weight:  # row by row: NumPy draws float64, which would take twice the memory of the blob
            row[...] = random.standard_normal(row.shape)
        weight *= np.float32(sqrt(2 / prod(expected[0][1:])))
        blobs = [weight]
        for shape in expected[1:]:
            bias = random.uniform(-0.1, 0.1, tuple(shape)).astype(np.float32)
            if layer.name in given:
                values = np.asarray(given[layer.name], np.float32)
                if values.shape != bias.shape:
                    raise WeightsError(f"{where}: {values.size} bias values; its bias has shape {bias.shape}")
                bias = values
            blobs.append(bias)
        yield layer.name, blobs
