"""Files that solvers and nets name, in other folders than the working one: found beside the text, and said."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.blob import write_blob
from ilgnet_repro.caffe.solverstate import read_solverstate, write_solverstate
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.mean import write_mean

NET = """
name: "n"
layer {{ name: "data" type: "ImageData" top: "data" top: "label"
  image_data_param {{ source: "{list}" root_folder: "{root}" batch_size: 2 }} transform_param {{ mean_file: "{mean}" }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {{ num_output: 3 weight_filler {{ type: "constant" value: 0.01 }} }} }}
layer {{ name: "loss" type: "InfogainLoss" bottom: "ip" bottom: "label" top: "loss"
  infogain_loss_param {{ source: "{matrix}" }} }}
"""
SOLVER = """
net: "{net}" base_lr: 0.001 lr_policy: "fixed" max_iter: 2 display: 1 random_seed: 1 snapshot_prefix: "out"
test_iter: 1 test_interval: 2
"""
MATRIX = np.array([[1, 0.25, 0], [0, 2, 0.5], [0.125, 0, 1]], np.float32)

# How list, folder of images, mean and matrix are named, with `{data}` an absolute folder; and how many of them training
# and `caffe test` find elsewhere: a solver whose net is in its own folder only has its paths relative to that folder.
NAMES = {
    "as Caffe needs them": (
        "{data}/list.txt",
        "{data}/im/",
        "{data}/m.binaryproto",
        "{data}/h.binaryproto",
        0,
        0,
    ),
    "no root folder": ("{data}/list.txt", "", "{data}/m.binaryproto", "{data}/h.binaryproto", 0, 1),
    "beside the net": ("list.txt", "", "m.binaryproto", "h.binaryproto", 0, 4),
    "where they were": (
        "/old/place/list.txt",
        "/old/place/im",
        "/old/m.binaryproto",
        "old/h.binaryproto",
        4,
        4,
    ),
    "Windows": (
        "nets\\\\list.txt",
        "nets\\\\im\\\\",
        "C:\\\\old\\\\m.binaryproto",
        "D:\\\\h.binaryproto",
        4,
        4,
    ),
}


@pytest.fixture(params=NAMES.values(), ids=NAMES)
def case(request, tmp_path: Path, monkeypatch) -> tuple[Path, int, int]:
    """nets/ with a solver, its net and the net's files, and the working directory beside it; the two counts."""
    nets = tmp_path / "nets"
    (nets / "im").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(nets / "im" / f"{number}.png"), rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    write_mean(nets / "m.binaryproto", np.full((3, 5, 4), 100, np.float32))
    write_blob(nets / "h.binaryproto", MATRIX[None, None])
    listed, root, mean, matrix = (name.format(data=nets) for name in request.param[:4])
    under = "" if root else "im/"
    (nets / "list.txt").write_text(f"{under}0.png 0\n{under}1.png 2\n{under}2.png 1\n")
    (nets / "net.prototxt").write_text(NET.format(list=listed, root=root, mean=mean, matrix=matrix))
    (nets / "solver.prototxt").write_text(SOLVER.format(net="net.prototxt"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return nets, *request.param[4:]


def first_loss(nets: Path) -> float:
    """The loss of the first two images, by its formula."""
    total = 0.0
    for number, label in ((0, 0), (1, 2)):
        pixels = cv2.imread(str(nets / "im" / f"{number}.png")).astype(np.float64) - 100
        scores = np.full(3, 0.01 * pixels.sum())
        log_p = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
        total -= float((MATRIX[label] * log_p).sum())
    return total / 2


def test_training_finds_them(case: tuple[Path, int, int]) -> None:
    folder, elsewhere, _ = case
    log = folder.parent / "log.txt"
    with log.open("w") as file:
        solved = ir.solve("../nets/solver.prototxt", max_iter=1, log=file)
    assert solved.iterations == 1 and solved.loss == pytest.approx(first_loss(folder), rel=1e-5)
    said = [line for line in log.read_text().splitlines() if "does not exist; " in line]
    assert len(said) == elsewhere, said
    assert (
        "net.prototxt is not in the current folder; paths are relative to ../nets, the solver's folder"
        in solved.notes
    )


def test_caffe_test_and_batches_find_them(case: tuple[Path, int, int], capsys) -> None:
    folder, _, elsewhere = case
    solved = ir.solve("../nets/solver.prototxt", max_iter=0)
    ir.save(solved.net, folder / "w.caffemodel")
    command = [
        "caffe",
        "test",
        "-model",
        "../nets/net.prototxt",
        "-weights",
        "../nets/w.caffemodel",
        "-iterations=1",
    ]
    assert main(command) == 0
    err = capsys.readouterr().err
    assert f"loss = {first_loss(folder):.4f}"[:-1] in err
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == elsewhere, notes
    shapes = {"data": (2, 3, 5, 4)}
    net = ir.load_net("../nets/net.prototxt", "../nets/w.caffemodel", "TRAIN", input_shapes=shapes)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        batch = next(ir.batches(net))
    assert len(warned) == elsewhere - (elsewhere == 4), "all but the matrix, which is read with the net"
    assert net.loss(batch).item() == pytest.approx(first_loss(folder), rel=1e-5)


@pytest.mark.parametrize("hdf5", [False, True], ids=["binary", "hdf5"])
def test_states_written_on_windows_find_their_weights(hdf5: bool, tmp_path: Path, monkeypatch) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"], file["y"] = np.eye(3), np.arange(3)
    (tmp_path / "d.txt").write_text("d.h5\n")
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "d" type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "d.txt" batch_size: 3 } } '
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "z" inner_product_param { num_output: 3 } } '
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "z" bottom: "y" top: "loss" }'
    )
    text = (
        'net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 4 snapshot: 2 snapshot_prefix: "out" '
    )
    text += "random_seed: 2"
    (tmp_path / "solver.prototxt").write_text(text + (" snapshot_format: HDF5" if hdf5 else ""))
    monkeypatch.chdir(tmp_path)
    whole = ir.solve("solver.prototxt")
    ending = ".h5" if hdf5 else ""
    state = tmp_path / f"out_iter_2.solverstate{ending}"
    name = "D:\\runs\\out_iter_2.caffemodel" + ending
    if hdf5:
        with h5py.File(state, "r+") as file:
            del file["learned_net"]
            file["learned_net"] = np.bytes_(name + "\0")
    else:
        found = read_solverstate(state)
        write_solverstate(state, 2, name, [blob.array() for blob in found.history], found.current_step)
    log = io.StringIO()
    resumed = ir.solve("solver.prototxt", resume=state, log=log)
    assert (
        f"] {name} does not exist; {tmp_path}/out_iter_2.caffemodel{ending} is read instead\n"
        in log.getvalue()
    )
    for mine, theirs in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / f"out_iter_2.caffemodel{ending}").unlink()
    with pytest.raises(IlgnetError) as raised:
        ir.solve("solver.prototxt", resume=state)
    assert "put them beside the solver state" in str(raised.value)


NETS = {
    "as written": ("nets/net.prototxt", False),
    "beside the solver": ("net.prototxt", False),
    "where it was": ("/old/nets/net.prototxt", True),
    "Windows": ("D:\\\\old\\\\nets\\\\net.prototxt", True),
}


@pytest.mark.parametrize(("name", "is_said"), NETS.values(), ids=NETS)
@pytest.mark.parametrize("field", ["net", "train_net"])
def test_the_net_and_the_weights_of_a_solver(
    field: str, name: str, is_said: bool, tmp_path: Path, monkeypatch
) -> None:
    nets = tmp_path / "nets"
    nets.mkdir()
    (nets / "net.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { data_filler { type: "constant" value: 1 } '
        "shape { dim: 2 dim: 3 } shape { dim: 2 } } } "
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "z" inner_product_param { num_output: 2 '
        'weight_filler { type: "xavier" } } } '
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "z" bottom: "y" top: "loss" }'
    )
    monkeypatch.chdir(tmp_path)
    text = f'{field}: "{name}" base_lr: 0 lr_policy: "fixed" max_iter: 1 snapshot_prefix: "out" random_seed: '
    (nets / "first.prototxt").write_text(text + "1")
    first = ir.solve("nets/first.prototxt")
    ir.save(first.net, nets / "w.caffemodel")
    (nets / "second.prototxt").write_text(text + '2 weights: "old\\\\w.caffemodel"')
    second = ir.solve("nets/second.prototxt")
    assert torch.equal(first.net.params["ip"][0], second.net.params["ip"][0])
    said = [note for note in first.notes if note.endswith("is read instead")]
    assert len(said) == is_said, first.notes
