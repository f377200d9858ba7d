"""Nets of the zoo, narrowed, through Caffe's HDF5 weights: equal arrays, and the same bytes again."""

from __future__ import annotations

import numpy as np
import pytest
from zoo_weights import drawn_net, narrow_text

from ilgnet_repro.caffe.hdf5_model import write_hdf5_model
from ilgnet_repro.runtime.load import load_net

pytest.importorskip("h5py", reason="h5py is an extra of the package")


@pytest.mark.parametrize(
    "name",
    ["googlenet", "mobilenet", "mobilenet_v2", "squeezenet", "mobilenet_ssd", "fcn8s"],
)
def test_through_hdf5_and_back(name, tmp_path) -> None:
    text = narrow_text(name)
    arrays = {
        layer: [blob.detach().numpy() for blob in blobs] for layer, blobs in drawn_net(text).params.items()
    }
    write_hdf5_model(tmp_path / "one.caffemodel.h5", text, arrays)
    net = load_net(text, tmp_path / "one.caffemodel.h5")
    assert not net.about.notes
    back = {layer: [blob.detach().numpy() for blob in blobs] for layer, blobs in net.params.items()}
    assert list(back) == list(arrays)
    for layer, blobs in arrays.items():
        for one, other in zip(back[layer], blobs, strict=True):
            np.testing.assert_array_equal(one, other)
    write_hdf5_model(tmp_path / "two.caffemodel.h5", text, back)
    assert (tmp_path / "one.caffemodel.h5").read_bytes() == (tmp_path / "two.caffemodel.h5").read_bytes()
