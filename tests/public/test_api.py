"""The package as users call it: `import ilgnet_repro as ir`, and no other module of it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.schema import caffe_pb2

TEXT = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } }
  transform_param { scale: 0.5 mean_value: 100 mean_value: 110 mean_value: 120 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "relu" }
layer { name: "ip" type: "InnerProduct" bottom: "relu" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
FORMATS = {
    ".safetensors": ["net.safetensors"],
    ".caffemodel": ["net.caffemodel", "net.prototxt"],
    ".caffemodel.h5": ["net.caffemodel.h5", "net.prototxt"],
    ".onnx": ["net.onnx"],
    ".pt2": ["net.pt2"],
    ".py": ["net.py", "net.weights.safetensors"],
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A caffemodel with its prototxt, and two images, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("text.prototxt").write_text(TEXT)
    ir.save(ir.load_net("text.prototxt", seed=3), "small.caffemodel")
    rng = np.random.default_rng(1)
    for name, size in (("cat.png", (31, 20)), ("dog.png", (9, 7))):
        cv2.imwrite(name, rng.integers(0, 256, (*size, 3), np.uint8))
    return tmp_path


def images(count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=(count, 3, 9, 7)).astype(np.float32))


def test_load_prepare_and_call(files: Path) -> None:
    net = ir.load("small.caffemodel")
    assert isinstance(net, ir.CaffeNet)
    assert isinstance(net, torch.nn.Module)
    assert (list(net.inputs), list(net.outputs), list(net.params)) == (["data"], ["prob"], ["conv", "ip"])
    x = net.prepare(["cat.png", "dog.png"])
    image = cv2.imread("dog.png").astype(np.float32)  # of the net's own size: BGR, mean and scale only
    np.testing.assert_array_equal(x[1], ((image - [100, 110, 120]) * 0.5).transpose(2, 0, 1))
    found = net(x)
    assert list(found) == ["prob"]
    assert tuple(found["prob"].shape) == (2, 5)
    torch.testing.assert_close(found["prob"].sum(1), torch.ones(2))


def test_inputs_and_blobs_by_name(files: Path) -> None:
    net, x = ir.load("small.caffemodel", prototxt="small.prototxt", phase="TEST"), images()
    found = net(data=x, blobs=["conv", "prob"])
    weights, bias = net.params["conv"]
    torch.testing.assert_close(found["conv"], torch.nn.functional.conv2d(x, weights, bias))
    assert torch.equal(found["prob"], net(x)["prob"])
    assert net.blob_shapes(data=(6, 3, 9, 7))["conv"] == (6, 4, 7, 5)
    assert torch.equal(net.as_tensor("conv")(x), found["conv"])
    assert torch.equal(net.as_tensor()(x), found["prob"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_save_and_load_again(files: Path, suffix: str) -> None:
    net, x = ir.load("small.caffemodel"), images(1)
    Path("saved").mkdir()
    written = ir.save(net, f"saved/net{suffix}")
    assert [path.name for path in written] == FORMATS[suffix]
    assert sorted(path.name for path in Path("saved").iterdir()) == sorted(FORMATS[suffix])
    if suffix == ".py":
        found = run_written("saved", x)
    else:
        found = ir.load(written[0])(x)["prob"]
    torch.testing.assert_close(torch.as_tensor(found).detach(), net(x)["prob"].detach())


def run_written(folder: str, x: torch.Tensor) -> np.ndarray:
    """Run a written `net.py` where the package cannot be imported, as its docstring says."""
    np.save("x.npy", x.numpy())
    code = """
import sys
sys.modules["ilgnet_repro"] = None
import numpy, torch, net
from safetensors.torch import load_file
with torch.device("meta"):
    model = net.Small()
model.load_state_dict(load_file("net.weights.safetensors"), assign=True)
with torch.no_grad():
    numpy.save("../prob.npy", model(torch.from_numpy(numpy.load("../x.npy")))["prob"].numpy())
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return np.load("prob.npy")


def test_convert_verifies(files: Path) -> None:
    report = ir.convert("small.caffemodel", to=["onnx", "safetensors"], out="out", verify=True)
    assert report.is_verified
    assert len(report.verified) == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["small.onnx", "small.safetensors"]


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_fast(files: Path, precision: str) -> None:
    net, x = ir.load("small.caffemodel"), images()
    with torch.inference_mode():
        found = ir.fast(net, precision)(x)["prob"]
        torch.testing.assert_close(found, net(x)["prob"], atol=5e-3, rtol=0)


def test_score(files: Path) -> None:
    net = ir.load("small.caffemodel")
    with torch.inference_mode():
        expected = net(net.prepare(["cat.png", "dog.png"]))["prob"]
    for weights in ("small.caffemodel", net):
        rows = ir.score(".", weights)
        assert [Path(row.path).name for row in rows] == ["cat.png", "dog.png"]
        torch.testing.assert_close(torch.tensor([row.outputs["prob"] for row in rows]), expected)
        assert [row.value for row in rows] == [None, None]  # nothing says which value is the score


def test_train_in_torch_and_save(files: Path) -> None:
    """What torch changes in a net is what is saved; copies are independent."""
    net, x = ir.load("small.caffemodel"), images()
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    (-net(x)["prob"][:, 2].log().mean()).backward()
    optimizer.step()
    ir.save(net, "tuned.caffemodel")
    tuned = ir.load("tuned.caffemodel")
    assert torch.equal(tuned(x)["prob"], net(x)["prob"])
    assert not torch.equal(before(x)["prob"], net(x)["prob"])
    assert torch.equal(pickle.loads(pickle.dumps(net))(x)["prob"], net(x)["prob"])  # noqa: S301 (made here)


@pytest.mark.usefixtures("own_layer_types")
def test_a_layer_type_defined_by_the_user(files: Path) -> None:
    @ir.register_layer("PublicGain")
    class Gain(ir.Layer):
        """x times a learned factor per channel and a stated one."""

        fork_fields = ("gain_param.factor",)

        def setup(self, rank):
            self.factor = float(self.fork_field("gain_param.factor") or 1)
            if self.factor < 0:
                raise self.error("gain_param.factor is under 0; give 0 or more")

        def plan(self, x):
            return ir.LayerPlan([x], [ir.BlobSpec("gain", (x[1], 1, 1))])

        def forward(self, x):
            return (x * self.blob("gain") * self.factor,)

    layer = (
        """layer { name: "gain" type: "PublicGain" bottom: "data" top: "gain" gain_param { factor: %s } }"""
    )
    shape = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }"""
    Path("gain.prototxt").write_text(f"{shape}\n{layer % 2.5}")
    net, x = ir.load_net("gain.prototxt"), images()
    (gain,) = net.params["gain"]
    with torch.no_grad():
        gain.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1))
        torch.testing.assert_close(net(x)["gain"], x * torch.tensor([2.5, 5, 7.5]).reshape(3, 1, 1))
    Path("gain.prototxt").write_text(f"{shape}\n{layer % -1}")
    with pytest.raises(ir.LayerError) as caught:
        ir.load_net("gain.prototxt")
    assert (caught.value.where, caught.value.what, caught.value.remedy) == (
        "gain (PublicGain)", "gain_param.factor is under 0", "give 0 or more",
    )  # fmt: skip
    with pytest.raises(ir.IlgnetError, match="'ReLU' is registered twice"):
        ir.register_layer("ReLU")(Gain)


def test_a_net_from_a_message(files: Path) -> None:
    message = caffe_pb2.NetParameter(name="one")
    message.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=[2, 3])
    message.layer.add(name="relu", type="ReLU", bottom=["data"], top=["relu"])
    found = ir.load_net(message)(torch.tensor([[-1.0, 2.0, 0.0], [3.0, -4.0, 5.0]]))["relu"]
    assert found.tolist() == [[0, 2, 0], [3, 0, 5]]


def load_text(text: str) -> ir.CaffeNet:
    Path("bad.prototxt").write_text(text)
    return ir.load_net("bad.prototxt")


# Call, class, where, a part of what, a part of the remedy, option.
REFUSED = {
    "no file": (
        lambda net: ir.load("none.caffemodel"), ir.FormatError, "none.caffemodel", "cannot be read", "check the path", "",
    ),
    "a prototxt as weights": (
        lambda net: ir.load("text.prototxt"), ir.FormatError, "text.prototxt", "is a net's prototxt", "load_net(prototxt)",
        "prototxt",
    ),
    "a format": (
        lambda net: ir.save(net, "net.pth"), ir.IlgnetError, "net.pth", "names no format", ".safetensors", "",
    ),
    "an option of save": (
        lambda net: ir.save(net, "net.onnx", precison="int8"),
        ir.IlgnetError, "", "(did you mean precision?)", "dynamic_size", "",
    ),
    "a format of convert": (
        lambda net: ir.convert("small.caffemodel", to="keras"), ir.IlgnetError, "", "format 'keras' is unknown", "onnx", "",
    ),
    "an input": (lambda net: net(date=images()), ir.GraphError, "", "date", "", ""),
    "a blob": (lambda net: net(images(), blobs=["fc8"]), ir.GraphError, "", "fc8", "", ""),
    "axes of an input": (lambda net: net(images()[0]), ir.GraphError, "", "3 axes", "add the batch axis", ""),
    "an image": (lambda net: net.prepare(["text.prototxt"]), ir.DataError, "text.prototxt", "", "", ""),
    "an unknown field": (
        lambda net: load_text("layer { name: 'x' type: 'Input' top: 'x' tipe: 'a' }"),
        ir.LayerError, "x (Input)", "field tipe (line 1, column 42)", "ignore_fields=", "ignore_fields",
    ),
    "a bracket that is not closed": (
        lambda net: load_text("layer { name: 'x'"),
        ir.ParseError, "bad.prototxt:1:7", "never closed", "add }", "",
    ),
    "a layer type": (
        lambda net: load_text("layer { name: 'x' type: 'RelU' }"),
        ir.IlgnetError, "x (RelU)", "", "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_errors_say_where_what_and_remedy(files: Path, name: str) -> None:
    call, class_, where, what, remedy, option = REFUSED[name]
    before = {path.name for path in files.iterdir()}
    with pytest.raises(class_) as caught:
        call(ir.load("small.caffemodel"))
    error = caught.value
    assert isinstance(error, ir.IlgnetError)
    assert "\n" not in str(error)
    assert (error.where == where) if where else True
    assert what in error.what
    assert remedy in error.remedy
    assert error.option == option
    assert {path.name for path in files.iterdir()} - before <= {"bad.prototxt"}


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ilgnet_repro", "--version"], capture_output=True, text=True, check=True
    )
    assert ir.__version__ in done.stdout
