"""Layers that scripts write in Python: their blobs, parameters, gradients, phase and exceptions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro.errors import LayerError

MODULE = "layers_of_a_script"


@pytest.fixture(autouse=True)
def found_beside_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def layer(name: str, kind: str, bottoms: str = "", tops: str = "", param: str = "", more: str = "") -> str:
    blobs = [f'bottom: "{blob}"' for blob in bottoms.split()] + [f'top: "{blob}"' for blob in tops.split()]
    return (
        f'layer {{ name: "{name}" type: "Python" {" ".join(blobs)} {more} '
        f'python_param {{ module: "{MODULE}" layer: "{kind}" param_str: "{param}" }} }}\n'
    )


def make(folder: Path, text: str, phase: int = caffe.TEST, **options: object) -> caffe.Net:
    (folder / "net.prototxt").write_text(text)
    return caffe.Net(str(folder / "net.prototxt"), phase, **options)


THREE = (
    'force_backward: true input: "x" input_shape { dim: 4 dim: 3 dim: 2 }\n'
    + layer("one", "Times", "x", "one")
    + 'layer { name: "two" type: "Power" bottom: "one" top: "two" power_param { scale: 2 } }\n'
    + layer("three", "Times", "two", "three", "-0.5")
)


def test_several_in_one_net_forward_and_backward(tmp_path: Path) -> None:
    net = make(tmp_path, THREE)
    net.blobs["x"].data[...] = 8
    assert set(net.forward()["three"].flat) == {-80}
    net.blobs["three"].diff[...] = 7
    assert set(net.backward()["x"].flat) == {-70}
    assert net.layers[0].type == "Input"
    one, three = net.layers[1], net.layer_dict["three"]
    assert (type(one).__module__, type(one).__name__, one.type) == (MODULE, "Times", "Python")
    assert isinstance(one, caffe.Layer)
    assert one.calls == three.calls == ["setup", "forward", "backward [True]"]


def test_each_net_has_layers_of_its_own(tmp_path: Path) -> None:
    nets = [make(tmp_path, THREE) for _ in range(2)]
    nets[0].layers[1].factor = 1
    assert nets[1].layers[1].factor == 10


def test_other_sizes_and_other_numbers_of_axes(tmp_path: Path) -> None:
    net = make(tmp_path, THREE)
    net.blobs["x"].reshape(5, 2, 2, 3)
    net.forward()
    assert {blob.data.shape for blob in net.blobs.values()} == {(5, 2, 2, 3)}
    net.blobs["x"].reshape(6)
    net.reshape()
    assert {blob.shape for blob in net.blobs.values()} == {(6,)}


def test_several_bottoms_and_tops_and_an_init_of_its_own(tmp_path: Path) -> None:
    net = make(
        tmp_path,
        'force_backward: true input: "x" input_shape { dim: 2 dim: 3 } input: "y" input_shape { dim: 5 }\n'
        + layer("swap", "Swap", "x y", "a b", more="propagate_down: true propagate_down: true"),
    )
    x, y = np.arange(6).reshape(2, 3), np.arange(5)
    found = net.forward(x=x, y=y)
    np.testing.assert_array_equal(found["a"], y)
    np.testing.assert_array_equal(found["b"], x)
    gradients = net.backward(a=y + 1, b=x + 1)
    np.testing.assert_array_equal(gradients["x"], x + 1)
    np.testing.assert_array_equal(gradients["y"], y + 1)
    assert net.layer_dict["swap"].made
    assert list(net.layer_dict["swap"].blobs) == []


WEIGHTED = 'force_backward: true input: "x" input_shape { dim: 2 dim: 3 }\n' + layer(
    "w", "Weighted", "x", "y"
)


def test_parameters(tmp_path: Path) -> None:
    net = make(tmp_path, WEIGHTED, caffe.TRAIN)
    blob = net.params["w"][0]
    assert net.layers[1].blobs[0] is blob
    np.testing.assert_array_equal(net.forward(x=np.ones((2, 3)))["y"], [[1, 2, 3]] * 2)
    net.backward(y=np.full((2, 3), 5))
    net.backward()
    np.testing.assert_array_equal(blob.diff, [20, 20, 20])
    net.clear_param_diffs()
    assert not blob.diff.any()
    blob.data[...] = [4, 5, 6]
    net.save(str(tmp_path / "net.caffemodel"))
    blob.data[...] = 0
    assert not net.forward()["y"].any()
    net.copy_from(str(tmp_path / "net.caffemodel"))
    np.testing.assert_array_equal(net.forward()["y"], [[4, 5, 6]] * 2)
    other = make(tmp_path, WEIGHTED, caffe.TEST, weights=str(tmp_path / "net.caffemodel"))
    np.testing.assert_array_equal(other.layers[1].blobs[0].data, [4, 5, 6])
    other.share_with(net)
    blob.data[1] = -1
    np.testing.assert_array_equal(other.layers[1].blobs[0].data, [4, -1, 6])


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_the_phase_and_what_setup_wrote(phase: int, tmp_path: Path) -> None:
    net = make(tmp_path, layer("state", "State", tops="phase"), phase)
    assert net.forward()["phase"] == phase
    assert net.blobs["phase"].shape == ()


def test_in_place(tmp_path: Path) -> None:
    net = make(
        tmp_path,
        'input: "x" input_shape { dim: 2 }\nlayer { name: "c" type: "Power" bottom: "x" top: "y" }\n'
        + layer("add", "InPlace", "y", "y"),
    )
    for _ in range(2):
        np.testing.assert_array_equal(net.forward(x=[5, 6])["y"], [6, 7])


@pytest.mark.parametrize("place", ["setup", "reshape", "forward", "backward"])
def test_exceptions_reach_the_script_as_they_are(place: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match=f"^in {place}$"):
        net = make(tmp_path, "force_backward: true " + layer("f", "Fails", tops="y", param=place))
        net.forward()
        net.backward()


def test_other_layers_of_the_phase_are_not_imported(tmp_path: Path) -> None:
    text = THREE + layer("gone", "Gone", "three", "four", more="include { phase: TRAIN }")
    make(tmp_path, text)
    with pytest.raises(LayerError, match="has no class 'Gone'"):
        make(tmp_path, text, caffe.TRAIN)


def test_a_class_that_is_defined_again_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, THREE)

    class Times(sys.modules[MODULE].Times):
        def setup(self, bottom, top):
            self.factor, self.calls = 3, []

    monkeypatch.setattr(sys.modules[MODULE], "Times", Times)
    assert make(tmp_path, THREE).layers[1].factor == 3


WRONG = {
    # the layer, the exception that pycaffe raises, the message
    "no such class": (
        layer("l", "Gone", tops="y"), AttributeError,
        f"l (Python): module '{MODULE}' has no class 'Gone'; correct python_param.layer",
    ),
    "a name that is no class": (
        layer("l", "not_a_class", tops="y"), AttributeError, f"l (Python): module '{MODULE}' has no class 'not_a_class'",
    ),
    "no such module": (
        layer("l", "Times", tops="y").replace(MODULE, "gone.layers"), ImportError,
        "l (Python): module 'gone.layers' is not found; start the script in its folder or set PYTHONPATH",
    ),
    "a parameter that is none": (
        layer("l", "Times", tops="y", param="ten"), ValueError, "could not convert string to float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_layers(name: str, tmp_path: Path) -> None:
    text, kind, message = WRONG[name]
    with pytest.raises(kind, match=re.escape(message)):
        make(tmp_path, text)


def test_a_module_that_lacks_another_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_module.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'not_installed_anywhere'$"):
        make(tmp_path, layer("l", "Times", tops="y").replace(MODULE, "half_a_module"))


# ------------------------------------------------------------------ training

NET = (
    layer("rows", "Rows", tops="x t")
    + 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 } }\n'
    + 'layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }\n'
)
SOLVER = 'net: "net.prototxt" base_lr: 0.4 lr_policy: "fixed" max_iter: 200 snapshot_after_train: false'


def test_a_data_layer_feeds_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    solver = caffe.get_solver("solver.prototxt")
    x = 2 * np.eye(6, 4, dtype=np.float32)
    solver.net.layers[0].rows = x, x @ np.float32([1, -2, 3, -4]) + 5
    solver.solve()
    assert solver.net.layers[0].position == 400
    np.testing.assert_allclose(solver.net.params["ip"][0].data, [[1, -2, 3, -4]], atol=0.02)
    np.testing.assert_allclose(solver.net.params["ip"][1].data, [5], atol=0.02)
