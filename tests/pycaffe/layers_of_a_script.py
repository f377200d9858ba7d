"""Python layers as scripts write them for pycaffe; the nets of test_pycaffe_python_layer name them by this module."""

from __future__ import annotations

import numpy as np

import ilgnet_repro.pycaffe as caffe


class Times(caffe.Layer):
    """Multiplies by the number in `param_str`; counts what is called."""

    def setup(self, bottom, top):
        self.factor = float(self.param_str or 10)
        self.calls = ["setup"]

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.calls.append("forward")
        top[0].data[...] = self.factor * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        self.calls.append(f"backward {propagate_down}")
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * top[0].diff


class Swap(caffe.Layer):
    """Two bottoms of different shapes, exchanged."""

    def __init__(self, *arguments):  # a constructor of its own, which calls no other
        self.made = True

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise ValueError(f"Swap takes two bottoms, not {len(bottom)}")

    def reshape(self, bottom, top):
        for blob, other in zip(top, bottom[::-1], strict=True):
            blob.reshape(*other.shape)

    def forward(self, bottom, top):
        for blob, other in zip(top, bottom[::-1], strict=True):
            blob.data[...] = other.data

    def backward(self, top, propagate_down, bottom):
        for blob, other, go in zip(bottom, top[::-1], propagate_down, strict=True):
            if go:
                blob.diff[...] = other.diff


class Weighted(caffe.Layer):
    """A parameter of its own, set in `setup`."""

    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs[0].data[...] = [1, 2, 3]

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum(axis=0)
        bottom[0].diff[...] = top[0].diff * self.blobs[0].data


class State(caffe.Layer):
    """Its phase as a scalar; the values are written in `setup`, where they stay."""

    def setup(self, bottom, top):
        top[0].reshape()
        top[0].data[()] = self.phase

    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        pass

    def backward(self, top, propagate_down, bottom):
        pass


class Fails(caffe.Layer):
    """Raises where `param_str` says."""

    def setup(self, bottom, top):
        self.check("setup")

    def reshape(self, bottom, top):
        top[0].reshape(2)
        self.check("reshape")

    def forward(self, bottom, top):
        self.check("forward")

    def backward(self, top, propagate_down, bottom):
        self.check("backward")

    def check(self, place):
        if self.param_str == place:
            raise ZeroDivisionError(f"in {place}")


class Rows(caffe.Layer):
    """A data layer: `rows`, a list that the script sets, two in each pass."""

    def setup(self, bottom, top):
        self.position = 0
        self.rows = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)

    def reshape(self, bottom, top):
        top[0].reshape(2, self.rows[0].shape[1])
        top[1].reshape(2)

    def forward(self, bottom, top):
        taken = np.arange(self.position, self.position + 2) % len(self.rows[0])
        for blob, values in zip(top, self.rows, strict=True):
            blob.data[...] = values[taken]
        self.position += 2

    def backward(self, top, propagate_down, bottom):
        pass


class InPlace(caffe.Layer):
    """Adds one to its bottom."""

    def setup(self, bottom, top):
        assert bottom[0] is top[0]

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        top[0].data[...] += 1

    def backward(self, top, propagate_down, bottom):
        pass


not_a_class = 7
