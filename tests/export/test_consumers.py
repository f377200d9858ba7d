"""Consumers in processes of their own: `verify=CONSUMER`, the format openvino, and how a consumer fails."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from golden_cases import read_case
from small_nets import SMALL_TEXT, net_of, write_weights

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export import consumers, verify
from ilgnet_repro.export.consumers import Job, run_consumer
from ilgnet_repro.export.onnx_graph import build_onnx

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.mark.parametrize(
    "consumer",
    ["onnxruntime,opencv", pytest.param("openvino", marks=needs_openvino)],
)
def test_consumers_run_what_is_written(folder, consumer: str) -> None:
    report = ir.convert(folder / "small.caffemodel", to=("safetensors", "onnx"), verify=consumer)
    assert [check.is_equal for check in report.verified] == [True] * (2 + len(consumer.split(",")))
    for name, check in zip(consumer.split(","), report.verified[2:], strict=True):
        assert check.file.startswith(f"small.onnx in {name} ")
        assert (check.blob, check.inputs) == ("prob", "seed 7: data 2x3x9x7")


COMMANDS = [
    ("before a file", ["--verify", "small.caffemodel"], 1),
    ("alone at the end", ["small.caffemodel", "--verify"], 1),
    ("before an option", ["--verify", "--fold", "small.caffemodel"], 1),
    ("a consumer", ["--verify", "onnxruntime", "small.caffemodel"], 2),
    ("a consumer at the end", ["small.caffemodel", "--verify", "onnxruntime"], 2),
    ("with an equals sign", ["--verify=onnxruntime", "small.caffemodel"], 2),
]


@pytest.mark.parametrize(("words", "checks"), [row[1:] for row in COMMANDS], ids=[row[0] for row in COMMANDS])
def test_the_command_takes_a_consumer_or_none(
    folder, monkeypatch, capsys, words: list[str], checks: int
) -> None:
    import json

    monkeypatch.chdir(folder)
    assert main(["convert", *words, "--to", "onnx", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["verified"]) == checks


DATA = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 4 dim: 5 dim: 6 } } }\n'
# OpenCV 4.14 and 5.0 read other values than those of axes that are not spatial, unless these come one by one.
REDUCTIONS = {
    "statistics of the batch": 'type: "BatchNorm" batch_norm_param { use_global_stats: false }',
    "a norm of the whole image": 'type: "Normalize" norm_param { scale_filler { value: 3 } }',
    "a norm of the channels": 'type: "Normalize" norm_param { across_spatial: false scale_filler { value: 3 } }',
    "means over maps": 'type: "MVN"',
    "LRN with k": 'type: "LRN" lrn_param { local_size: 3 alpha: 0.3 k: 2 }',
}


def test_opencv_computes_what_the_net_does(tmp_path) -> None:
    jobs, expected = [], []
    for name, layer in REDUCTIONS.items():
        net = net_of(DATA + f'layer {{ name: "y" bottom: "x" top: "y" {layer} }}')
        given = verify.seeded_inputs(net)
        with torch.no_grad():
            expected.append(net(given))
        onnx.save(build_onnx(net), str(tmp_path / f"{name}.onnx"))
        jobs.append(Job(tmp_path / f"{name}.onnx", {"x": given["x"].numpy()}, ["y"]))
    for job, outputs, ran in zip(jobs, expected, run_consumer("opencv", jobs), strict=True):
        assert verify.compare(job.model, outputs, ran.outputs or {}, "").is_equal, (
            job.model.name,
            ran.failed,
        )


def _returns(value: str) -> str:
    """A consumer that returns that value of `x`, an expression."""
    return (
        "import sys, runpy\n"
        f"run = runpy.run_path({str(consumers.SCRIPT)!r})\n"
        "def other(model, inputs, wanted):\n"
        "    x = inputs['x']\n"
        f"    return '1.0', {{name: {value} for name in wanted}}\n"
        "run['CONSUMERS']['opencv'] = other\n"
        "run['main'](*sys.argv[1:])\n"
    )


OTHERWISE = {
    "other values": ('type: "ReLU"', "x * 2", "by "),
    "OpenCV's Deconvolution": (
        'type: "Deconvolution" convolution_param { num_output: 2 kernel_size: 3 dilation: 2 }', None,
        "in its shape, [3, 2, 7, 8] for [3, 2, 9, 10]; ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "value", "how"), OTHERWISE.values(), ids=OTHERWISE)
def test_a_consumer_that_computes_something_else_is_refused(tmp_path, monkeypatch, layer, value, how) -> None:
    """OpenCV 4.14 ignores the dilation of a Deconvolution."""
    if value is not None:
        (tmp_path / "script.py").write_text(_returns(value))
        monkeypatch.setattr(consumers, "SCRIPT", tmp_path / "script.py")
    elif cv2.__version__ >= "5":
        pytest.skip("OpenCV 5 reads the dilation")
    text = DATA + f'layer {{ name: "y" bottom: "x" top: "y" {layer} }}'
    (tmp_path / "b.prototxt").write_text(text)
    write_weights(tmp_path / "b.caffemodel", text)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IlgnetError) as caught:
        ir.convert(tmp_path / "b.caffemodel", to="onnx", verify="opencv")
    assert str(caught.value).startswith("b.onnx: opencv ")
    assert f"computes output 'y' otherwise than the net, {how}" in str(caught.value)
    assert caught.value.remedy == "choose another consumer, or leave it out"
    assert sorted(tmp_path.iterdir()) == before


X = np.float32([[1, -2, 3], [4, 5, 6]])
OF_ANOTHER_KIND = {
    "fewer rows": ({"y": X[:1]}, "in its shape, [1, 3] for [2, 3]"),
    "no rows": ({"y": X[:0]}, "in its shape, [0, 3] for [2, 3]"),
    "an axis more": ({"y": X[None]}, "in its shape, [1, 2, 3] for [2, 3]"),
    "another type": ({"y": X.astype("f8")}, "in its type, float64 for float32"),
    "another name": ({"x": X}, "it returns none of that name"),
    "no numbers": ({"y": X * np.nan}, "in its shape or in which of its values are finite"),
}


@pytest.mark.parametrize(("found", "how"), OF_ANOTHER_KIND.values(), ids=OF_ANOTHER_KIND)
def test_outputs_of_another_kind_are_refused(monkeypatch, found, how: str) -> None:
    def compare(outputs: dict[str, np.ndarray]) -> verify.Verification:
        monkeypatch.setattr(verify, "run_consumer", lambda *given: [consumers.Ran("1.0", outputs)])
        return verify.compare_in_consumer("onnxslim", Path("n.onnx"), {}, {"y": torch.from_numpy(X)})

    assert compare({"y": X}).is_equal
    with pytest.raises(IlgnetError) as caught:
        compare(found)
    assert str(caught.value) == (
        f"n.onnx: onnxslim 1.0 computes output 'y' otherwise than the net, {how}; nothing was written; choose another "
        "consumer, or leave it out"
    )


CHANGES = {
    "nothing": ("", ""),
    "no input": ("del graph.input[:]", "SystemExit: it leaves out input x"),
    "another output": ("graph.output[0].name = 'z'", "SystemExit: it leaves out output y"),
    "one more": ("graph.input.add().name = 'z'", "SystemExit: it adds input z"),
    "a type": ("tensor.elem_type = 11", "SystemExit: it changes the type of input x"),
    "a fixed batch": (
        "tensor.shape.dim[0].dim_value = 1",
        "SystemExit: it changes the lengths of input x, ['open', 4], to [1, 4]",
    ),
}


def test_a_tool_that_changes_inputs_or_outputs_is_refused(tmp_path, monkeypatch) -> None:
    """onnxslim 0.1.98 removes inputs of which only the shape is read."""
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }\n'
    net = net_of(text + 'layer { name: "y" type: "ReLU" bottom: "x" top: "y" }')
    for name in CHANGES:
        onnx.save(build_onnx(net), str(tmp_path / f"{name}.onnx"))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, runpy, types\n"
        f"run = runpy.run_path({str(consumers.SCRIPT)!r})\n"
        f"changes = iter({[change for change, _ in CHANGES.values()]!r})\n"
        "def slim(model):\n"
        "    graph, tensor = model.graph, model.graph.input[0].type.tensor_type\n"
        "    exec(next(changes))\n"
        "    return model\n"
        "sys.modules['onnxslim'] = types.SimpleNamespace(slim=slim, __version__='1.0')\n"
        "run['main'](*sys.argv[1:])\n"
    )
    monkeypatch.setattr(consumers, "SCRIPT", script)
    jobs = [Job(tmp_path / f"{name}.onnx", {"x": np.ones((2, 4), "f")}, ["y"]) for name in CHANGES]
    assert [one.failed for one in run_consumer("onnxslim", jobs)] == [
        failed for _, failed in CHANGES.values()
    ]


def test_a_missing_detection_is_decided_by_values(tmp_path) -> None:
    """onnxslim 0.1.98 takes no length that it does not know for 0, and drops what depends on that."""
    net = read_case("Yolov3DetectionOutput-empty_batch").net(tmp_path)
    nodes = {name: node for node in build_onnx(net).graph.node for name in node.output}
    (chosen,) = [node for node in nodes.values() if node.op_type == "Where"]
    read = [chosen.input[0]]
    while read[-1] in nodes:
        assert nodes[read[-1]].op_type != "Shape"
        read.append(nodes[read[-1]].input[0])


REFUSED = [
    ("unknown", "tensorrt", "onnx", f"verify='tensorrt': choose one of {', '.join(consumers.VERIFIERS)}"),
    (
        "no ONNX file", "opencv", "safetensors",
        "verify='opencv': runs ONNX files, and none is written; add onnx to the formats",
    ),
    ("empty", "opencv,", "onnx", f"verify='': choose one of {', '.join(consumers.VERIFIERS)}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("consumer", "to", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_wrong_consumers_are_refused(folder, consumer: str, to: str, message: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(IlgnetError) as caught:
        ir.convert(folder / "small.caffemodel", to=to, verify=consumer)
    assert str(caught.value) == message
    assert sorted(folder.iterdir()) == before


def test_an_absent_consumer_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setitem(
        consumers.VERIFIERS, "openvino", (("onnx", "no_such_module"), "pip install 'ilgnet_repro[openvino]'")
    )
    with pytest.raises(IlgnetError) as caught:
        ir.convert(folder / "small.caffemodel", to="onnx", verify="openvino")
    assert str(caught.value) == (
        "verify='openvino': no_such_module is not installed; pip install 'ilgnet_repro[openvino]'"
    )


def test_a_crash_or_a_failure_leaves_the_other_jobs(tmp_path, monkeypatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, runpy\n"
        f"run = runpy.run_path({str(consumers.SCRIPT)!r})\n"
        "def crash(model, inputs, wanted):\n"
        "    if model.endswith('crash'): os._exit(7)\n"
        "    if model.endswith('fail'): raise SystemExit('it is too large\\nfor me')\n"
        "    if model.endswith('none'): return '1.0', dict.fromkeys(wanted)\n"
        "    return '1.0', {name: inputs['data'] * 2 for name in wanted}\n"
        "run['CONSUMERS']['mine'] = crash\n"
        "run['main'](*sys.argv[1:])\n"
    )
    monkeypatch.setattr(consumers, "SCRIPT", script)
    x = np.float32([1, 2])
    jobs = [Job(tmp_path / name, {"data": x}, ["y"]) for name in ("a", "crash", "b", "fail", "none", "c")]
    found = run_consumer("mine", jobs)
    assert [one.failed for one in found] == [
        "", "it crashes (exit 7)", "", "SystemExit: it is too large for me",
        "SystemExit: no array for output y", "",
    ]  # fmt: skip
    assert [one.outputs["y"].tolist() for one in found if one.outputs] == [[2, 4]] * 3


def test_onnx_reference_implementation_agrees(tmp_path) -> None:
    net = net_of(SMALL_TEXT)
    onnx.save(build_onnx(net), str(tmp_path / "s.onnx"))
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 7), np.float32)
    (found,) = run_consumer("reference", [Job(tmp_path / "s.onnx", {"data": x}, ["prob"])])
    assert found.version == onnx.__version__
    np.testing.assert_allclose(found.outputs["prob"], net(data=x)["prob"].detach(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------- OpenVINO's own files


@needs_openvino
@pytest.mark.parametrize(
    "options", [{}, {"precision": "int8"}, {"fold": True}], ids=["plain", "int8", "folded"]
)
def test_openvino_files_are_verified_and_replaced(folder, options) -> None:
    for _ in range(2):
        report = ir.convert(
            folder / "small.caffemodel", to="openvino", verify=True, out=folder / "ov", **options
        )
        assert [Path(entry.path).name for entry in report.written] == ["small.xml", "small.bin"]
        assert report.is_verified
    assert sorted(path.name for path in (folder / "ov").iterdir()) == ["small.bin", "small.xml"]
    (folder / "ov" / "small.xml").write_text("<net/>")
    with pytest.raises(IlgnetError, match=r"small\.xml: "):
        ir.convert(folder / "small.caffemodel", to="openvino", out=folder / "ov")
    assert (folder / "ov" / "small.xml").read_text() == "<net/>"


def test_without_openvino_one_line_says_what_to_install(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    before = sorted(folder.iterdir())
    with pytest.raises(IlgnetError) as caught:
        ir.convert(folder / "small.caffemodel", to="openvino")
    assert str(caught.value) == (
        "OpenVINO is not installed, so its files cannot be written; pip install 'ilgnet_repro[openvino]'"
    )
    assert sorted(folder.iterdir()) == before


# ---------------------------------------------------------------------- the page


def test_the_page_has_a_row_for_each_consumer_that_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "consumers.md").read_text()
    table = page.partition("<!-- consumers:start -->")[2].partition("<!-- consumers:end -->")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 8
    for name in (
        "ONNX Runtime, the oldest",
        "ONNX Runtime, the newest",
        "OpenVINO",
        "OpenCV 4",
        "OpenCV 5",
        "onnxsim",
    ):
        assert [row[0].startswith(f"| {name}") for row in rows].count(True) == 1, name
