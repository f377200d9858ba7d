"""Every command takes any file that holds a net; options that do not apply are refused by flag."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_nets import SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.cli import convert as command
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.preprocessing import Preprocessing

HELD = ("net.caffemodel", "net.caffemodel.h5", "net.safetensors")
RUN = (*HELD, "net.onnx", "net.pt2")
TRAIN = """
name: "small"
layer { name: "in" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 2 dim: 3 dim: 9 dim: 7 } shape { dim: 2 } data_filler { type: "constant" value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "new" type: "InnerProduct" bottom: "conv" top: "new" inner_product_param {
  num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "new" bottom: "label" top: "loss" }
"""
SOLVER = 'net: "train.prototxt"\nbase_lr: 0\nlr_policy: "fixed"\nmax_iter: 1\nsnapshot_prefix: "s"\nsolver_mode: CPU\n'
STAGED = """
name: "staged"
layer { name: "rows" type: "Data" top: "data" top: "label" data_param { source: "db" batch_size: 4 backend: LMDB }
        exclude { stage: "deploy" } }
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } }
        include { stage: "deploy" min_level: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" exclude { stage: "deploy" } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" include { stage: "deploy" phase: TEST } }
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_weights(folder / "net.caffemodel")
    (folder / "net.prototxt").write_text(SMALL_TEXT)
    ir.convert(
        folder / "net.caffemodel", to=("safetensors", "onnx", "pt2", "hdf5", "python"), out=folder / "o"
    )
    for path in (folder / "o").iterdir():
        shutil.move(path, folder / path.name)
    (folder / "o").rmdir()
    rng = np.random.default_rng(2)
    for name, size in {"a.png": (20, 31, 3), "b.png": (9, 7, 3), "c.png": (40, 25, 3)}.items():
        cv2.imwrite(str(folder / name), rng.integers(0, 256, size, np.uint8))
    (folder / "train.prototxt").write_text(TRAIN)
    (folder / "solver.prototxt").write_text(SOLVER)
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def refused(capsys, *arguments: str) -> str:
    """The single line of a refusal that leaves no file."""
    before = files()
    assert main([*arguments]) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("ilgnet: ")]
    assert len(lines) == 1 and "Traceback" not in err and files() == before
    return lines[0].removeprefix("ilgnet: ")


# ---------------------------------------------------------------------- accepted files


@pytest.mark.parametrize("name", RUN)
def test_score(name: str, capsys) -> None:
    capsys.readouterr()
    assert main(["score", "a.png", "b.png", "--weights", name, "--scale", "0.01", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [["picture", "high_quality", "value", "outputs"]] * 2
    expected = ir.score(["a.png", "b.png"], "net.caffemodel", preprocessing=_scaled())
    for row, one in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["outputs"]["prob"], one.outputs["prob"], atol=1e-6)


def _scaled() -> Preprocessing:
    return Preprocessing(size=(9, 7), scale=0.01)


@pytest.mark.parametrize("name", HELD)
def test_convert_and_audit(name: str, capsys) -> None:
    assert main(["audit", name]) == 0
    assert "2 layers fit, 0 missing, 0 misshapen" in capsys.readouterr().out
    formats = "safetensors,onnx,pt2,python,caffemodel,hdf5"
    assert main(["convert", name, "--to", formats, "--out", "deep/out", "--verify"]) == 0
    for written in ("net.caffemodel", "net.caffemodel.h5", "net.onnx"):
        assert main(["compare", f"deep/out/{written}", "net.caffemodel"]) == 0


def test_audit_needs_no_prototxt_beside_a_safetensors_file(capsys) -> None:
    Path("net.prototxt").unlink()
    assert main(["audit", "net.safetensors"]) == 0
    assert "refused" not in capsys.readouterr().err


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("caffe", [False, True], ids=["train", "caffe train"])
def test_training_starts_from_any_weights(name: str, caffe: bool, capsys) -> None:
    arguments = ["caffe", "train", "-solver"] if caffe else ["train", "--solver"]
    assert main([*arguments, "solver.prototxt", "--weights", name]) == 0
    trained = ir.load("s_iter_1.caffemodel", "train.prototxt", phase="TRAIN")
    np.testing.assert_array_equal(
        trained.params["conv"][0].detach(), ir.load(name).params["conv"][0].detach()
    )


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("action", ["test", "time"])
def test_caffe_test_and_time(name: str, action: str, capsys) -> None:
    arguments = ["-model", "train.prototxt", "-weights", name, "-iterations", "1", "-allow-missing", "new"]
    assert main(["caffe", action, *arguments]) == 0


@pytest.mark.parametrize("first", RUN)
@pytest.mark.parametrize("second", RUN)
def test_compare_any_pair(first: str, second: str) -> None:
    assert main(["compare", first, second]) == 0


def test_an_onnx_file_that_prepares_images_takes_several_sizes(capsys) -> None:
    options = ["--to", "onnx", "--with-preprocessing", "--mean-value", "104,117,123", "--out", "prepared"]
    assert main(["convert", "net.caffemodel", *options]) == 0
    capsys.readouterr()
    assert main(["score", "a.png", "b.png", "c.png", "--weights", "prepared/net.onnx"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def write_other(path: str, shape: list[int | str] | None) -> None:
    """A model as another tool writes it: channel means, then a dense layer."""
    weights = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), helper.make_node("MatMul", ["m", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0] if shape else "N", 2])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


@pytest.mark.parametrize("batch", ["N", 1, 2], ids=["any batch", "one at a time", "two at a time"])
def test_an_onnx_file_of_another_tool(batch: int | str, capsys) -> None:
    write_other("other.onnx", [batch, 3, 8, 6])
    assert (
        main(["score", "a.png", "b.png", "c.png", "--weights", "other.onnx", "--mean-value", "9", "--json"])
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    weights = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)
    for row, name in zip(rows, ("a.png", "b.png", "c.png"), strict=True):
        image = cv2.resize(cv2.imread(name), (6, 8)).astype(np.float64) - 9
        np.testing.assert_allclose(row["outputs"]["y"], image.mean((0, 1)) @ weights, rtol=0.02, atol=0.5)


OTHERS = {
    "no size": (["N", 3, "H", "W"], [], "--size is missing: the net does not say the size of its images"),
    "another size": (
        [1, 3, 8, 6],
        ["--size", "8"],
        "other.onnx: input 'x' takes 1x3x8x6, and is given 1x3x8x8; give it in that shape",
    ),
    "grey": (
        ["N", 1, 8, 6],
        ["--order", "BGR"],
        "--order BGR: the net takes images of 1 channel; leave it out",
    ),
}


@pytest.mark.parametrize(("shape", "options", "message"), OTHERS.values(), ids=OTHERS)
def test_an_onnx_file_that_images_do_not_fit(shape, options, message, capsys) -> None:
    if shape[1] == 1:
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), "other.onnx"
        )
    else:
        write_other("other.onnx", shape)
    assert (
        refused(capsys, "score", "a.png", "--weights", "other.onnx", "--mean-value", "9", *options) == message
    )


# ---------------------------------------------------------------------- refusals

ORIGINAL = "give the .caffemodel, .caffemodel.h5 or .safetensors file that it was made from"
PROGRAM = "is an exported PyTorch program (.pt2)"
REFUSED = {
    "convert onnx": (["convert", "net.onnx"], f"net.onnx: is an ONNX model, not Caffe weights; {ORIGINAL}"),
    "convert pt2": (["convert", "net.pt2"], f"net.pt2: {PROGRAM}, not Caffe weights; {ORIGINAL}"),
    "convert python": (["convert", "net.py"], f"net.py: is Python source, not Caffe weights; {ORIGINAL}"),
    "audit onnx": (["audit", "net.onnx"], f"net.onnx: is an ONNX model, not weights; {ORIGINAL}"),
    "train onnx": (
        ["train", "--solver", "solver.prototxt", "--weights", "net.onnx"],
        f"net.onnx: is an ONNX model, not weights; {ORIGINAL}",
    ),
    "score python": (
        ["score", "a.png", "--weights", "net.py"],
        f"net.py: is Python source, not a net with its weights; {ORIGINAL}",
    ),
    "fast onnx": (
        ["score", "a.png", "--weights", "net.onnx", "--scale", "1", "--fast"],
        "--fast: net.onnx is run by ONNX Runtime, which optimizes it itself; omit it",
    ),
    **{
        f"onnx {flag}": (
            ["score", "a.png", "--weights", "net.onnx", flag, value],
            f"net.onnx: is an ONNX model, to which {flag} does not apply; leave it out",
        )
        for flag, value in {
            "--crop": "bvlc", "--prototxt": "net.prototxt", "--allow-missing": "ip", "--stage": "deploy", "--level": "1",
        }.items()
    },
    "pt2 --crop": (
        ["score", "a.png", "--weights", "net.pt2", "--crop", "bvlc"],
        "net.pt2: is an exported PyTorch program (.pt2), to which --crop does not apply; leave it out",
    ),
    "safetensors --allow-missing": (
        ["score", "a.png", "--weights", "net.safetensors", "--allow-missing", "ip"],
        "net.safetensors: holds its own net, to which --allow-missing does not apply; leave it out, or give a prototxt",
    ),
    "safetensors --ignore-field": (
        ["convert", "net.safetensors", "--to", "onnx", "--ignore-field", "x.y", "--out", "o"],
        "net.safetensors: holds its own net, to which --ignore-field does not apply; leave it out, or give a prototxt",
    ),
    "compare --prototxt": (
        ["compare", "net.onnx", "net.pt2", "--prototxt", "net.prototxt"],
        "net.onnx and net.pt2: neither is Caffe weights, so --prototxt does not apply; leave it out",
    ),
    "compare --stage": (
        ["compare", "net.onnx", "net.pt2", "--stage", "deploy"],
        "net.onnx and net.pt2: neither is Caffe weights, so --stage does not apply; leave it out",
    ),
    "convert prototxt weights": (
        ["convert", "net.prototxt", "net.caffemodel", "--out", "o"],
        "net.prototxt: is a net's prototxt, not weights; give it as --prototxt, after the weights file",
    ),
    "convert weights prototxt": (
        ["convert", "net.caffemodel", "net.prototxt", "--out", "o"],
        "net.prototxt: is a net's prototxt, not weights; give it as --prototxt, after the weights file",
    ),
    "weights as prototxt": (
        ["convert", "net.caffemodel", "--prototxt", "net.caffemodel", "--out", "o"],
        "net.caffemodel: is a Caffe weights file (.caffemodel), not a net's prototxt; give the net's text as --prototxt "
        "and this file as the weights; the arguments may be swapped",
    ),
    "list and folder swapped": (
        ["lmdb", "make", "solver.prototxt", ".", "o"],
        "solver.prototxt is a file and . a folder; give the folder of images first, then the list",
    ),
    "safetensors as prototxt": (
        ["convert", "net.caffemodel", "--prototxt", "net.safetensors", "--out", "o"],
        "net.safetensors: is a safetensors file, not a net's prototxt; give it as the weights: it contains its own net",
    ),
    "solver as prototxt": (
        ["convert", "net.caffemodel", "--prototxt", "solver.prototxt", "--out", "o"],
        "solver.prototxt: is a solver's prototxt, not a net's prototxt; give the file that its `net` or `train_net` names",
    ),
    "solver as weights": (
        ["convert", "solver.prototxt", "--out", "o"],
        "solver.prototxt: is a solver's prototxt, not Caffe weights; give the weights file here, not the solver",
    ),
    "solver audited": (
        ["audit", "net.prototxt", "solver.prototxt"],
        "solver.prototxt: is a solver's prototxt, not a net's prototxt; give the file that its `net` or `train_net` names",
    ),
    "audit candidates": (
        ["audit", "net.caffemodel", "net.prototxt", "--candidates", "net.prototxt"],
        "net.prototxt: give it with --candidates too",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(arguments: list[str], message: str, capsys) -> None:
    assert refused(capsys, *arguments) == message


def test_audit_takes_its_files_in_any_order(capsys) -> None:
    shown = []
    for files_ in (["net.prototxt", "net.caffemodel"], ["net.caffemodel", "net.prototxt"]):
        assert main(["audit", *files_]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_candidates_are_compared_with_a_safetensors_file_too(capsys) -> None:
    Path("staged.prototxt").write_text(STAGED)
    assert main(["audit", "net.safetensors", "--candidates", "net.prototxt", "staged.prototxt"]) == 0
    assert re.search(r"^net\.prototxt: fits$", capsys.readouterr().out, re.MULTILINE)


# ---------------------------------------------------------------------- stages and levels


def test_a_net_of_a_stage_keeps_it_in_every_format(capsys) -> None:
    Path("staged").mkdir()
    Path("staged/x.prototxt").write_text(STAGED)
    deploy = ir.load_net("staged/x.prototxt", stages=["deploy"], level=2, seed=3)
    ir.save(deploy, "given.caffemodel")
    shutil.move("given.caffemodel", "staged/x.caffemodel")
    chosen = ["--stage", "deploy", "--level", "2"]
    formats = "safetensors,onnx,pt2,python,caffemodel,hdf5"
    assert main(["convert", "staged/x.caffemodel", *chosen, "--to", formats, "--out", "o", "--verify"]) == 0
    x = np.random.default_rng(5).standard_normal((1, 3, 9, 7)).astype(np.float32)
    expected = deploy(data=x)["prob"].detach().numpy()
    for name in ("x.safetensors", "x.caffemodel", "x.caffemodel.h5", "x.onnx", "x.pt2"):
        net = ir.load(f"o/{name}")
        assert net.outputs == ("prob",)
        np.testing.assert_allclose(net(data=x)["prob"].detach().numpy(), expected, atol=1e-6)
    assert "deploy" not in Path("o/x.prototxt").read_text()
    assert main(["audit", "staged/x.prototxt", *chosen]) == 0
    assert main(["score", "a.png", "--weights", "staged/x.caffemodel", "--scale", "1", *chosen]) == 0
    assert main(["compare", "staged/x.caffemodel", "o/x.onnx", *chosen]) == 0
    assert main(["audit", "staged/x.prototxt", "--stage", "deploy"]) == 1  # no input at level 0


# ---------------------------------------------------------------------- many files


def test_a_folder_is_taken_with_its_subfolders(capsys) -> None:
    for place in ("zoo", "zoo/a", "zoo/a/b", "zoo/.hidden"):
        Path(place).mkdir()
        shutil.copy("net.prototxt", place)
    shutil.copy("net.caffemodel", "zoo/one.caffemodel")
    shutil.copy("net.caffemodel", "zoo/a/net.bin")  # recognized by content
    shutil.copy("net.caffemodel.h5", "zoo/a/b/net.caffemodel.h5")
    shutil.copy("net.caffemodel", "zoo/.hidden/net.caffemodel")
    Path("zoo/a/page.caffemodel").write_text("<!DOCTYPE html><html></html>")
    Path("zoo/one.prototxt").write_text(SMALL_TEXT)
    assert main(["convert", "zoo", "--to", "onnx", "--out", "o/p", "--json"]) == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [(row["file"], row["error"] is None) for row in rows] == [
        ("zoo/one.caffemodel", True), ("zoo/a/net.bin", True), ("zoo/a/page.caffemodel", False),
        ("zoo/a/b/net.caffemodel.h5", True),
    ]  # fmt: skip
    assert rows[2]["error"].startswith(
        "page.caffemodel: is a web page (HTML), not Caffe weights; download the file"
    )
    written = sorted(str(path) for path in Path("o").rglob("*.onnx"))
    assert written == ["o/p/a/b/net.onnx", "o/p/a/net.onnx", "o/p/one.onnx"]
    assert "zoo: 4 weights files found, 4 other files ignored" in err.splitlines()
    assert "3 of 4: zoo/a/page.caffemodel" in err.splitlines()


def test_a_folder_without_weights(capsys) -> None:
    Path("empty").mkdir()
    Path("empty/x.prototxt").write_text(SMALL_TEXT)
    message = "empty: no Caffe weights among its 1 files; name the files to convert"
    assert refused(capsys, "convert", "empty", "--out", "o") == message


def test_results_of_the_same_name(capsys) -> None:
    Path("a").mkdir()
    Path("b").mkdir()
    for place in ("a", "b"):
        shutil.copy("net.prototxt", place)
    Path("a/net.caffemodel").write_text("{}")  # it fails, so its name stays free
    shutil.copy("net.caffemodel", "b")
    arguments = [
        "convert",
        "a/net.caffemodel",
        "b/net.caffemodel",
        "net.caffemodel",
        "--to",
        "onnx",
        "--out",
        "o",
    ]
    assert main([*arguments, "--json"]) == 1
    errors = [row["error"] for row in json.loads(capsys.readouterr().out)]
    assert errors[1] is None and errors[0].startswith("net.caffemodel: is a JSON page")
    assert errors[2] == (
        "net.caffemodel: its results would replace those of b/net.caffemodel, which has the same name; convert it separately"
    )


def test_a_result_never_replaces_another_of_the_files(capsys) -> None:
    Path("a").mkdir()
    for name in ("net.caffemodel", "net.prototxt"):
        shutil.copy(name, f"a/{name}")
    before = Path("net.caffemodel").read_bytes()
    assert (
        main(["convert", "a/net.caffemodel", "net.caffemodel", "--to", "caffemodel", "--out", ".", "--json"])
        == 1
    )
    errors = [row["error"] for row in json.loads(capsys.readouterr().out)]
    assert (
        errors[0]
        == "a/net.caffemodel: its result net.caffemodel would replace another of the files; give another --out"
    )
    assert errors[1] is not None and Path("net.caffemodel").read_bytes() == before


def test_the_table_of_many_files(capsys) -> None:
    shutil.copy("net.prototxt", "deploy.prototxt")
    shutil.copy("net.caffemodel", "other.caffemodel")
    Path("bad.caffemodel").write_bytes(b"")
    assert (
        main(
            ["convert", "other.caffemodel", "bad.caffemodel", "net.caffemodel", "--to", "onnx", "--out", "o"]
        )
        == 1
    )
    out, err = capsys.readouterr()
    assert out.startswith("2 of 3 files converted")
    assert "bad.caffemodel: the file is empty; fetch it again" in out
    assert "ilgnet: bad.caffemodel: the file is empty; fetch it again" in err.splitlines()
    assert sorted(path.name for path in Path("o").iterdir()) == ["net.onnx", "other.onnx"]


def test_an_interrupted_conversion_keeps_what_is_finished(monkeypatch, capsys) -> None:
    shutil.copy("net.caffemodel", "other.caffemodel")
    shutil.copy("net.prototxt", "other.prototxt")
    convert = command._convert

    def interrupted(args, source):
        if source.path.name == "other.caffemodel":
            raise KeyboardInterrupt
        return convert(args, source)

    monkeypatch.setattr(command, "_convert", interrupted)
    assert main(["convert", "net.caffemodel", "other.caffemodel", "--to", "onnx", "--out", "o"]) == 130
    err = capsys.readouterr().err.splitlines()
    assert err[-2:] == [
        "stopped at other.caffemodel: 1 of 2 files were converted and are kept",
        "ilgnet: interrupted",
    ]
    assert [path.name for path in Path("o").iterdir()] == ["net.onnx"]


def test_an_option_that_no_format_has_is_refused_before_the_first_file(capsys) -> None:
    message = "format 'tensorrt' is unknown; use safetensors, onnx, pt2, python, caffemodel, hdf5, openvino, tflite, coreml"
    assert (
        refused(capsys, "convert", "net.caffemodel", "net.safetensors", "--to", "tensorrt", "--out", "o")
        == message
    )


# ---------------------------------------------------------------------- kinds and suffixes

KINDS: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a Git-LFS pointer"),
    "html": (b"<!DOCTYPE html><html></html>", "is a web page (HTML)"),
    "json": (b'{"message": "Not Found"}', "is a JSON page"),
    "zip": (b"PK\x05\x06" + bytes(18), "is a zip archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "is a gzip archive"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "is a PNG image"),
    "solver": (SOLVER.encode(), "is a solver's prototxt"),
    "state": (bytes([8, 3, 18, 1, 97, 26, 0]), "is a solver state (.solverstate)"),
    "mean": (bytes([8, 1, 16, 1, 24, 1, 32, 2, 42, 8]) + bytes(8), "is a mean file (.binaryproto)"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML page"),
    "tar": (b"net.caffemodel".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "is a tar archive"),
    "bzip2": (b"BZh91AY&SY\0\0", "is a bzip2 archive"),
    "xz": (b"\xfd7zXZ\0\0\4", "is an xz archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive"),
    "rar": (b"Rar!\x1a\x07\x01\0", "is a RAR archive"),
    "pickle": (b"\x80\x02}q\0.", "is a Python pickle"),
}
SUFFIXES = (".caffemodel", ".caffemodel.h5", ".safetensors", ".onnx", ".pt2", ".bin")
GIVEN = {
    "convert": ["convert", "FILE", "--out", "o/p"],
    "score": ["score", "a.png", "--weights", "FILE", "--scale", "1"],
    "compare": ["compare", "net.caffemodel", "FILE"],
    "audit": ["audit", "FILE"],
    "train": ["train", "--solver", "solver.prototxt", "--weights", "FILE"],
    "caffe train": ["caffe", "train", "-solver", "solver.prototxt", "-weights", "FILE"],
    "prototxt": ["convert", "net.caffemodel", "--prototxt", "FILE", "--out", "o/p"],
    "mean file": ["convert", "net.caffemodel", "--mean-file", "FILE", "--out", "o/p"],
    "snapshot": ["caffe", "train", "-solver", "solver.prototxt", "-snapshot", "FILE"],
}
# Places of files that have no suffix of their own, or one that readers do not look at.
GIVEN_ONCE = {
    "solver": ["train", "--solver", "FILE"],
    "caffe solver": ["caffe", "train", "-solver", "FILE"],
    "resume": ["train", "--solver", "solver.prototxt", "--resume", "FILE"],
    "model": ["caffe", "test", "-model", "FILE", "-weights", "net.caffemodel"],
    "time": ["caffe", "time", "-model", "FILE"],
    "audit with weights": ["audit", "net.caffemodel", "FILE"],
    "image": ["score", "FILE", "--weights", "net.caffemodel", "--scale", "1"],
    "labels": ["score", "a.png", "--weights", "net.caffemodel", "--scale", "1", "--labels", "FILE"],
    "inputs": ["compare", "net.caffemodel", "net.onnx", "--inputs", "FILE"],
    "arrays": ["caffe", "test", "-model", "net.prototxt", "-weights", "net.caffemodel", "-arrays", "FILE"],
    "list": ["lmdb", "make", "images/", "FILE", "new_lmdb"],
    "shuffled list": ["lmdb", "make", "--shuffle", "images/", "FILE", "new_lmdb"],
    "database": ["lmdb", "info", "FILE"],
    "mean of a database": ["mean", "FILE"],
    "sheet": ["sheet", "FILE", "--out", "page.html"],
}
TAKEN = {("mean", "mean file"), ("state", "snapshot"), ("state", "resume"), ("mean", "mean of a database"),
         ("solver", "solver"), ("solver", "caffe solver")}  # fmt: skip


@pytest.mark.parametrize("given", [*GIVEN, *GIVEN_ONCE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_named_whatever_its_suffix(kind: str, given: str, capsys) -> None:
    if (kind, given) in TAKEN or (kind, given) == ("png", "image"):
        return
    data, named = KINDS[kind]
    arguments = GIVEN.get(given) or GIVEN_ONCE[given]
    for suffix in SUFFIXES if given in GIVEN else (".bin",):
        Path(f"x{suffix}").write_bytes(data)
        message = refused(capsys, *(f"x{suffix}" if part == "FILE" else part for part in arguments))
        assert message.startswith(f"x{suffix}: {named}"), suffix
    Path("x.bin").write_bytes(data)
    with pytest.raises(IlgnetError, match=re.escape(f"x.bin: {named}")):
        ir.load("x.bin")


@pytest.mark.parametrize(("kind", "named"), [(kind, named) for kind, (_, named) in KINDS.items()], ids=KINDS)
def test_a_file_that_a_net_names_is_named_too(kind: str, named: str, capsys) -> None:
    for layer in (
        'type: "Data" data_param { source: "x.bin" batch_size: 2 backend: LMDB }',
        'type: "ImageData" image_data_param { source: "x.bin" batch_size: 2 }',
        'type: "HDF5Data" hdf5_data_param { source: "x.bin" batch_size: 2 }',
    ):
        text = TRAIN.replace(
            TRAIN[TRAIN.index('type: "DummyData"') : TRAIN.index('layer { name: "conv"')],
            f'{layer} top: "data" top: "label" }}\n',
        )
        Path("named.prototxt").write_text(text)
        Path("named_solver.prototxt").write_text(SOLVER.replace("train.prototxt", "named.prototxt"))
        Path("x.bin").write_bytes(KINDS[kind][0])
        message = refused(capsys, "caffe", "train", "-solver", "named_solver.prototxt")
        assert message.startswith(f"x.bin: {named}"), layer


@pytest.mark.parametrize("name", RUN)
def test_a_net_is_loaded_under_any_suffix(name: str) -> None:
    for suffix in (*SUFFIXES, ".prototxt"):
        shutil.copy(name, f"y{suffix}")
        prototxt = "net.prototxt" if name in HELD[:2] else None
        assert ir.load(f"y{suffix}", prototxt).outputs == ("prob",)
        Path(f"y{suffix}").unlink()
