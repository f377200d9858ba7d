"""The commands as a user types them: results on stdout, one line on stderr, the exit status."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from light_commands import run_light
from places import GOLDEN, ROOT
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli import document
from ilgnet_repro.cli.main import COMMANDS, guarded, main

PIPELINE = GOLDEN / "pipeline"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with small.caffemodel, deploy.prototxt and two images, as the working folder."""
    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "deploy.prototxt").write_text(SMALL_TEXT)
    (tmp_path / "images").mkdir()
    (tmp_path / "empty").mkdir()
    for index, (height, width) in enumerate(((20, 31), (17, 12))):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), pixels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_convert(folder, capsys) -> None:
    status, out, err = run(capsys, "convert", "small.caffemodel", "--verify")
    assert (status, err) == (0, "")
    assert "small.safetensors" in out
    assert "largest difference" in out


def test_convert_json(folder, capsys) -> None:
    status, out, _ = run(
        capsys, "convert", "small.caffemodel", "--verify", "--json", "--mean-value", "104,117,123"
    )
    report = json.loads(out)
    assert status == 0
    assert report["net"] == "small"
    assert report["verified"][0]["equal"] is True
    assert report["preprocessing"]["mean_value"] == [104, 117, 123]
    assert report["preprocessing"]["size"] == [9, 7]


def test_score(folder, capsys) -> None:
    run(capsys, "convert", "small.caffemodel", "--mean-value", "104,117,123")
    status, out, _ = run(capsys, "score", "images", "--weights", "small.safetensors", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["picture"] for row in rows] == ["images/0.png", "images/1.png"]
    for row in rows:
        assert sum(row["outputs"]["prob"]) == pytest.approx(1)


def test_scores_do_not_depend_on_the_batch(folder, capsys) -> None:
    arguments = (
        "score",
        "images",
        "--weights",
        "small.caffemodel",
        "--prototxt",
        "deploy.prototxt",
        "--order",
        "RGB",
    )
    _, together, _ = run(capsys, *arguments, "--json")
    _, apart, _ = run(capsys, *arguments, "--json", "--batch", "1")
    for left, right in zip(together.splitlines(), apart.splitlines(), strict=True):
        np.testing.assert_allclose(
            json.loads(left)["outputs"]["prob"], json.loads(right)["outputs"]["prob"], rtol=1e-5, atol=1e-7
        )


def test_audit(folder, capsys) -> None:
    status, out, _ = run(capsys, "audit", "deploy.prototxt", "small.caffemodel", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["parameters"] == 4 * 27 + 4 + 5 * 24 + 5
    # Convolution: 4 x 7 x 5 outputs of 27 terms; InnerProduct: 5 of 24.
    assert found["multiply_adds"] == 4 * 7 * 5 * 27 + 5 * 24
    assert found["fit"]["matched"] == ["conv", "ip"]
    assert found["problems"] == []


def test_audit_names_every_problem_at_once(folder, capsys) -> None:
    text = SMALL_TEXT.replace('"Softmax"', '"Sofmax"').replace("num_output: 5", "num_output: 6")
    (folder / "deploy.prototxt").write_text(
        text.replace("kernel_size: 3 stride", "foo: 2 kernel_size: 3 stride")
    )
    status, out, _ = run(capsys, "audit", "deploy.prototxt", "small.caffemodel")
    assert status == 1
    assert "problem: pool (Pooling): field pooling_param.foo (line 7, column 81) is unknown" in out
    assert "problem: prob (Sofmax): layer type is unknown" in out


def test_audit_candidates(folder, capsys) -> None:
    (folder / "other.prototxt").write_text(SMALL_TEXT.replace('name: "ip"', 'name: "fc"'))
    arguments = ("audit", "small.caffemodel", "--candidates", "other.prototxt", "deploy.prototxt", "--json")
    status, out, _ = run(capsys, *arguments)
    assert (status, json.loads(out)) == (0, {"other.prototxt": "fc", "deploy.prototxt": "fits"})


REFUSED = [
    ("no weights file", ["convert", "none.caffemodel"], "ilgnet: none.caffemodel: cannot be read "),
    ("a folder", ["convert", "images"], "ilgnet: images: "),
    ("unknown format", ["convert", "small.caffemodel", "--to", "mlmodel"], "ilgnet: format 'mlmodel' is unknown; "),
    (
        "bad shape", ["audit", "deploy.prototxt", "--shape", "data=1,x"],
        "ilgnet: --shape data=1,x: write INPUT=N,C,H,W with numbers over 0, as data=1,3,227,227",
    ),
    (
        "bad mean", ["convert", "small.caffemodel", "--mean-value", "a,b"],
        "ilgnet: --mean-value a,b: write one number, or three as 104,117,123",
    ),
    (
        "preprocessing unknown", ["score", "images", "--weights", "small.caffemodel"],
        "ilgnet: net 'small': nothing says how its images are prepared; ",
    ),
    ("no images", ["score", "empty", "--weights", "small.caffemodel", "--order", "BGR"],
     "ilgnet: empty: contains no images"),
    ("no image", ["score", "deploy.prototxt", "--weights", "small.caffemodel", "--order", "BGR"],
     "ilgnet: deploy.prototxt: is a net's prototxt, not an image; give a JPEG or PNG"),
    ("no run", ["report", "none.json"],
     "ilgnet: none.json: cannot be read (No such file or directory); give a run's result"),
    ("a folder as a run", ["report", "images"], "ilgnet: images: cannot be read (Is a directory); give a run's result"),
    ("svg of no name", ["view", "deploy.prototxt", "--svg", ""], "ilgnet: --svg: is empty; give a name"),
    ("svg as png", ["view", "deploy.prototxt", "--svg", "x.PNG"],
     "ilgnet: --svg x.PNG: only SVG is written; end it in .svg, or draw the net with `ilgnet caffe draw_net`"),
    ("another backend", ["caffe", "extract_features", "small.caffemodel", "deploy.prototxt", "ip", "f", "1", "leveldb"],
     "ilgnet: DB_TYPE leveldb: only lmdb is supported; give lmdb, and convert a LevelDB with "),
    ("two prototxts", ["audit", "deploy.prototxt", "deploy.prototxt"], "ilgnet: deploy.prototxt: give one prototxt "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused_in_one_line_with_status_1(folder, capsys, arguments, message) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_file_whose_name_is_like_an_option_is_named(folder, capsys) -> None:
    (folder / "-net.caffemodel").touch()
    assert run(capsys, "convert", "-net.caffemodel") == (
        1, "", "ilgnet convert: the following arguments are required: X; -net.caffemodel is a file here: give it as "
        "./-net.caffemodel\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "meant"), [(["conver"], " (did you mean convert?);"), (["caffe", "tset"], " (did you mean test?);"),
                         (["zzz"], "'demo');")],
    ids=["a command", "an action", "nothing close"],
)  # fmt: skip
def test_the_nearest_command_is_named(typed, meant, capsys) -> None:
    status, out, err = run(capsys, *typed)
    assert (status, out) == (1, "")
    assert meant in err and err.count("\n") == 1


def test_a_wrong_option_ends_with_1_and_help_with_0(capsys) -> None:
    assert run(capsys, "convert")[0] == 1
    assert run(capsys, "--help")[0] == 0


def test_internal_errors_and_interruptions_have_separate_statuses(capsys) -> None:
    def broken() -> int:
        raise KeyError("x")

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert guarded(broken) == 3
    assert "internal error; please report it" in capsys.readouterr().err
    assert guarded(interrupted) == 130


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys; from ilgnet_repro.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'cv2', 'onnx', 'sklearn', 'scipy', 'matplotlib', 'numpy', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


DATA_COMMANDS = {
    "lmdb info": ["lmdb", "info", str(PIPELINE / "png48_lmdb")],
    "mean": ["mean", str(PIPELINE / "png48_lmdb"), "m.binaryproto"],
    "sheet --help": ["sheet", "--help"],
}


@pytest.mark.parametrize("arguments", DATA_COMMANDS.values(), ids=DATA_COMMANDS)
def test_data_commands_import_neither_torch_nor_report_modules(arguments: list[str], tmp_path: Path) -> None:
    run_light(arguments, tmp_path)


def test_every_command_is_documented_and_has_examples() -> None:
    text, made = document.PAGE.read_text(encoding="utf-8"), document.page()
    for command in COMMANDS:
        section = section_of(text, command)
        assert section == section_of(made, command), (
            "docs/commands.md is old: python -m ilgnet_repro.cli.document --write"
        )
        assert "examples:" in section, f"{command} shows no examples"


def section_of(page: str, command: str) -> str:
    """The part of docs/commands.md for one command, without the blank lines at its end."""
    return page.split(f"\n## `ilgnet {command}`\n", 1)[1].split("\n## ", 1)[0].rstrip()


@pytest.mark.parametrize("tool", sorted(path.name for path in (ROOT / "tools").glob("*.py")))
def test_tools_are_thin(tool: str) -> None:
    path = ROOT / "tools" / tool
    tree = ast.parse(path.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert all(
        name.split(".")[:2] == ["ilgnet_repro", "cli"] for name in modules if name.startswith("ilgnet")
    )
    assert len(path.read_text().splitlines()) < 30
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_score_names_the_five_best_classes(folder, capsys) -> None:
    names = ["tench", "goldfish, Carassius auratus", "great white shark", "tiger shark", "ray"]
    Path("words.txt").write_text("\ufeff" + "\n".join(names) + "\n")  # as Windows's editors write it
    arguments = (
        "score",
        "images/0.png",
        "--weights",
        "small.caffemodel",
        "--scale",
        "0.01",
        "--labels",
        "words.txt",
    )
    status, out, _ = run(capsys, *arguments, "--json")
    row = json.loads(out)
    values = row["outputs"]["prob"]
    order = np.argsort(values)[::-1]
    assert status == 0
    expected = [{"index": int(k), "label": names[k], "value": values[k]} for k in order]
    assert row["top"]["prob"] == expected
    _, out, _ = run(capsys, *arguments)
    assert out.startswith(f"images/0.png\tprob {names[order[0]]} {values[order[0]]:.6g}; {names[order[1]]} ")
    Path("words.txt").write_text("\n".join(names[:4]))  # of another net: not shown
    _, out, _ = run(capsys, *arguments)
    assert out.startswith(f"images/0.png\tprob {values[0]:.6g} {values[1]:.6g} ")
