"""`caffe test` and `caffe time`: recorded logs line by line, every data layer, wrong flags."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.engines.onnx_engines import EXTRAS
from ilgnet_repro.reading.datum import raw_datum
from ilgnet_repro.reading.lmdb_read import row_key
from ilgnet_repro.reading.lmdb_write import LmdbWriter

# Log, prototxt, weights, flags: with one dash and with two, from the folder of the sources and from another.
LOGS = {
    "mean file, wraps": ("test_tiny.log", "tiny", "tiny_init", ["-iterations", "7"], True),
    "crop, 50 by default": ("test_tiny_crop_default_iterations.log", "tiny_crop_test", "tiny_crop", [], True),
    "from another folder": ("test_tiny.log", "tiny", "tiny_init", ["--iterations=7", "--phase=TEST"], False),
}


def read_log(path: Path) -> dict[str, Any]:
    """The values that Caffe's own log holds: (batch, blob, value), the loss, (blob, mean, weight, weighted)."""
    text = "\n".join(line.partition("] ")[2] for line in path.read_text().splitlines())
    batches, _, after = text.partition("\nLoss: ")
    loss, _, summary = after.partition("\n")
    return {
        "batches": re.findall(r"^Batch (\d+), (.+) = (.+)$", batches, re.M),
        "loss": float(loss),
        "summary": re.findall(r"^(.+?) = (\S+)(?: \(\* (\S+) = (\S+) loss\))?$", summary, re.M),
    }


@pytest.mark.parametrize("engine", ["torch", *(name for name in EXTRAS if find_spec(name))])
def test_an_engine_gives_the_same_numbers(golden, tmp_path, monkeypatch, capsys, engine: str) -> None:
    log, net, weights, flags, inside = next(iter(LOGS.values()))
    folder = golden / "pipeline"
    monkeypatch.chdir(folder if inside else tmp_path)
    prefix = "" if inside else f"{folder}/"
    flags = ["-model", f"{prefix}{net}.prototxt", "-weights", f"{prefix}{weights}.caffemodel", *flags]
    assert main(["caffe", "test", *flags, "-json", "-engine", engine]) == 0
    recorded, found = read_log(folder / log), json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(recorded["loss"], abs=1e-5)
    values = [float(value) for _, _, value in recorded["batches"]]
    assert sorted(np.ravel([*map(np.ravel, found["batches"].values())])) == pytest.approx(
        sorted(values), abs=1e-5
    )


@pytest.mark.parametrize("log, net, weights, flags, inside", LOGS.values(), ids=LOGS)
def test_recorded_logs(golden, tmp_path, monkeypatch, capsys, log, net, weights, flags, inside) -> None:
    folder = golden / "pipeline"
    monkeypatch.chdir(folder if inside else tmp_path)
    prefix = "" if inside else f"{folder}/"
    flags = ["-model", f"{prefix}{net}.prototxt", "-weights", f"{prefix}{weights}.caffemodel", *flags]
    assert main(["caffe", "test", *flags, "-json"]) == 0
    printed = capsys.readouterr()
    recorded, found = read_log(folder / log), json.loads(printed.out)
    batches: dict[str, list[list[float]]] = {}
    for number, blob, value in recorded["batches"]:
        rows = batches.setdefault(blob, [])
        if len(rows) == int(number):
            rows.append([])
        rows[-1].append(float(value))
    assert found["iterations"] == max(map(len, batches.values()))
    assert list(found["batches"]) == list(batches)
    for blob, rows in batches.items():
        np.testing.assert_allclose(found["batches"][blob], rows, rtol=0, atol=1e-5)
    assert found["loss"] == pytest.approx(recorded["loss"], abs=1e-5)
    for mine, (blob, mean, weight, weighted) in zip(found["means"], recorded["summary"], strict=True):
        assert mine["blob"] == blob
        assert mine["mean"] == pytest.approx(float(mean), abs=1e-5)
        assert mine["weight"] == float(weight or 0)
        assert mine["weighted"] == pytest.approx(float(weighted or 0), abs=1e-5)
    # The lines themselves, by the prefix that Caffe's own parse_log.py counts on.
    line = re.compile(
        r"^I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ caffe\.cpp:\d+\] (Batch|Loss|Running|loss|top-1|Use)(.*)$", re.M
    )
    theirs = re.sub(r"^I\d{4}(?=\d{4} )", "I", (folder / log).read_text(), flags=re.M)
    numbers = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    mine, recorded_lines = line.findall(printed.err), line.findall(theirs)
    assert [numbers.sub("#", "".join(m)) for m in mine] == [
        numbers.sub("#", "".join(m)) for m in recorded_lines
    ]


ROWS = np.random.default_rng(2).integers(0, 256, (5, 3, 2, 4)).astype(np.uint8)
LABELS = np.array([3, 0, 1, 1, 2])


def write_lmdb(folder: Path) -> None:
    (folder / "db").mkdir()
    writer = LmdbWriter(folder / "db")
    writer.write(
        [(row_key(i, "x"), raw_datum(p, int(k))) for i, (p, k) in enumerate(zip(ROWS, LABELS, strict=True))]
    )
    writer.close()


def write_list(folder: Path) -> None:
    for index, image in enumerate(ROWS):
        cv2.imwrite(str(folder / f"{index}.png"), image.transpose(1, 2, 0))
    (folder / "list.txt").write_text("".join(f"{i}.png {label}\n" for i, label in enumerate(LABELS)))


def write_hdf5(folder: Path) -> None:
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 5))):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"], file["label"] = ROWS[part].astype(np.float32), LABELS[part].astype(np.float32)
    (folder / "files.txt").write_text("a.h5\nb.h5\n")


def write_npz(folder: Path) -> None:
    np.savez(folder / "rows.npz", data=ROWS, label=LABELS)


# The layer's own fields, the function that writes its source, and the flags: each reads the same five rows.
LAYERS = {
    "Data": ('data_param { source: "db" batch_size: 2 backend: LMDB }', write_lmdb, []),
    "ImageData": ('image_data_param { source: "list.txt" batch_size: 2 root_folder: "./" }', write_list, []),
    "HDF5Data": ('hdf5_data_param { source: "files.txt" batch_size: 2 }', write_hdf5, []),
    "MemoryData": (
        "memory_data_param { batch_size: 2 channels: 3 height: 2 width: 4 }",
        write_npz, ["-arrays", "rows.npz"],
    ),
    "Input": (
        "input_param { shape { dim: 2 dim: 3 dim: 2 dim: 4 } shape { dim: 2 } }",
        write_npz, ["-arrays", "rows.npz"],
    ),
}  # fmt: skip
HEAD = """
layer { name: "flat" type: "Flatten" bottom: "data" top: "flat" }
layer { name: "sum" type: "Reduction" bottom: "flat" top: "sum" reduction_param { axis: 1 } }
"""


def run_layer(type_: str, fields: str, flags: list[str], capsys, head: str = HEAD) -> dict:
    tops = 'top: "data" top: "label"'
    Path("net.prototxt").write_text(f'name: "n" layer {{ name: "d" type: "{type_}" {tops} {fields} }} {head}')
    # Caffe requires a weights file for a net without weights too; its layer is not in the net.
    other = 'layer { name: "other" type: "InnerProduct" bottom: "x" top: "y" }'
    write_caffemodel("other.caffemodel", parse_net(other), {"other": [np.ones((1, 1), np.float32)]})
    flags = ["-model", "net.prototxt", "-weights", "other.caffemodel", "-iterations", "4", "-json", *flags]
    status = main(["caffe", "test", *flags])
    printed = capsys.readouterr()
    return {"status": status, "error": printed.err} if status else json.loads(printed.out)


@pytest.mark.parametrize("type_", LAYERS)
def test_every_data_layer_wraps(tmp_path, monkeypatch, capsys, type_: str) -> None:
    monkeypatch.chdir(tmp_path)
    fields, write, flags = LAYERS[type_]
    write(tmp_path)
    found = run_layer(type_, fields, flags, capsys)
    read = np.arange(8).reshape(4, 2) % 5
    assert found["batches"]["label"] == LABELS[read].tolist()
    assert found["batches"]["sum"] == ROWS.astype(float).sum(axis=(1, 2, 3))[read].tolist()
    means = {(m["blob"], k % 2): m["mean"] for k, m in enumerate(found["means"])}
    assert means["label", 1] == LABELS[read].mean(axis=0)[1]


def test_dummy_data(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    fillers = "data_filler { value: 0.5 } data_filler { value: 7 }"
    fields = f"dummy_data_param {{ shape {{ dim: 2 dim: 3 }} shape {{ dim: 2 }} {fillers} }}"
    found = run_layer("DummyData", fields, [], capsys)
    assert found["batches"] == {"label": [[7, 7]] * 4, "sum": [[1.5, 1.5]] * 4}


def test_an_input_without_rows_is_zero(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    found = run_layer("Input", LAYERS["Input"][0], [], capsys)
    assert found["batches"]["sum"] == [[0, 0]] * 4


MEMORY = LAYERS["MemoryData"][0]
WRONG = {
    "no rows": (
        "MemoryData",
        MEMORY,
        {},
        [],
        "d (MemoryData): nothing feeds 'data'; give an array of that name",
    ),
    "label missing": ("MemoryData", MEMORY, {"data": ROWS}, None, "nothing feeds 'label'"),
    "other shape": (
        "MemoryData",
        MEMORY,
        {"data": ROWS[:, :2], "label": LABELS},
        None,
        "array 'data' is (5, 2, 2, 4)",
    ),
    "unknown name": ("MemoryData", MEMORY, {"x": ROWS}, None, "array 'x': the net takes data, label"),
    "no numbers": ("MemoryData", MEMORY, {"data": np.array(["a"])}, None, "rows.npz: data is <U1"),
    "no npz": (
        "MemoryData",
        MEMORY,
        {},
        ["-arrays", "net.prototxt"],
        "net.prototxt: is a net's prototxt, not an npz file; give what numpy.savez wrote",
    ),
    "no database": ("Data", LAYERS["Data"][0], {}, [], "is not an LMDB"),
    "no iterations": (
        "Input",
        LAYERS["Input"][0],
        {},
        ["-iterations", "0"],
        "-iterations/--iterations: '0': give an integer from 1 to",
    ),
    "no GPU": ("Input", LAYERS["Input"][0], {}, ["-gpu", "99"], "-gpu 99: there are"),
    "no weights": ("Input", LAYERS["Input"][0], {}, ["-weights", ""], "-weights is missing"),
}


@pytest.mark.parametrize("type_, fields, arrays, flags, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_tested(tmp_path, monkeypatch, capsys, type_, fields, arrays, flags, message) -> None:
    monkeypatch.chdir(tmp_path)
    if arrays:
        np.savez("rows.npz", **arrays)
    found = run_layer(type_, fields, ["-arrays", "rows.npz"] if flags is None else flags, capsys)
    assert found["status"] == 1
    assert message in found["error"].splitlines()[-1]


def test_images_of_two_sizes_do_not_form_a_batch(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path)
    cv2.imwrite("1.png", np.zeros((9, 9, 3), np.uint8))
    found = run_layer("ImageData", LAYERS["ImageData"][0], [], capsys)
    assert found["status"] == 1
    assert "(ImageData): rows of one batch differ in shape: data of " in found["error"]


def test_time(golden, monkeypatch, capsys) -> None:
    monkeypatch.chdir(golden / "pipeline")
    assert (
        main(["caffe", "time", "-model", "tiny.prototxt", "-iterations", "3", "-json", "-logtostderr=1"]) == 0
    )
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    layers = {row["layer"]: row for row in found["layers"]}
    assert list(layers) == [
        "data",
        "conv",
        "relu",
        "pool",
        "norm",
        "fc",
        "fc_relu",
        "cls",
        "loss",
    ]  # phase TRAIN
    assert all(row["backward"] > 0 for name, row in layers.items() if name != "data")
    assert layers["data"]["backward"] == 0
    assert found["forward"] == pytest.approx(sum(row["forward"] for row in found["layers"]))
    assert found["forward"] + found["backward"] <= found["forward_backward"] * 1.001
    assert found["total"] == pytest.approx(3 * found["forward_backward"])
    rows = re.findall(r"caffe\.cpp:\d+\] +(\S+)\t(forward|backward): (\S+) ms\.", printed.err)
    assert [(name, way) for name, way, _ in rows] == [(n, w) for n in layers for w in ("forward", "backward")]
    assert float(rows[2][2]) == pytest.approx(layers["conv"]["forward"], rel=1e-5)
    assert len(re.findall(r"Iteration: \d forward-backward time: \S+ ms\.", printed.err)) == 3
    assert main(["caffe", "time", "-model", "tiny.prototxt", "-iterations", "0"]) == 1
    assert "-iterations/--iterations: '0': give an integer from 1 to" in capsys.readouterr().err


def test_commands_carry_the_state_of_an_lstm(tmp_path, monkeypatch, capsys):
    """A sequence read in three passes has the same losses as in one, as in Caffe: testing and training."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(6)
    marks = np.ones((15, 2), np.float32)
    marks[0] = 0
    with h5py.File("seq.h5", "w") as file:
        file["data"] = rng.standard_normal((15, 2, 4)).astype(np.float32)
        file["cont"] = marks
        file["label"] = rng.integers(0, 3, (15, 2)).astype(np.float32)
    Path("list.txt").write_text("seq.h5\n")
    for steps in (5, 15):
        Path(f"net{steps}.prototxt").write_text(
            'layer { name: "data" type: "HDF5Data" top: "data" top: "cont" top: "label" '
            f'hdf5_data_param {{ source: "list.txt" batch_size: {steps} }} }}'
            'layer { name: "rnn" type: "LSTM" bottom: "data" bottom: "cont" top: "h" recurrent_param { num_output: 6 '
            'weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }'
            'layer { name: "ip" type: "InnerProduct" bottom: "h" top: "s" inner_product_param { num_output: 3 axis: 2 '
            'weight_filler { type: "xavier" } } }'
            'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "s" bottom: "label" top: "loss" '
            "softmax_param { axis: 2 } }"
        )
        Path(f"solver{steps}.prototxt").write_text(
            f'net: "net{steps}.prototxt" base_lr: 0 lr_policy: "fixed" max_iter: 3 display: 1 random_seed: 1 '
            'snapshot_prefix: "out" solver_mode: CPU'
        )
    assert main(["caffe", "train", "-solver", "solver5.prototxt"]) == 0
    trained = [float(x) for x in re.findall(r"Iteration \d \(?.*loss = ([\d.]+)", capsys.readouterr().err)][
        :3
    ]
    found = {}
    for steps, passes in ((5, 3), (15, 1)):
        flags = [
            "-model",
            f"net{steps}.prototxt",
            "-weights",
            "out_iter_3.caffemodel",
            "-iterations",
            str(passes),
        ]
        assert main(["caffe", "test", *flags, "-json"]) == 0
        found[steps] = [row[0] for row in json.loads(capsys.readouterr().out)["batches"]["loss"]]
    assert np.mean(found[5]) == pytest.approx(found[15][0], abs=2e-6)
    assert trained == pytest.approx(found[5], abs=1e-5)
