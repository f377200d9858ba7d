"""`ilgnet compare`: every kind of file, how a mismatch is reported, and reference tools that fail."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import SMALL_TEXT, write_weights
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.cli.main import main
from ilgnet_repro.compare.comparison import BlobRow, Comparison, _row, compare_files
from ilgnet_repro.engines.onnx_engines import EXTRAS
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export import onnx_file

BLOBS = ["conv", "pool", "ip", "prob"]
CROSSCHECK = "is not installed (make crosscheck)"


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    write_weights(folder / "small.caffemodel")
    (folder / "deploy.prototxt").write_text(SMALL_TEXT)
    ir.convert(folder / "small.caffemodel", to=("safetensors", "onnx", "pt2"))
    return folder


@pytest.fixture
def files(forms: Path, tmp_path: Path) -> Path:
    """The small net in every form."""
    shutil.copytree(forms, tmp_path, dirs_exist_ok=True)
    return tmp_path


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skipif(find_spec(name) is None, reason=f"{name} {CROSSCHECK}") for name in packages]


FORMS = [
    pytest.param("small.caffemodel", BLOBS, id="caffemodel"),
    pytest.param("small.safetensors", BLOBS, id="safetensors"),
    pytest.param("small.onnx", BLOBS, id="onnx"),
    pytest.param("small.pt2", ["prob"], id="pt2"),
    pytest.param("opencv:small.caffemodel", BLOBS, id="opencv"),
    pytest.param("caffe2onnx:small.caffemodel", BLOBS, id="caffe2onnx", marks=needs("caffe2onnx")),
    pytest.param("onnx2torch:small.onnx", BLOBS, id="onnx2torch", marks=needs("onnx2torch", "torchvision")),
]


@pytest.mark.parametrize(("form", "blobs"), FORMS)
def test_every_format_agrees_with_the_caffemodel(files, monkeypatch, form: str, blobs: list[str]) -> None:
    monkeypatch.chdir(files)
    found = compare_files("small.safetensors", form)
    assert found.failed is None
    assert found.agrees
    assert [row.blob for row in found.rows] == blobs
    assert found.inputs == "seed 7: data 2x3x9x7"
    assert all(row.scale > 0 for row in found.rows)


@pytest.mark.parametrize("form", ["small.caffemodel", "small.safetensors", "small.onnx", "small.pt2"])
def test_a_kind_is_detected_by_content(files, form: str) -> None:
    for suffix in (".caffemodel", ".h5", ".safetensors", ".onnx", ".pt2", ".prototxt", ".json", ""):
        renamed = (files / form).rename(files / f"renamed{suffix}")
        assert compare_files(str(renamed), str(renamed)).agrees, suffix
        renamed.rename(files / form)


def test_in_place_values_can_be_requested(files) -> None:
    found = compare_files(str(files / "small.safetensors"), str(files / "small.onnx"), in_place=True)
    assert [row.blob for row in found.rows] == ["conv@conv", *BLOBS]
    assert found.agrees


@pytest.mark.parametrize("tool", ["opencv", pytest.param("caffe2onnx", marks=needs("caffe2onnx"))])
def test_squeezenet_agrees_with_independent_code(tool: str, tmp_path) -> None:
    text = narrow_text("squeezenet")
    net = drawn_net(text)
    blobs = {name: [blob.detach().numpy() for blob in values] for name, values in net.params.items()}
    write_caffemodel(tmp_path / "s.caffemodel", text, blobs)
    (tmp_path / "s.prototxt").write_text(format_message(text))
    np.savez(tmp_path / "x.npz", data=np.random.default_rng(2).uniform(-120, 135, (2, 3, 227, 227)))
    path = tmp_path / "s.caffemodel"
    found = compare_files(str(path), f"{tool}:{path}", inputs=tmp_path / "x.npz")
    assert found.agrees, found.failed or found.first_mismatch
    assert len(found.rows) > 30
    assert found.inputs == "x.npz"


@pytest.mark.skipif(find_spec("onnx2torch") is None, reason=f"onnx2torch {CROSSCHECK}")
def test_onnx2torch_agrees_on_googlenet(tmp_path) -> None:
    onnx.save(onnx_model("googlenet"), str(tmp_path / "i.onnx"))
    found = compare_files(str(tmp_path / "i.onnx"), f"onnx2torch:{tmp_path / 'i.onnx'}")
    assert found.agrees, found.failed or found.first_mismatch
    assert len(found.rows) > 40


def onnx_model(name: str) -> onnx.ModelProto:
    from ilgnet_repro.export.onnx_graph import build_onnx

    return build_onnx(drawn_net(narrow_text(name)))


# ---------------------------------------------------------------------- mismatches


def test_the_first_mismatch_is_named(files, capsys) -> None:
    other = files / "other"
    other.mkdir()
    net = write_weights(other / "small.caffemodel")
    net.params["ip"][1].data[3] += 50
    blobs = {name: [blob.detach().numpy() for blob in values] for name, values in net.params.items()}
    from ilgnet_repro.caffe.prototxt import parse_net

    write_caffemodel(other / "small.caffemodel", parse_net(SMALL_TEXT), blobs)
    (other / "deploy.prototxt").write_text(SMALL_TEXT)
    names = [str(files / "small.onnx"), str(other / "small.caffemodel")]
    assert main(["compare", *names]) == 1
    shown = capsys.readouterr().out
    assert "first to differ" in shown
    assert "the first is ip" in shown
    assert main(["compare", *names, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["first_mismatch"], found["parting"], found["agrees"]) == ("ip", "ip", False)
    assert [row["agrees"] for row in found["rows"]][:3] == [True, True, False]
    assert found["rows"][2]["largest"] == pytest.approx(50, rel=1e-3)
    assert main(["compare", *names, "--tolerance", "1"]) == 0


ROWS = [
    ("equal", [1.0, 2.0], [1.0, 2.0], 0.0, True),
    ("within", [1.0, 2000.0], [1.0, 2000.1], 0.1, True),
    ("over", [1.0, 2.0], [1.0, 2.01], 0.01, False),
    ("NaN on both sides", [np.nan, 2.0], [np.nan, 2.0], 0.0, True),
    ("NaN on one", [1.0, 2.0], [np.nan, 2.0], np.inf, False),
    ("the same infinity", [np.inf, 2.0], [np.inf, 2.0], 0.0, True),
    ("other infinities", [np.inf, 2.0], [-np.inf, 2.0], np.inf, False),
    ("another shape", [1.0, 2.0], [[1.0, 2.0]], np.inf, False),
]


@pytest.mark.parametrize(
    ("first", "second", "largest", "agrees"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_rows(first, second, largest, agrees) -> None:
    row = _row("b", np.array(first), np.array(second), 1e-4)
    assert row.largest == pytest.approx(largest, rel=1e-4)
    assert row.agrees is agrees


def test_without_compared_values_nets_do_not_agree() -> None:
    row = BlobRow("b", (1,), (1,), 0.0, 0.0, 1.0, True)
    assert Comparison("a", "b", "", 1e-4, (row,)).agrees
    assert not Comparison("a", "b", "", 1e-4, ()).agrees
    assert not Comparison("a", "b", "", 1e-4, (row,), failed="why").agrees


# ---------------------------------------------------------------------- failures and refusals


def test_a_reference_tool_that_fails_is_reported_as_such(folder, capsys) -> None:
    # OpenCV does not know the layer; this package does.
    text = SMALL_TEXT.replace(
        'layer { name: "prob" type: "Softmax"', 'layer { name: "prob" type: "Threshold"'
    )
    write_weights(folder / "small.caffemodel", text)
    (folder / "deploy.prototxt").write_text(text)
    path = folder / "small.caffemodel"
    assert main(["compare", str(path), f"opencv:{path}"]) == 1
    assert capsys.readouterr().out.startswith("failed: opencv:")
    assert main(["compare", str(path), f"opencv:{path}", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"].startswith("opencv:")
    assert (found["agrees"], found["rows"]) == (False, [])


def test_a_missing_reference_tool_is_reported_with_its_install_command(folder, monkeypatch) -> None:
    from ilgnet_repro.compare import reference_tools

    monkeypatch.setattr(reference_tools, "find_spec", lambda name: None)
    path = folder / "small.caffemodel"
    found = compare_files(str(path), f"caffe2onnx:{path}")
    assert "caffe2onnx is not installed; run `make crosscheck`" in found.failed
    assert not found.agrees


def test_a_file_with_external_weights(files, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "SINGLE_FILE_LIMIT", 1000)
    ir.convert(files / "small.caffemodel", to=("onnx",))
    assert (files / "small.onnx.data").exists()
    assert compare_files(str(files / "small.caffemodel"), str(files / "small.onnx")).agrees


def damage(path: Path) -> str:
    path.write_bytes(b"\x01\x02 nonsense")
    return str(path)


REFUSED = [
    ("no such file", lambda f: "none.onnx", {}, "none.onnx: no such file; give the path of a file"),
    ("a folder", str, {}, "{f}: is a folder; give the path of a file"),
    (
        "a tool without a file",
        lambda f: "opencv:",
        {},
        "opencv:: no such file; give the path of a file, or name a reference tool (opencv:FILE, caffe2onnx:FILE, ",
    ),
    (
        "an unknown kind",
        lambda f: str(f / "deploy.prototxt"),
        {},
        "deploy.prototxt: is a net's prototxt, not a net that can be compared (.caffemodel, ",
    ),
    ("damaged onnx", lambda f: damage(f / "small.onnx"), {}, "{f}/small.onnx: is not an ONNX file ("),
    (
        "damaged pt2",
        lambda f: damage(f / "small.pt2"),
        {},
        "{f}/small.pt2: cannot be read (File is not a zip file); only pt2 files as `ilgnet ",
    ),
    (
        "no array",
        lambda f: str(f / "small.onnx"),
        {"inputs": {"x": 1}},
        "{f}/x.npz: holds no array 'data'; it has x",
    ),
    (
        "words",
        lambda f: str(f / "small.onnx"),
        {"inputs": {"data": "a"}},
        "{f}/x.npz: data is <U1; give arrays of numbers",
    ),
    (
        "no npz",
        lambda f: str(f / "small.onnx"),
        {"inputs": None},
        "x.npz: is text, not an npz file; give what numpy.savez wrote",
    ),
]


@pytest.mark.parametrize(
    ("second", "options", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_cannot_be_compared_is_refused_in_one_line(files, second, options, message) -> None:
    given = {}
    if "inputs" in options:
        given["inputs"] = files / "x.npz"
        if options["inputs"]:
            np.savez(files / "x.npz", **options["inputs"])
        else:
            (files / "x.npz").write_text("nonsense")
    with pytest.raises(IlgnetError) as caught:
        compare_files(str(files / "small.safetensors"), second(files), **given)
    assert str(caught.value).startswith(message.format(f=files))
    assert "\n" not in str(caught.value)


def test_two_nets_that_do_not_match(files, tmp_path) -> None:
    text = SMALL_TEXT.replace('"data"', '"image"')
    other = tmp_path / "o.caffemodel"
    write_weights(other, text)
    (tmp_path / "o.prototxt").write_text(text)
    with pytest.raises(IlgnetError, match=r"takes data and .* takes image; their inputs must be the same"):
        compare_files(str(files / "small.safetensors"), str(other))


# ---------------------------------------------------------------------- hostile ONNX files


@pytest.mark.parametrize(
    "location",
    ["../secret", "{f}/secret", "link", "", "absent", "sub/../../secret", "*/_ORT_MEM_ADDR_/*", "a\0b", "."],
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "inner graph"])
def test_weights_that_are_not_beside_the_model_are_refused(location: str, place: str, tmp_path: Path) -> None:
    np.arange(4, dtype="f4").tofile(tmp_path / "secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    location = location.replace("{f}", str(tmp_path))
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    helper = onnx.helper
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [4])], []
    )
    if place == "initializer":
        graph.initializer.append(tensor)
    elif place == "attribute":
        graph.node.insert(0, constant)
    else:
        graph.node.append(
            helper.make_node("If", ["x"], ["z"], then_branch=helper.make_graph([constant], "t", [], []))
        )
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(IlgnetError) as caught:
        compare_files(str(path), str(path))
    shown = repr(location)
    assert str(caught.value) == f"{path}: keeps 'w' in {shown}, which is not a file beside it"


def test_onnx2torch_gets_numbers_instead_of_names(files, tmp_path) -> None:
    """Its modules have the file's names, which torch writes into code unescaped."""
    from ilgnet_repro.compare.run_onnx2torch import rename
    from ilgnet_repro.runtime.onnx_net import open_session

    model = onnx.load(str(files / "small.onnx"))
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 7), np.float32)
    expected = open_session(model.SerializeToString()).run(None, {"data": x})[0]
    for node in model.graph.node:
        node.name += '"); open("PWNED", "w")'
    renamed = rename(model.graph)
    names = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    assert all(name.isidentifier() for name in names | {entry.name for entry in model.graph.initializer})
    assert len(set(renamed.values())) == len(renamed)
    found = open_session(model.SerializeToString()).run([renamed["prob"]], {renamed["data"]: x})[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("engine", ["torch", *(name for name in EXTRAS if find_spec(name))])
def test_the_second_in_an_engine(files, monkeypatch, capsys, engine: str) -> None:
    monkeypatch.chdir(files)
    assert main(["compare", "small.caffemodel", "small.safetensors", "--engine", engine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["blob"] for row in found["rows"]] == BLOBS


def test_an_engine_goes_with_caffe_weights(files, monkeypatch, capsys) -> None:
    monkeypatch.chdir(files)
    assert main(["compare", "small.caffemodel", "small.onnx", "--engine", "torch"]) == 1
    assert capsys.readouterr().err == (
        "ilgnet: --engine torch: goes with Caffe weights, which small.onnx is not; leave it out\n"
    )


def test_a_device_goes_with_an_engine(files) -> None:
    net = str(files / "small.caffemodel")
    with pytest.raises(IlgnetError, match=r"^device='cuda': goes with engine=; give one$"):
        compare_files(net, net, device="cuda")
