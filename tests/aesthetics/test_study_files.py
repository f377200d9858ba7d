"""The study's nets, narrowed, as files of every kind: ONNX with its preprocessing, Python, pt2, HDF5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from zoo_weights import drawn_net, narrow_text

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.hdf5_model import write_hdf5_model
from ilgnet_repro.export.onnx_graph import Prepare, build_onnx, plan_onnx
from ilgnet_repro.export.onnx_preprocess import add_preprocessing
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.to_pt2 import export
from ilgnet_repro.export.to_python import load_module
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.known import find_model
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.runtime.onnx_net import open_session
from ilgnet_repro.runtime.safetensors_file import write_safetensors
from ilgnet_repro.zoo.catalogue import build

NETS = ("ilgnet", "resnet_inception")


@pytest.mark.parametrize("name", NETS)
def test_as_onnx_python_and_pt2(name: str, tmp_path) -> None:
    net = drawn_net(narrow_text(name))
    inputs = {key: value / 50 for key, value in seeded_inputs(net).items()}
    with torch.inference_mode():
        expected = net(inputs)
    session = open_session(build_onnx(net).SerializeToString())
    onnx = session.run(list(expected), {key: value.numpy() for key, value in inputs.items()})
    source = build_source(net, class_name="Written")
    (tmp_path / "written.py").write_text(source.text)
    write_safetensors(tmp_path / "written.safetensors", source.state, {})
    written = load_module(tmp_path / "written.py", tmp_path / "written.safetensors", "Written")
    python = written(**{source.arguments[key]: value for key, value in inputs.items()})
    pt2 = export(net).module()(**inputs)
    for (blob, value), found in zip(expected.items(), onnx, strict=True):
        bounds = {"rtol": 1e-4, "atol": 1e-5 * max(1.0, float(value.abs().max()))}
        for other in (torch.from_numpy(found), python[blob], pt2[blob]):
            torch.testing.assert_close(other, value, **bounds)


@pytest.mark.parametrize("name", NETS)
def test_through_hdf5_and_back(name: str, tmp_path) -> None:
    pytest.importorskip("h5py", reason="h5py is an extra of the package")
    text = narrow_text(name)
    arrays = {
        layer: [blob.detach().numpy() for blob in blobs] for layer, blobs in drawn_net(text).params.items()
    }
    write_hdf5_model(tmp_path / "one.caffemodel.h5", text, arrays)
    net = load_net(text, tmp_path / "one.caffemodel.h5")
    for layer, blobs in arrays.items():
        for one, other in zip(net.params[layer], blobs, strict=True):
            np.testing.assert_array_equal(one.detach().numpy(), other)


def test_ilgnet_at_batches_1_7_and_48() -> None:
    net = drawn_net(narrow_text("ilgnet"))
    session = open_session(build_onnx(net).SerializeToString())
    counts: dict[str, int] = {}
    for node in build_onnx(net).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    assert counts["LRN"] == 2
    assert "Identity" not in counts
    for batch in (1, 7, 48):
        x = torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, 3, 227, 227), np.float32))
        with torch.inference_mode():
            expected = net(data=x)
        found = session.run(list(expected), {"data": x.numpy()})
        for value, wanted in zip(found, expected.values(), strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("path", ["whole", "crop"])
def test_ilgnet_on_both_of_the_authors_paths(path: str) -> None:
    how = find_model("ava2-weights").preprocessing
    if path == "crop":
        mean = np.random.default_rng(3).uniform(80, 120, (3, 256, 256)).astype(np.float32)
        how = Preprocessing(size=(227, 227), path="crop", resize=(256, 256), mean_image=mean)
    net = drawn_net(narrow_text("ilgnet"))
    model = plan_onnx(
        net, prepare=Prepare("data", lambda writer: add_preprocessing(writer, "data", how, "RGB"))
    ).proto()
    image = np.random.default_rng(4).integers(0, 256, (1, 331, 402, 3), dtype=np.uint8)
    found = open_session(model.SerializeToString()).run(None, {"picture": image})[0]
    expected = net(data=how(np.ascontiguousarray(image[0, :, :, ::-1]))[None].copy())
    (wanted,) = (value.detach().numpy() for value in expected.values())
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_parameters_of_ilgnet_as_the_audit_counts_them() -> None:
    found = audit(build("ilgnet"))
    assert (found.problems, found.parameters) == ((), 150_938_082)


def test_ilgnet_takes_about_one_point_two_billion_multiply_adds() -> None:
    assert 1.1e9 < audit(build("ilgnet")).multiply_adds < 1.3e9
