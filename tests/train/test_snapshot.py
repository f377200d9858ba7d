"""Snapshots: HDF5 and binary, retention, refusals, and the message from which a net is written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from train_cases import NAMES, PIPELINE, SOLVERS, run, settings_of

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import IlgnetError, SolverError, WeightsError
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train import snapshot_hdf5
from ilgnet_repro.train.loop import Options, Trainer
from ilgnet_repro.train.observe import Observer
from ilgnet_repro.train.snapshot import Snapshots
from ilgnet_repro.train.solver import make_settings
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


def test_snapshot_diff_stores_what_the_last_update_subtracted(tmp_path):
    """As Caffe's `ToProto` and `ToHDF5` with write_diff; a message of Caffe's classes has the same bytes."""
    changes = {"snapshot": 1, "max_iter": 3, "test_interval": 0, "snapshot_diff": True}
    run(settings_of("nesterov", tmp_path, **changes))
    run(settings_of("nesterov", tmp_path, snapshot_hdf5=True, **changes))
    nets = []
    for iteration in (2, 3):
        file = tmp_path / f"nesterov_iter_{iteration}.caffemodel"
        nets.append(pb.NetParameter.FromString(file.read_bytes()))
        assert nets[-1].SerializeToString(deterministic=True) == file.read_bytes()
    with h5py.File(tmp_path / "nesterov_iter_3.caffemodel.h5") as h5:
        assert sorted(h5["diff"]) == sorted(h5["data"]) == sorted(layer.name for layer in nets[1].layer)
        for before, after in zip(nets[0].layer, nets[1].layer, strict=True):
            assert len(h5["diff"][after.name]) == len(after.blobs)
            for index, (old, new) in enumerate(zip(before.blobs, after.blobs, strict=True)):
                step = np.array(old.data, np.float32) - np.array(new.data, np.float32)
                np.testing.assert_allclose(new.diff, step, rtol=0, atol=2e-7 * np.abs(old.data).max())
                assert np.abs(new.diff).max() > 1e-5
                diff = h5["diff"][after.name][str(index)]
                assert diff.shape == tuple(new.shape.dim) and diff.dtype == np.float32
                np.testing.assert_array_equal(diff[()].ravel(), new.diff)
    plain = {**changes, "snapshot_diff": False}
    run(settings_of("nesterov", tmp_path, **plain))
    assert not any(
        blob.diff for layer in pb.NetParameter.FromString(file.read_bytes()).layer for blob in layer.blobs
    )
    # Such files load and resume as others do.
    _, resumed = run(
        settings_of("nesterov", tmp_path, **changes), resume=tmp_path / "nesterov_iter_2.solverstate"
    )
    assert resumed.iteration == 3


def test_shared_parameters_have_the_diff_of_their_owner(tmp_path, monkeypatch):
    """`/diff` has the blobs of every layer, `/data` those of the owner only."""
    monkeypatch.chdir(tmp_path)
    text = """name: "shared"
    layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param {
      shape { dim: 3 dim: 4 } shape { dim: 3 dim: 4 } data_filler { value: 0.5 } data_filler { value: 2 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } param { name: "b" }
      inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "b" }
      inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "b" bottom: "y" top: "loss" }"""
    Path("net.prototxt").write_text(text)
    for suffix, form in (("", "BINARYPROTO"), (".h5", "HDF5")):
        Path("s.prototxt").write_text(
            'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2 random_seed: 1 snapshot_diff: true '
            f'snapshot_prefix: "s" snapshot_format: {form}'
        )
        ir.solve("s.prototxt")
        assert Path(f"s_iter_2.caffemodel{suffix}").is_file()
    net = pb.NetParameter.FromString(Path("s_iter_2.caffemodel").read_bytes())
    layers = {layer.name: layer.blobs for layer in net.layer}
    assert [list(blob.diff) for blob in layers["a"]] == [list(blob.diff) for blob in layers["b"]]
    assert any(layers["a"][0].diff)
    with h5py.File("s_iter_2.caffemodel.h5") as h5:
        assert (list(h5["data/a"]), list(h5["data/b"])) == (["0", "1"], [])
        for name in ("a", "b"):
            for index in range(2):
                np.testing.assert_array_equal(
                    h5[f"diff/{name}/{index}"][()].ravel(), layers[name][index].diff
                )


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


def test_the_newest_complete_snapshot_is_used(tmp_path):
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
            "has 5 arrays and this solver 6; resume with the net and the solver type that made it",
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
def test_states_that_do_not_fit_are_refused_without_changes(kind, message, tmp_path):
    trainer = Trainer(settings_of("sgd_fixed", tmp_path))
    before = [parameter.detach().clone() for parameter in trainer.net.parameters()]
    with pytest.raises(IlgnetError) as raised:
        trainer.restore(broken_state(kind, tmp_path))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    for mine, theirs in zip(trainer.net.parameters(), before, strict=True):
        assert bool((mine == theirs).all())


def test_a_missing_folder_is_refused_before_training(tmp_path):
    with pytest.raises(IlgnetError, match="its folder is missing or read-only; make"):
        Trainer(settings_of("sgd_fixed", tmp_path / "absent"))


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match="layer fc, blob 0 is 8x"):
        Trainer(settings_of("sgd_fixed", tmp_path, weights=(str(PIPELINE / "tiny_crop.caffemodel"),)))


def test_later_weights_take_precedence_and_ignored_layers_are_logged(tmp_path):
    """Two files: all of Caffe's at step 10, then one layer of step 20 and one the net lacks."""
    later = pb.NetParameter.FromString((SOLVERS / "sgd_fixed_iter_20.caffemodel").read_bytes())
    kept = [layer for layer in later.layer if layer.name == "fc"]
    kept.append(pb.LayerParameter(name="other", type="InnerProduct", blobs=kept[0].blobs))
    (tmp_path / "fc.caffemodel").write_bytes(pb.NetParameter(name="x", layer=kept).SerializeToString())
    logged = []

    class Ear(Observer):
        def log(self, topic, text):
            if topic == "ignored":
                logged.append(text)

    files = (str(SOLVERS / "sgd_fixed_iter_10.caffemodel"), str(tmp_path / "fc.caffemodel"))
    trainer = Trainer(settings_of("sgd_fixed", tmp_path, weights=files), observers=[Ear()])
    for layer, step in (("conv", 10), ("fc", 20), ("cls", 10)):
        held = load_net(PIPELINE / "tiny.prototxt", SOLVERS / f"sgd_fixed_iter_{step}.caffemodel",
                        input_shapes={"data": (1, 3, 64, 64)})  # fmt: skip
        for mine, theirs in zip(trainer.net.params[layer], held.params[layer], strict=True):
            assert bool((mine == theirs).all())
    assert logged == ["Ignoring source layer other"]


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


ALIKE_NET = """name: "alike"
layer { name: "in" type: "Input" top: "x" top: "y" top: "z" input_param { shape { dim: 4 dim: 3 } } }
layer { type: "EuclideanLoss" bottom: "x" bottom: "y" top: "l1" }
layer { type: "Power" bottom: "z" top: "p" }
layer { name: "x_in_0_split" type: "EuclideanLoss" bottom: "z" bottom: "x" top: "l2" }
"""


def test_a_snapshots_loss_weights_follow_layers_not_names():
    net = net_message(load_net(parse_net(ALIKE_NET), phase="TRAIN", seed=1))
    assert [(layer.name, layer.type, list(layer.loss_weight)) for layer in net.layer] == [
        ("in", "Input", []),
        ("x_in_0_split", "Split", []),
        ("z_in_2_split", "Split", []),
        ("", "EuclideanLoss", [1.0]),
        ("", "Power", []),
        ("x_in_0_split", "EuclideanLoss", [1.0]),
    ]


def test_all_cases_are_present():
    assert len(NAMES) == 15


@pytest.mark.parametrize("prefix", ["run", "übung"])
def test_hdf5_strings_are_null_terminated_as_caffe_reads_them(prefix, tmp_path):
    """As `H5LTmake_dataset_string` stores them: a scalar C string of strlen + 1 bytes, null terminated."""
    state = tmp_path / "run.solverstate.h5"
    name = f"{prefix}_iter_7.caffemodel.h5"
    snapshot_hdf5.write_state(state, 7, name, [np.ones((2, 3), np.float32)], 4)
    text = name.encode()
    with h5py.File(state) as file:
        kind = file["learned_net"].id.get_type()
        assert (kind.get_size(), kind.get_strpad()) == (len(text) + 1, h5py.h5t.STR_NULLTERM)
        assert kind.get_cset() == h5py.h5t.CSET_ASCII and file["learned_net"].shape == ()
        assert {key: (file[key].dtype, file[key].shape) for key in ("iter", "current_step")} == {
            key: (np.dtype("<i4"), (1,)) for key in ("iter", "current_step")
        }
        assert file["history/0"].dtype == np.dtype("<f4") and file["history/0"].shape == (2, 3)
        assert sorted(file) == ["current_step", "history", "iter", "learned_net"]
        offset = file["learned_net"].id.get_offset()
    assert state.read_bytes()[offset : offset + len(text) + 1] == text + b"\0"
    assert snapshot_hdf5.read_state(state).learned_net == name


NAMED = """
layer {{ name: "data" type: "Data" top: "data" top: "label"
  data_param {{ source: "{data}" batch_size: 4 backend: LMDB }} }}
layer {{ name: "{first}" type: "InnerProduct" bottom: "data" top: "h" inner_product_param {{ num_output: 5 }} }}
layer {{ name: "{second}" type: "{type}" bottom: "h" top: "h2" {param} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "h2" bottom: "label" top: "loss" }}
"""
DENSE = "inner_product_param { num_output: 3 }"


def named_settings(first: str, second: str, type_: str, folder: Path, **changes: object):
    """A net of two layers with the names given, and a solver for it."""
    param = DENSE if type_ == "InnerProduct" else ""
    text = NAMED.format(data=PIPELINE / "raw64_lmdb", first=first, second=second, type=type_, param=param)
    net = upgrade_net(parse_net(text), [])
    message = pb.SolverParameter(base_lr=0.01, lr_policy="fixed", max_iter=2, snapshot=1, net_param=net)
    message.snapshot_prefix = str(folder / "run")
    return make_settings(message).with_(**changes)


@pytest.mark.parametrize(
    ("first", "second", "type_", "message"),
    [
        (
            "ip", "ip", "InnerProduct",
            "2 layers are named 'ip' (InnerProduct writing h, InnerProduct writing h2)",
        ),
        ("", "", "InnerProduct", "2 layers have no name (InnerProduct writing h, InnerProduct writing h2)"),
        ("ip", "ip", "ReLU", "2 layers are named 'ip' (InnerProduct writing h, ReLU writing h2)"),
    ],
    ids=["twice", "none", "one without weights"],
)  # fmt: skip
def test_layers_of_the_same_name_are_refused_at_the_start(first, second, type_, message, tmp_path):
    with pytest.raises(SolverError) as raised:
        Trainer(named_settings(first, second, type_, tmp_path))
    assert str(raised.value) == (
        f"net '': {message}; weights are stored by layer name, so give each layer a unique name"
    )


@pytest.mark.parametrize("hdf5", [False, True], ids=["binary", "hdf5"])
@pytest.mark.parametrize("second", ["ip2", "ip#2", "loss_"])
def test_layers_with_unique_names_are_stored(second, hdf5, tmp_path):
    """The accepted counterpart: the snapshot of each iteration is there, and holds both layers."""
    settings = named_settings("ip", second, "InnerProduct", tmp_path, snapshot_hdf5=hdf5)
    Trainer(settings).solve()
    (path,) = tmp_path.glob("run_iter_2.caffemodel*")
    held = {layer.name: [blob.shape for blob in layer.blobs] for layer in open_caffemodel(path).layers}
    assert {name: shapes for name, shapes in held.items() if shapes} == {
        "ip": [(5, 12288), (5,)],
        second: [(3, 5), (3,)],
    }


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("ip", "ip/0", "layer 'ip/0': has the HDF5 path of a blob of layer 'ip'; rename one of the two, "),
        ("ip/1/x", "ip", "layer 'ip/1/x': has the HDF5 path of a blob of layer 'ip'; rename one of the "),
        ("/ip", "b", "layer '/ip': not a valid name in HDF5; rename it, or remove snapshot_format"),
        ("a", "b/./c", "layer 'b/./c': not a valid name in HDF5; rename it, or remove "),
    ],
)  # fmt: skip
def test_names_that_hdf5_cannot_store_are_refused_at_the_start(first, second, message, tmp_path):
    with pytest.raises(SolverError) as raised:
        Trainer(named_settings(first, second, "InnerProduct", tmp_path, snapshot_hdf5=True))
    assert str(raised.value).startswith(message)
    Trainer(named_settings(first, second, "InnerProduct", tmp_path))  # binary files hold any name


def test_a_slash_in_hdf5_is_noted(tmp_path):
    logged = []

    class Ear(Observer):
        def log(self, topic, text):
            if topic == "note":
                logged.append(text)

    Trainer(named_settings("a/b", "c", "InnerProduct", tmp_path, snapshot_hdf5=True), observers=[Ear()])
    assert logged == [
        "snapshot_format HDF5: layer a/b has a slash in its name; such snapshots resume here, but Caffe neither "
        "writes nor reads them"
    ]


@pytest.mark.parametrize(
    "prefix", ["snap/", "snap/s", "s", ""], ids=["folder", "in a folder", "name", "none"]
)
@pytest.mark.parametrize("hdf5", [False, True], ids=["binary", "hdf5"])
def test_names_of_a_prefix(tmp_path, prefix, hdf5) -> None:
    """As Caffe: the prefix, then `_iter_N`; a prefix that ends in a slash names a folder."""
    (tmp_path / "snap").mkdir()
    text = (
        'name: "n" layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 2 dim: 3 } } } '
        'layer { name: "f" type: "InnerProduct" bottom: "d" top: "f" inner_product_param { num_output: 4 } }'
    )
    net = load_net(parse_net(text), phase="TRAIN", seed=1)
    snapshots = Snapshots(prefix, tmp_path, hdf5)
    snapshots.check()
    names = snapshots.save(net, 7, [], 0)
    ending = ".h5" if hdf5 else ""
    assert names == (f"{prefix}_iter_7.caffemodel{ending}", f"{prefix}_iter_7.solverstate{ending}")
    assert sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    ) == sorted(names)
    assert snapshots.iterations() == [7]
    assert snapshots.latest() == tmp_path / names[1]


def test_two_runs_of_one_prefix(tmp_path) -> None:
    first, second = Snapshots("s", tmp_path), Snapshots("s", tmp_path)
    with first.claimed(), Snapshots("other", tmp_path).claimed():
        with pytest.raises(IlgnetError) as refused, second.claimed():
            pytest.fail("two runs write one snapshot")
        assert str(refused.value) == (
            f"{tmp_path / 's_iter'}: another process is writing it; wait for it, or give another name"
        )
    assert list(tmp_path.iterdir()) == []
