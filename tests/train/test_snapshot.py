"""Snapshots: HDF5 and binary, retention, what is refused, and the message a net is written from."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from train_cases import NAMES, PIPELINE, SOLVERS, run, settings_of

from ilgnet_repro.errors import IlgnetError, WeightsError
from ilgnet_repro.formats.prototxt import parse_net
from ilgnet_repro.loading import load_net
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train.loop import Options, Trainer
from ilgnet_repro.train.observe import Observer
from ilgnet_repro.train.snapshot import Snapshots
from ilgnet_repro.train.trained_net import net_message


@pytest.mark.parametrize("name", ["adam", "sgd_multistep"])
def test_hdf5_snapshots_resume_to_the_same_weights(name, tmp_path):
    settings = settings_of(name, tmp_path, snapshot_hdf5=True)
    _, whole = run(settings)
    expected = [blob.detach().clone() for blobs in whole.net.params.values() for blob in blobs]
    with h5py.File(tmp_path / f"{name}_iter_10.solverstate.h5") as file:
        # Caffe reads these with H5LTread_dataset_int and _string.
        assert file["iter"].dtype == np.int32 and list(file["iter"]) == [10]
        assert file["learned_net"][()].decode() == str(tmp_path / f"{name}_iter_10.caffemodel.h5")
        assert sorted(file["history"], key=int) == [
            str(index) for index in range(12 if name == "adam" else 6)
        ]
    with h5py.File(tmp_path / f"{name}_iter_10.caffemodel.h5") as file:
        assert sorted(file["data"]) == sorted(
            ["data", "conv", "relu", "pool", "norm", "fc", "fc_relu", "cls", "loss"]
        )
        assert file["data/fc/0"].shape == (8, 1350)
    _, resumed = run(settings, resume=tmp_path / f"{name}_iter_10.solverstate.h5")
    assert resumed.current_step == whole.current_step
    for mine, theirs in zip(resumed.net.parameters(), expected, strict=True):
        np.testing.assert_array_equal(mine.detach().numpy(), theirs.numpy())


def test_retention_keeps_the_newest(tmp_path):
    settings = settings_of("sgd_fixed", tmp_path, snapshot=4, max_iter=18, test_interval=0)
    (tmp_path / "sgd_fixed_iter_3.log").touch()
    _, trainer = run(settings, options=Options(keep=2))
    # 18 is the snapshot after training.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"sgd_fixed_iter_{number}.{kind}" for number in (16, 18) for kind in ("caffemodel", "solverstate")),
        "sgd_fixed_iter_3.log",
    ]
    assert trainer.snapshots.latest() == tmp_path / "sgd_fixed_iter_18.solverstate"


def test_the_newest_whole_snapshot_counts(tmp_path):
    for name in (
        "run_iter_4.solverstate",
        "run_iter_4.caffemodel",
        "run_iter_12.solverstate",
        "other_iter_20.solverstate",
    ):
        (tmp_path / name).touch()
    assert Snapshots("run", tmp_path).latest() == tmp_path / "run_iter_4.solverstate"
    assert Snapshots("absent", tmp_path).latest() is None


def test_no_snapshot_after_training_where_it_is_off(tmp_path):
    run(
        settings_of(
            "sgd_fixed", tmp_path, snapshot=0, snapshot_after_train=False, max_iter=2, test_interval=0
        )
    )
    assert not list(tmp_path.iterdir())


def broken_state(kind: str, folder: Path) -> Path:
    path = folder / "run_iter_10.solverstate"
    state = pb.SolverState.FromString((SOLVERS / "sgd_fixed_iter_10.solverstate").read_bytes())
    if kind == "one array less":
        del state.history[-1]
    elif kind == "another shape":
        state.history[5].shape.dim[0] = 1
        del state.history[5].data[1:]
    elif kind == "no weights beside it":
        state.learned_net = "elsewhere.caffemodel"
    elif kind == "weights of another net":
        state.learned_net = str(PIPELINE / "tiny_crop.caffemodel")
    path.write_bytes(state.SerializeToString()[: -40 if kind == "cut short" else None])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "one array less",
            "holds 5 arrays and this solver 6; resume with the net and the solver type that made it",
        ),
        ("another shape", "array 5 has shape [1], this net's has [2]"),
        (
            "no weights beside it",
            "its weights elsewhere.caffemodel are missing; put them beside the solver state",
        ),
        ("weights of another net", "layer fc, blob 0"),
        ("cut short", "run_iter_10.solverstate"),
    ],
)
def test_states_that_do_not_fit_are_refused_and_change_nothing(kind, message, tmp_path):
    trainer = Trainer(settings_of("sgd_fixed", tmp_path))
    before = [parameter.detach().clone() for parameter in trainer.net.parameters()]
    with pytest.raises(IlgnetError) as raised:
        trainer.restore(broken_state(kind, tmp_path))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    for mine, theirs in zip(trainer.net.parameters(), before, strict=True):
        assert bool((mine == theirs).all())


def test_a_folder_that_is_not_there_is_refused_before_training(tmp_path):
    with pytest.raises(IlgnetError, match="its folder is missing or read-only; make"):
        Trainer(settings_of("sgd_fixed", tmp_path / "absent"))


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match="layer fc, blob 0 is 8x"):
        Trainer(settings_of("sgd_fixed", tmp_path, weights=(str(PIPELINE / "tiny_crop.caffemodel"),)))


def test_later_weights_win_and_strange_layers_are_told(tmp_path):
    """Two files: all of Caffe's at step 10, then one layer of step 20 and one the net lacks."""
    later = pb.NetParameter.FromString((SOLVERS / "sgd_fixed_iter_20.caffemodel").read_bytes())
    kept = [layer for layer in later.layer if layer.name == "fc"]
    kept.append(pb.LayerParameter(name="strange", type="InnerProduct", blobs=kept[0].blobs))
    (tmp_path / "fc.caffemodel").write_bytes(pb.NetParameter(name="x", layer=kept).SerializeToString())
    told = []

    class Ear(Observer):
        def tell(self, topic, text):
            if topic == "ignored":
                told.append(text)

    files = (str(SOLVERS / "sgd_fixed_iter_10.caffemodel"), str(tmp_path / "fc.caffemodel"))
    trainer = Trainer(settings_of("sgd_fixed", tmp_path, weights=files), observers=[Ear()])
    for layer, step in (("conv", 10), ("fc", 20), ("cls", 10)):
        held = load_net(PIPELINE / "tiny.prototxt", SOLVERS / f"sgd_fixed_iter_{step}.caffemodel",
                        input_shapes={"data": (1, 3, 64, 64)})  # fmt: skip
        for mine, theirs in zip(trainer.net.params[layer], held.params[layer], strict=True):
            assert bool((mine == theirs).all())
    assert told == ["Ignoring source layer strange"]


SPLIT_NET = """name: "s"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 3 } }
layer { name: "l1" type: "EuclideanLoss" bottom: "a" bottom: "y" top: "l1" loss_weight: 0.5 }
layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "a" top: "sum" }
layer { name: "l2" type: "EuclideanLoss" bottom: "sum" bottom: "y" top: "l2" }
layer { name: "watch" type: "Power" bottom: "l1" top: "watch" }
"""


def test_splits_as_caffe_inserts_them():
    """Caffe's rules by hand: names, the order of readers, a loss weight that moves to the split."""
    net = net_message(load_net(parse_net(SPLIT_NET), phase="TRAIN", seed=1))
    rows = [
        (layer.name, layer.type, list(layer.bottom), list(layer.top), list(layer.loss_weight))
        for layer in net.layer
    ]
    assert rows == [
        ("in", "Input", [], ["x", "y"], []),
        ("y_in_1_split", "Split", ["y"], ["y_in_1_split_0", "y_in_1_split_1"], []),
        ("bn", "BatchNorm", ["x"], ["x"], []),
        ("x_bn_0_split", "Split", ["x"], ["x_bn_0_split_0", "x_bn_0_split_1"], []),
        ("a", "InnerProduct", ["x_bn_0_split_0"], ["a"], []),
        ("a_a_0_split", "Split", ["a"], ["a_a_0_split_0", "a_a_0_split_1"], []),
        ("l1", "EuclideanLoss", ["a_a_0_split_0", "y_in_1_split_0"], ["l1"], [1.0]),
        ("l1_l1_0_split", "Split", ["l1"], ["l1_l1_0_split_0", "l1_l1_0_split_1"], [0.5, 0.0]),
        ("sum", "Eltwise", ["x_bn_0_split_1", "a_a_0_split_1"], ["sum"], []),
        ("l2", "EuclideanLoss", ["sum", "y_in_1_split_1"], ["l2"], [1.0]),
        ("watch", "Power", ["l1_l1_0_split_1"], ["watch"], []),
    ]
    assert all(layer.phase == pb.TRAIN for layer in net.layer)
    assert [row.lr_mult for row in net.layer[2].param] == [0, 0, 0]


def test_the_cases_are_all_there():
    assert len(NAMES) == 15
