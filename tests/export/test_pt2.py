"""pt2 files: opened by torch without this package, batch and size open, no pickle inside, refusals by layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from small_nets import FULLY_CONVOLUTIONAL, net_of
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.to_pt2 import export
from ilgnet_repro.runtime.pt2_file import METADATA_FILE

# Run where this package cannot be imported: an import of it ends the program.
ALONE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ilgnet_repro":
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import numpy as np, torch
module = torch.export.load(sys.argv[1]).module()
x = torch.from_numpy(np.load(sys.argv[2]))
np.save(sys.argv[3], module(data=x)["prob"].detach().numpy())
assert not [name for name in sys.modules if name.startswith("ilgnet_repro")]
"""


def test_it_runs_without_this_package(folder, tmp_path) -> None:
    ir.convert(folder / "small.caffemodel", to=("pt2",), verify=True)
    x = np.random.default_rng(1).standard_normal((5, 3, 9, 7), np.float32)
    np.save(tmp_path / "x.npy", x)
    subprocess.run(
        [sys.executable, "-I", "-c", ALONE, folder / "small.pt2", tmp_path / "x.npy", tmp_path / "y.npy"], check=True,
        cwd=tmp_path,
    )  # fmt: skip
    expected = ir.load_net(folder / "deploy.prototxt", folder / "small.caffemodel")(data=x)["prob"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected.detach().numpy(), rtol=1e-5)


def test_it_contains_metadata_and_no_pickle(folder) -> None:
    ir.convert(folder / "small.caffemodel", to=("pt2",))
    with zipfile.ZipFile(folder / "small.pt2") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, data in parts.items() if data[:1] == b"\x80" or data[:2] == b"PK"]
    assert not [name for name, data in parts.items() if b".py" in data]  # where this package is installed
    extra = {METADATA_FILE: ""}
    torch.export.load(folder / "small.pt2", extra_files=extra)
    assert json.loads(extra[METADATA_FILE])["caffe.phase"] == "TEST"


def test_the_batch_is_open() -> None:
    net = drawn_net(narrow_text("googlenet"))
    module = export(net).module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 224, 224)
        found = module(data=x)
        for blob, value in net(data=x).items():
            torch.testing.assert_close(found[blob], value, rtol=1e-4, atol=1e-5)


def test_the_size_is_open_on_request() -> None:
    net = net_of(FULLY_CONVOLUTIONAL)
    module = export(net, dynamic_size=True).module()
    x = torch.randn(2, 3, 40, 33)
    for blob, value in net(data=x).items():
        torch.testing.assert_close(module(data=x)[blob], value, rtol=1e-4, atol=1e-5)


def test_inputs_of_different_lengths_have_separate_open_axes() -> None:
    net = net_of(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 9 } } }\n'
        'layer { name: "rois" type: "Input" top: "rois" input_param { shape { dim: 4 dim: 5 } } }\n'
        'layer { name: "r" type: "ROIPooling" bottom: "x" bottom: "rois" top: "r" '
        "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 1 } }"
    )
    x, rois = torch.randn(3, 3, 8, 9), torch.tensor([[0.0, 1, 1, 6, 5]]).repeat(7, 1)
    torch.testing.assert_close(export(net).module()(x=x, rois=rois)["r"], net(x=x, rois=rois)["r"])


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (
            lambda: drawn_net(narrow_text("mobilenet_ssd")), False,
            "detection_out (DetectionOutput): its number of rows depends on values, which torch.export cannot express",
        ),
        (lambda: drawn_net(narrow_text("alexnet")), True, "fc6 (InnerProduct): its weights fit one size of image only; "),
    ],
    ids=["rows by values", "a fixed size"],
)  # fmt: skip
def test_what_torch_export_cannot_store_is_refused_in_one_line(net, size, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        export(net(), dynamic_size=size)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


TWO_INPUTS = (
    'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
    'layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 dim: 3 } } }\n'
    'layer { name: "d" type: "Eltwise" bottom: "x" bottom: "y" top: "d" eltwise_param { coeff: 1 coeff: -2 } }\n'
)
# Another process, with another order of sets of strings.
AGAIN = """
import sys
import ilgnet_repro as ir
ir.save(ir.load_net(sys.argv[1]), sys.argv[2])
"""


def test_the_same_net_gives_the_same_bytes(tmp_path) -> None:
    text = tmp_path / "n.prototxt"
    text.write_text(TWO_INPUTS)
    for name in "ab":
        ir.save(ir.load_net(text), tmp_path / f"{name}.pt2")
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    if not os.environ.get("SLOW_PT2"):  # starting torch.export takes seconds; `make pt2-axes` does
        return
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", AGAIN, text, tmp_path / "c.pt2"], check=True, env=environment)
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "c.pt2").read_bytes()


def test_inputs_are_keywords_in_torch_and_also_by_position_here(tmp_path) -> None:
    """torch takes the inputs of a program only as they were exported."""
    ir.save(net_of(TWO_INPUTS), tmp_path / "n.pt2")
    x, y = torch.arange(12.0).view(4, 3), torch.ones(4, 3)
    module = torch.export.load(tmp_path / "n.pt2").module()
    for found in (module(y=y, x=x), ir.load(tmp_path / "n.pt2")(x, y), ir.load(tmp_path / "n.pt2")(y=y, x=x)):
        torch.testing.assert_close(found["d"], x - 2 * y)
    with pytest.raises(ValueError, match="keyword mismatch"):
        module(x, y)
