"""pycaffe's functions of the module."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe import modes

TEXT = """
input: "x" input_shape { dim: 2 dim: 3 }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {
  num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "y" top: "z" }
"""


def test_names() -> None:
    for name in caffe.__all__:
        assert hasattr(caffe, name), name
    assert caffe.__version__ == "1.0.0"
    assert (caffe.TRAIN, caffe.TEST) == (0, 1)


def test_layer_types() -> None:
    types = caffe.layer_type_list()
    assert types == sorted(types)
    assert {"Data", "Convolution", "InnerProduct", "Python", "SoftmaxWithLoss", "Split"} - set(types) == set()


def test_modes_and_devices(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_state", modes._State())
    caffe.set_mode_cpu()
    caffe.set_device(0)
    for _ in range(2):
        caffe.set_mode_gpu()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2] for line in said] == [
        "set_mode_gpu: this interface computes on the CPU; `ilgnet caffe train` and test use a GPU"
    ]
    with pytest.raises(IlgnetError, match=r"^set_device\(-1\): give the number of a GPU, 0 or more$"):
        caffe.set_device(-1)


def test_the_log_goes_to_stderr(capsys) -> None:
    caffe.init_log()
    caffe.init_log(0, True)
    caffe.log("a line")
    assert capsys.readouterr().err.endswith("] a line\n")


def test_what_is_of_several_processes() -> None:
    before = caffe.solver_count(), caffe.solver_rank()
    assert before == (1, 0)
    caffe.set_solver_count(2)
    caffe.set_solver_rank(1)
    caffe.set_multiprocess(True)
    assert (caffe.solver_count(), caffe.solver_rank()) == (2, 1)
    caffe.set_solver_count(1)
    caffe.set_solver_rank(0)
    caffe.set_multiprocess(False)
    assert caffe.has_nccl() is False


def test_the_seed_repeats_fillers_and_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_state", modes._State())
    (tmp_path / "net.prototxt").write_text(TEXT)

    def outputs() -> tuple[np.ndarray, np.ndarray]:
        net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TRAIN)
        return net.params["ip"][0].data.copy(), net.forward(x=np.ones((2, 3)))["z"].copy()

    assert (outputs()[0] != outputs()[0]).any()
    found = []
    for seed in (3, 3, 4):
        caffe.set_random_seed(seed)
        found.append(outputs())
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert (found[0][0] != found[2][0]).any()


def test_the_timer() -> None:
    timer = caffe.Timer()
    timer.start()
    time.sleep(0.01)
    timer.stop()
    spent = timer.ms
    assert 9 < spent == timer.ms
