"""Files that earlier versions wrote still load, score, compare, resume and report, with the results recorded then.

Only what users call is used here: the commands, `load`, `load_net`, `score` and `convert`. See README.md.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import onnx
import pytest
import safetensors
import torch
from safetensors.torch import load_file

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main

HERE = Path(__file__).resolve().parent
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
with np.load(HERE / "expected.npz") as _file:
    ARRAYS = dict(_file)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # another processor adds in another order
TRAINED = {"rtol": 1e-4, "atol": 1e-5}  # several iterations of that

# file -> the net whose recorded inputs it takes
SAFETENSORS = {
    "plain/photo.safetensors": "photo",
    "prepared/photo.safetensors": "photo",
    "mean_image/photo.safetensors": "photo",
    "folded/photo.safetensors": "photo",
    "int8/photo.safetensors": "photo",
    "float16/photo.safetensors": "photo",
    "bfloat16/photo.safetensors": "photo",
    "plain/open.safetensors": "open",
    "sized/open.safetensors": "sized/open",
    "plain/shared.safetensors": "shared",
    "plain/recurrent.safetensors": "recurrent",
}
ONNX = {
    "plain/photo.onnx": "photo",
    "int8/photo.onnx": "photo",
    "dynamic/open.onnx": "sized/open",
    "plain/recurrent.onnx": "recurrent",
}
PREPARED = ["prepared", "mean_image", "folded", "int8", "float16", "bfloat16"]
MEANS = ["--mean-value", "104,117,123", "--scale", "0.05"]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nets and converted files in the current folder, for tests that only read there."""
    monkeypatch.chdir(HERE / "files")


def copy(tmp_path: Path, *folders: str) -> Path:
    """Copy folders that commands may change."""
    for folder in folders:
        shutil.copytree(HERE / "files" / folder, tmp_path / folder)
    return tmp_path / folders[-1]


def inputs_of(name: str) -> dict[str, np.ndarray]:
    start = f"{name}/in/"
    return {key.removeprefix(start): array for key, array in ARRAYS.items() if key.startswith(start)}


def outputs_of(name: str) -> dict[str, np.ndarray]:
    start = f"{name}/out/"
    return {key.removeprefix(start): array for key, array in ARRAYS.items() if key.startswith(start)}


def assert_recorded(outputs: Mapping[str, Any], name: str) -> None:
    recorded = outputs_of(name)
    assert recorded and list(outputs) == list(recorded)
    for blob, values in recorded.items():
        np.testing.assert_allclose(np.asarray(torch.as_tensor(outputs[blob]).float()), values, **CLOSE)


def run_net(net: Any, name: str) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return net(**{blob: torch.from_numpy(values) for blob, values in inputs_of(name).items()})


def assert_same_params(net: Any, other: Any) -> None:
    assert {name: len(blobs) for name, blobs in net.params.items()} == {
        name: len(blobs) for name, blobs in other.params.items()
    }
    for name, blobs in net.params.items():
        for mine, theirs in zip(blobs, other.params[name], strict=True):
            assert torch.equal(mine, theirs)


def run_onnx(path: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX files are run by the extra `runtime`")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


# ---------------------------------------------------------------------- nets


def test_every_file_is_in_a_table() -> None:
    """A file that no test opens would test nothing."""
    folder = HERE / "files"
    found = {p.relative_to(folder).as_posix() for p in folder.glob("*/*.safetensors")}
    weights = {"plain/photo.weights.safetensors", "plain/shared.weights.safetensors"}
    assert found == SAFETENSORS.keys() | weights | {"test/photo.safetensors"}
    assert {p.relative_to(folder).as_posix() for p in folder.glob("*/*.onnx")} == ONNX.keys() | {
        "preprocessing/photo.onnx"
    }


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_load_and_give_the_recorded_outputs(files: None, name: str) -> None:
    assert_recorded(run_net(ir.load(name), SAFETENSORS[name]), name)


@pytest.mark.parametrize("net", ["photo", "open", "shared", "recurrent"])
def test_caffemodels_and_safetensors_hold_the_same_parameters(files: None, net: str) -> None:
    caffe = ir.load_net(f"{net}.prototxt", f"{net}.caffemodel")
    assert_recorded(run_net(caffe, net), net)
    assert_same_params(ir.load(f"plain/{net}.safetensors"), caffe)


def test_a_caffemodel_written_by_convert(files: None, tmp_path: Path) -> None:
    saved = ir.load_net("photo.prototxt", "saved/photo.caffemodel")
    assert_recorded(run_net(saved, "photo"), "photo")
    assert_same_params(saved, ir.load_net("photo.prototxt", "photo.caffemodel"))
    ir.convert("saved/photo.caffemodel", "photo.prototxt", to=["safetensors"], out=tmp_path)
    assert_same_params(ir.load(tmp_path / "photo.safetensors"), saved)


def test_shared_parameters_are_one(files: None) -> None:
    net = ir.load("plain/shared.safetensors")
    assert net.params["a"][0].data_ptr() == net.params["b"][0].data_ptr()


def test_the_shapes_a_file_was_written_for(files: None) -> None:
    assert net_shape("sized/open.safetensors") == (2, 3, 10, 12)
    assert net_shape("plain/open.safetensors") == (1, 3, 9, 7)


def net_shape(name: str) -> tuple[int, ...]:
    return tuple(ir.load(name).blob_shapes()["data"])


@pytest.mark.parametrize("folder", PREPARED)
def test_scores(files: None, capsys: pytest.CaptureFixture, folder: str) -> None:
    name = f"{folder}/photo.safetensors"
    assert main(["score", "images", "--weights", name, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    recorded = EXPECTED["scores"][name]
    assert len(recorded) == 3
    assert [row["picture"] for row in rows] == [row["picture"] for row in recorded]
    for row, old in zip(rows, recorded, strict=True):
        np.testing.assert_allclose(row["outputs"]["prob"], old["outputs"]["prob"], **CLOSE)
    from_python = list(ir.score([row["picture"] for row in recorded], name))
    for score, old in zip(from_python, recorded, strict=True):
        np.testing.assert_allclose(score.outputs["prob"], old["outputs"]["prob"], **CLOSE)


def test_a_file_without_preprocessing_asks_for_it(files: None, capsys: pytest.CaptureFixture) -> None:
    plain = ["score", "images", "--weights", "plain/photo.safetensors", "--json"]
    assert main(plain) == 1
    assert "--mean-value" in capsys.readouterr().err
    assert main([*plain, *MEANS]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, old in zip(rows, EXPECTED["scores"]["prepared/photo.safetensors"], strict=True):
        np.testing.assert_allclose(row["outputs"]["prob"], old["outputs"]["prob"], **CLOSE)


@pytest.mark.parametrize("name", ONNX)
def test_onnx_files_give_the_recorded_outputs(files: None, name: str) -> None:
    assert_recorded(run_onnx(name, inputs_of(ONNX[name])), name)


def test_an_onnx_file_with_preprocessing_gives_the_recorded_scores(files: None) -> None:
    name = "preprocessing/photo.onnx"
    outputs = run_onnx(name, inputs_of(name))
    assert_recorded(outputs, name)
    scores = [row["outputs"]["prob"] for row in EXPECTED["scores"]["prepared/photo.safetensors"]]
    np.testing.assert_allclose(outputs["prob"], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["photo", "shared"])
def test_python_source_takes_its_weights(files: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location(f"compat_{name}", f"plain/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = getattr(module, name.capitalize())()
    net.load_state_dict(load_file(f"plain/{name}.weights.safetensors"))
    assert_recorded(run_net(net, name), name)


COMPARED = [
    ("plain/photo.safetensors", "photo.caffemodel", "photo"),
    ("plain/photo.onnx", "photo.caffemodel", "photo"),
    ("plain/photo.onnx", "plain/photo.safetensors", "photo"),
    ("plain/photo.pt2", "plain/photo.safetensors", "photo"),
    ("folded/photo.safetensors", "plain/photo.safetensors", "photo"),
    ("int8/photo.onnx", "int8/photo.safetensors", "photo"),
    ("dynamic/open.onnx", "sized/open.safetensors", "sized/open"),
    ("plain/shared.safetensors", "shared.caffemodel", "shared"),
    ("plain/recurrent.onnx", "plain/recurrent.safetensors", "recurrent"),
]


@pytest.mark.parametrize(("first", "second", "net"), COMPARED, ids=[f"{a}-{b}" for a, b, _ in COMPARED])
def test_compare(files: None, tmp_path: Path, first: str, second: str, net: str) -> None:
    needs(first)
    np.savez(tmp_path / "inputs.npz", **inputs_of(net))
    assert main(["compare", first, second, "--inputs", str(tmp_path / "inputs.npz")]) == 0


def needs(name: str) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="ONNX files are run by the extra `runtime`")
    if name.endswith(".pt2") and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("the pt2 file was written for torch 2.13")


def test_compare_finds_other_weights(files: None, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", **inputs_of("photo"))
    pair = ["plain/photo.safetensors", "int8/photo.safetensors"]
    compare = ["compare", *pair, "--inputs", str(tmp_path / "inputs.npz")]
    assert main([*compare, "--tolerance", "1e-6"]) == 1
    assert main([*compare, "--tolerance", "0.1"]) == 0


# ---------------------------------------------------------------------- written again today

AGAIN = {
    "plain": (["--to", "safetensors,onnx,python"], "photo"),
    "prepared": (["--to", "safetensors", *MEANS], "photo"),
    "mean_image": (
        ["--to", "safetensors", "--mean-file", "mean.binaryproto", "--resize", "8", "--order", "RGB"],
        "photo",
    ),
    "folded": (["--to", "safetensors", "--fold", *MEANS], "photo"),
    "int8": (["--to", "safetensors,onnx", "--precision", "int8", *MEANS], "photo"),
    "preprocessing": (["--to", "onnx", "--with-preprocessing", *MEANS], "photo"),
    "sized": (["--to", "safetensors", "--shape", "data=2,3,10,12"], "open"),
    "dynamic": (["--to", "onnx", "--dynamic-size"], "open"),
}


RENAMED = {
    "bn_mean": "bn.running_mean",
    "bn_variance": "bn.running_var",
    "scale_weight": "bn.weight",
    "scale_bias": "bn.bias",
}


@pytest.mark.parametrize("folder", AGAIN)
def test_the_same_command_writes_what_readers_of_those_files_expect(
    files: None, tmp_path: Path, folder: str
) -> None:
    """Programs of users know tensors, metadata, inputs and outputs by name."""
    options, net = AGAIN[folder]
    assert main(["convert", f"{net}.caffemodel", "--out", str(tmp_path), *options]) == 0
    for old in sorted(Path(folder).glob(f"{net}*")):
        new = tmp_path / old.name
        if old.name == "photo.weights.safetensors":
            # Belongs to the photo.py beside it, whose BatchNorm with its Scale is torch's module since then.
            named = {
                RENAMED.get(name, name): shape[:1] if name in RENAMED else shape
                for name, shape in header(old)[1].items()
            }
            assert header(new)[1] == {**named, "bn.num_batches_tracked": ()}
        elif old.suffix == ".safetensors":
            mine, theirs = header(new), header(old)
            assert mine[0] >= theirs[0]
            assert mine[1] == theirs[1]
        elif old.suffix == ".onnx":
            assert onnx_values(new) == onnx_values(old)
    if folder == "plain":
        state = load_file(tmp_path / "photo.weights.safetensors")
        assert set(RENAMED.values()) <= state.keys()


def header(path: Path) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """Metadata keys, and the tensors with their shapes."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        names = list(file.keys())
        return set(file.metadata() or {}), {name: tuple(file.get_slice(name).get_shape()) for name in names}


def onnx_values(path: Path) -> list[tuple[str, int, int]]:
    """The inputs and outputs: name, element type, number of axes."""
    graph = onnx.load(path).graph
    return [
        (value.name, value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
        for value in [*graph.input, *graph.output]
    ]


# ---------------------------------------------------------------------- training


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of two solvers in the current folder."""
    monkeypatch.chdir(copy(tmp_path, "train"))


def ending(name: str) -> str:
    """The suffix of a solver's snapshots."""
    if name == "adam":
        pytest.importorskip("h5py", reason="HDF5 snapshots need the extra `hdf5`")
        return ".h5"
    return ""


def assert_weights(path: str, name: str, **tolerance: float) -> None:
    net = ir.load_net("net.prototxt", path, phase="TRAIN", input_shapes={"data": (6, 3, 9, 7)})
    recorded = {key: array for key, array in ARRAYS.items() if key.startswith(f"{name}/")}
    found = {f"{name}/{layer}/{i}": b for layer, blobs in net.params.items() for i, b in enumerate(blobs)}
    assert recorded and found.keys() == recorded.keys()
    for key, array in recorded.items():
        np.testing.assert_allclose(found[key].detach().numpy(), array, **tolerance)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_weights_of_a_snapshot_load(runs: None, name: str) -> None:
    end = ending(name)
    assert_weights(f"{name}/net_iter_8.caffemodel{end}", f"{name}/iter_8", rtol=0, atol=0)


@pytest.mark.parametrize(("name", "state"), [("sgd", "net_iter_4"), ("adam", "latest")])
def test_a_killed_training_run_resumes(runs: None, name: str, state: str) -> None:
    """Tables, best weights and the last snapshot are those of a run that was never killed."""
    end = ending(name)
    recorded = EXPECTED["train"][name]
    if state != "latest":
        state = f"{name}/{state}.solverstate{end}"
    assert main([*recorded["command"], "--resume", state]) == 0
    for table in ("train.csv", "test.csv"):
        old = list(csv.reader(recorded[table].splitlines()))
        new = list(csv.reader(Path(name, "net_log", table).read_text().splitlines()))
        assert new[0] == old[0]
        np.testing.assert_allclose(np.array(new[1:], float), np.array(old[1:], float), **TRAINED)
    best = json.loads(Path(name, "net_best.json").read_text())
    assert best == {**recorded["best"], "value": pytest.approx(recorded["best"]["value"], rel=1e-4)}
    assert_weights(f"{name}/net_iter_12.caffemodel{end}", f"{name}/iter_12", **TRAINED)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_caffe_train_resumes_from_a_snapshot(runs: None, name: str) -> None:
    end = ending(name)
    state = f"{name}/net_iter_8.solverstate{end}"
    assert main(["caffe", "train", "-solver", f"{name}.prototxt", "-snapshot", state]) == 0
    assert_weights(f"{name}/net_iter_12.caffemodel{end}", f"{name}/iter_12", **TRAINED)


def test_fine_tuning_starts_from_a_snapshot(runs: None) -> None:
    name = "adam"
    weights = f"{name}/net_iter_8.caffemodel{ending(name)}"
    for path in Path(name).glob("*_best*"):
        path.unlink()
    Path("tuned").mkdir()
    Path("tuned.prototxt").write_text(
        Path(f"{name}.prototxt").read_text().replace(f"{name}/net", "tuned/net")
    )
    assert main(["train", "--solver", "tuned.prototxt", "--weights", weights, "--max-iter", "1"]) == 0
    rows = [list(csv.DictReader(text.splitlines())) for text in (
        EXPECTED["train"][name]["train.csv"], Path("tuned/net_log/train.csv").read_text()
    )]  # fmt: skip
    assert float(rows[1][0]["loss"]) == pytest.approx(float(rows[0][8]["loss"]), rel=1e-4)


def test_another_solver_is_refused(runs: None, capsys: pytest.CaptureFixture) -> None:
    text = Path("sgd.prototxt").read_text()
    Path("other.prototxt").write_text(f'{text}type: "Adam"\n')
    assert main(["train", "--solver", "other.prototxt", "--resume", "sgd/net_iter_8.solverstate"]) == 1
    assert "resume with the net and the solver type that made it" in capsys.readouterr().err
    assert not Path("sgd/net_iter_12.caffemodel").exists()


# ---------------------------------------------------------------------- tests of weights

TEXTS = {"versions", "elapsed", "command", "warnings", "preprocessing", "computed"}  # for people to read


def assert_same_run(new: Path, old: Path) -> None:
    """run.json, pictures.csv and bad.txt of two runs hold the same."""
    runs = [json.loads((folder / "run.json").read_text()) for folder in (new, old)]
    assert runs[0].keys() >= runs[1].keys()
    for key in runs[1].keys() - TEXTS:
        assert_close(runs[0][key], runs[1][key], key)
    tables = [list(csv.reader((folder / "pictures.csv").read_text().splitlines())) for folder in (new, old)]
    assert tables[0][0] == tables[1][0]
    assert [row[:2] for row in tables[0]] == [row[:2] for row in tables[1]]
    assert_close(*([[number(cell) for cell in row] for row in table[1:]] for table in tables), "pictures.csv")
    bad = [(folder / "bad.txt").read_text().splitlines() for folder in (new, old)]
    assert [row.partition("\t")[0] for row in bad[0]] == [row.partition("\t")[0] for row in bad[1]]


def number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def assert_close(new: Any, old: Any, where: str) -> None:
    """Numbers nearly equal, everything else equal; ``new`` may hold more keys."""
    if isinstance(old, dict):
        for key, value in old.items():
            assert key in new, f"{where}: {key} is gone"
            assert_close(new[key], value, f"{where}.{key}")
    elif isinstance(old, list):
        assert len(new) == len(old), where
        for index, (mine, theirs) in enumerate(zip(new, old, strict=True)):
            assert_close(mine, theirs, f"{where}[{index}]")
    elif isinstance(old, float) and not math.isnan(old):
        assert new == pytest.approx(old, rel=1e-4, abs=1e-5), where
    else:
        assert new == old, where


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = copy(tmp_path, "test")
    monkeypatch.chdir(folder)
    return folder


RUNS = list(EXPECTED["test"])


def killed(name: str) -> list[str]:
    """The command that resumes a killed run."""
    return [*EXPECTED["test"][name][:-1], f"{name}_killed", "--resume"]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_test_resumes(tests: Path, name: str) -> None:
    rows = Path(f"{name}_killed/journal.csv").read_text().splitlines()[1:5]
    if name != "fast":  # whose first images are read again, to state its deviation
        for row in rows:  # Rows in the journal are not read again.
            Path("images", next(csv.reader([row]))[0]).unlink()
    assert main(killed(name)) == 0
    assert_same_run(tests / f"{name}_killed", tests / name)
    assert not Path(f"{name}_killed/journal.csv").exists()


def test_the_journal_of_other_options_is_refused(tests: Path, capsys: pytest.CaptureFixture) -> None:
    before = Path("full_killed/journal.csv").read_bytes()
    assert main([*killed("full"), "--batch-size", "5"]) == 1
    assert "the journal of another run" in capsys.readouterr().err
    assert Path("full_killed/journal.csv").read_bytes() == before


@pytest.mark.parametrize("name", RUNS)
def test_a_repeated_test_gives_the_same_and_replaces_its_own_files(tests: Path, name: str) -> None:
    old = tests / "old"
    shutil.copytree(name, old)
    assert main(EXPECTED["test"][name]) == 0
    assert_same_run(tests / name, old)


@pytest.mark.parametrize("name", list(EXPECTED["report"]))
def test_reports(tests: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    recorded = EXPECTED["report"][name]
    assert main(recorded["command"]) == 0
    page, values = Path("r.html").read_text(encoding="utf-8"), json.loads(Path("r.json").read_text())
    old = {key: value for key, value in recorded["values"].items() if key not in TEXTS}
    old["run"] = {key: value for key, value in old["run"].items() if key not in {"elapsed"}}
    assert_close(values, old, name)
    # The statements of an old run.json are shown unchanged.
    assert recorded["values"]["run"]["versions"]["torch"] in page
    assert capsys.readouterr().out.count("\n") > 5


def test_seeded_mean_scores_and_lists(tests: Path) -> None:
    assert main([*EXPECTED["partition"], "again", "--scores", "again/scores.csv"]) == 0
    for path in sorted(Path("lists").iterdir()):
        assert Path("again", path.name).read_bytes() == path.read_bytes()
    assert main(["partition", "check", "lists/train.txt", "lists/val.txt"]) == 0


# ---------------------------------------------------------------------- databases


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy(tmp_path, "test/images", "lmdb"))


def rows_of(path: str) -> Iterator[tuple[bytes, bytes]]:
    with lmdb.open(path, readonly=True, lock=False) as environment, environment.begin() as transaction:
        yield from transaction.cursor()


def left_out(path: str) -> list[list[str]]:
    """The rows of a .bad.txt, but for the reasons."""
    return [line.split("\t")[:3] for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("name", ["half", "again"])
def test_a_killed_build_resumes_and_a_new_one_gives_the_same(databases: None, name: str) -> None:
    assert (Path("half.partial") / "build.json").is_file()
    assert main([*EXPECTED["lmdb"], name]) == 0
    assert list(rows_of(name)) == list(rows_of("whole"))
    assert left_out(f"{name}.bad.txt") == left_out("whole.bad.txt")
    assert not Path(f"{name}.partial").exists()


def test_rows_that_are_stored_are_not_read_again(databases: None) -> None:
    stored = [re.sub(rb"^\d+_", b"", key).decode() for key, _ in rows_of("half.partial/db")]
    assert len(stored) == 15
    for name in stored:
        Path("../test/images", name).unlink()
    assert main([*EXPECTED["lmdb"], "half"]) == 0
    assert list(rows_of("half")) == list(rows_of("whole"))


def test_a_build_with_other_flags_is_refused(databases: None, capsys: pytest.CaptureFixture) -> None:
    before = sorted((path, path.stat().st_size) for path in Path("half.partial").rglob("*"))
    assert main([*EXPECTED["lmdb"], "half", "--gray"]) == 1
    assert "was begun with gray False, now True" in capsys.readouterr().err
    assert sorted((path, path.stat().st_size) for path in Path("half.partial").rglob("*")) == before


def test_a_database_is_checked_against_its_list(databases: None, capsys: pytest.CaptureFixture) -> None:
    check = ["lmdb", "check", "whole", "--list", "val.txt", "--labels", "2"]
    assert main([*check, "--seed", "7"]) == 0
    assert main([*check, "--seed", "8"]) == 1
