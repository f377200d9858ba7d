"""Caffe's HDF5 weights, made here by h5py in the layout Caffe writes."""

from __future__ import annotations

import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.errors import FormatError

h5py = pytest.importorskip("h5py", reason="h5py is an extra of the package")


def make(path, layers, **options):
    with h5py.File(path, "w") as file:
        for key, array in layers.items():
            file.create_dataset(f"data/{key}", data=array, **options)
    return path


def test_layers_and_arrays(tmp_path):
    rng = np.random.default_rng(5)
    weights, bias = rng.random((5, 3, 2, 4), np.float32), rng.random(5, np.float32)
    double = rng.random((2, 3))
    layers = {"conv1/7x7_s2/0": weights, "conv1/7x7_s2/1": bias, "fc/0": double}
    path = make(tmp_path / "x.caffemodel.h5", layers)
    before = path.read_bytes()
    model = open_caffemodel(path)
    found = {layer.name: [blob.array() for blob in layer.blobs] for layer in model.layers}
    assert list(found) == ["conv1/7x7_s2", "fc"]
    for one, other in zip(found["conv1/7x7_s2"] + found["fc"], [weights, bias, double], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    found["fc"][0][:] = 0  # private, as of any weights file
    assert path.read_bytes() == before
    with pytest.raises(FormatError, match="HDF5 weights have no structure; give the prototxt too"):
        model.structure()


def test_refuses_other_numbers(tmp_path):
    path = make(tmp_path / "x.h5", {"a/0": np.arange(3)})
    with pytest.raises(FormatError, match=r"x\.h5: layer a, blob 0: numbers of type int64; Caffe writes"):
        open_caffemodel(path)


def test_refuses_chunks(tmp_path):
    path = make(tmp_path / "x.h5", {"a/0": np.zeros((64, 64), np.float32)}, chunks=(8, 8), compression="gzip")
    with pytest.raises(FormatError, match="not in one piece; run `h5repack"):
        open_caffemodel(path)


def test_refuses_a_gap(tmp_path):
    path = make(tmp_path / "x.h5", {"a/1": np.zeros(3, np.float32)})
    with pytest.raises(FormatError, match=r"layer a: blobs \[1\], one is missing"):
        open_caffemodel(path)


def test_refuses_other_layouts(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["model_weights"] = np.zeros(3)
    with pytest.raises(FormatError, match="HDF5 without /data, so not Caffe's weights"):
        open_caffemodel(tmp_path / "x.h5")


def test_refuses_a_truncated_file(tmp_path):
    path = make(tmp_path / "x.h5", {"a/0": np.zeros((64, 64), np.float32)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FormatError, match="damaged HDF5"):
        open_caffemodel(path)


def test_opens_no_other_file(tmp_path):
    make(tmp_path / "secret.h5", {"a/0": np.ones(3, np.float32)})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("data")["a"] = h5py.ExternalLink("secret.h5", "/data/a")
    with pytest.raises(FormatError, match="has no layers"):
        open_caffemodel(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = h5py.ExternalLink("secret.h5", "/data")
    with pytest.raises(FormatError, match="HDF5 without /data"):
        open_caffemodel(tmp_path / "x.h5")
