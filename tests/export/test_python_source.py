"""Written Python: readable, named as the net is, lint-clean, and equal; for every recorded net and the zoo's."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_cases import NAMES, read_case
from small_nets import SMALL_TEXT, write_weights
from zoo_weights import NETS, drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.to_python import class_name, load_module, module_name
from ilgnet_repro.runtime.net import CaffeNet

RUFF = shutil.which("ruff") or shutil.which("ruff", path=f"{sys.prefix}/bin")

SMALL_SOURCE = '''"""A small net."""

import torch.nn.functional as F
from torch import nn


class Small(nn.Module):
    """From data (1x3x9x7) to a dict of "prob" (1x5); the first axis is the batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=3)
        self.ip = nn.Linear(24, 5)

    def forward(self, data):
        conv = F.relu(self.conv(data))
        pool = F.max_pool2d(conv, 3, 2, ceil_mode=True)
        ip = self.ip(pool.flatten(1))
        prob = F.softmax(ip, dim=1)
        return {"prob": prob}
'''


def net_of(text: str) -> CaffeNet:
    return CaffeNet(build_graph(parse_net(text)), seed=1)


def test_the_text_is_what_a_person_would_write() -> None:
    source = build_source(net_of(SMALL_TEXT), class_name="Small", comment="A small net.")
    assert source.text == SMALL_SOURCE
    assert list(source.state) == ["conv.weight", "conv.bias", "ip.weight", "ip.bias"]


def test_every_recorded_net_and_the_zoo_are_lint_clean(tmp_path) -> None:
    if RUFF is None:
        pytest.skip("ruff is not installed")
    for name in NAMES:
        text = build_source(read_case(name).net(tmp_path)).text
        (tmp_path / f"golden_{name.replace('-', '_')}.py").write_text(text)
    for name in NETS:
        (tmp_path / f"zoo_{name}.py").write_text(build_source(drawn_net(narrow_text(name))).text)
    # A statement is on one line, whatever its length.
    options = ["--isolated", "--no-cache", "--select", "E,F,W,I,B,UP,C4,SIM", "--ignore", "E501"]
    done = subprocess.run(
        [RUFF, "check", *options, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("name", NETS)
def test_each_statement_is_on_one_line(name: str) -> None:
    written = ast.parse(build_source(drawn_net(narrow_text(name)), class_name="Written").text).body[-1]
    assert isinstance(written, ast.ClassDef)
    methods = [node for node in written.body if isinstance(node, ast.FunctionDef)]
    assert [method.name for method in methods] == ["__init__", "forward"]
    statements = [statement for method in methods for statement in method.body]
    assert all(statement.lineno == statement.end_lineno for statement in statements)
    assert len({statement.lineno for statement in statements}) == len(statements)


def test_only_torch_and_math_are_imported(tmp_path) -> None:
    for name in ("Accuracy-default", "LSTM-basic", "LRN-default", "Pooling-max-mask"):
        if name not in NAMES:
            continue
        tree = ast.parse(build_source(read_case(name).net(tmp_path)).text)
        found = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        found |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert found <= {"torch", "math"}


@pytest.mark.parametrize("name", NETS)
def test_nets_of_the_zoo_agree(name: str, tmp_path) -> None:
    from ilgnet_repro.export.verify import seeded_inputs
    from ilgnet_repro.runtime.safetensors_file import write_safetensors

    net = drawn_net(narrow_text(name))
    source = build_source(net, class_name="Written")
    (tmp_path / "written.py").write_text(source.text)
    write_safetensors(tmp_path / "written.safetensors", source.state, {})
    written = load_module(tmp_path / "written.py", tmp_path / "written.safetensors", "Written")
    inputs = {key: value / 50 for key, value in seeded_inputs(net).items()}
    with torch.inference_mode():
        expected = net(inputs)
        found = written(**{source.arguments[key]: value for key, value in inputs.items()})
    for blob, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[blob], value, rtol=1e-4, atol=1e-5 * max(1.0, scale))


AWKWARD = """
layer { name: "in" type: "Input" top: "input" top: "l" input_param {
  shape { dim: 2 dim: 3 dim: 4 dim: 5 } shape { dim: 2 dim: 3 } } }
layer { name: "forward" type: "Convolution" bottom: "input" top: "class" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "type" type: "Convolution" bottom: "class" top: "1x1" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "a/b" type: "Convolution" bottom: "1x1" top: "torch" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "a_b" type: "Convolution" bottom: "torch" top: "a.b" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "norm" type: "LRN" bottom: "a.b" top: "lrn_across_channels" }
layer { name: "again" type: "LRN" bottom: "lrn_across_channels" top: "a_b" }
layer { name: "q" type: "Silence" bottom: "l" }
"""


def test_awkward_names_become_unique_identifiers(tmp_path) -> None:
    net = net_of(AWKWARD)
    source = build_source(net)
    assert source.arguments == {"input": "input_"}
    assert list(source.state)[::2] == ["forward_.weight", "type_.weight", "a_b.weight", "a_b_2.weight"]
    assert 'return {"a_b": ' in source.text
    (tmp_path / "a.py").write_text(source.text)
    from ilgnet_repro.runtime.safetensors_file import write_safetensors

    write_safetensors(tmp_path / "a.safetensors", source.state, {})
    x = torch.randn(2, 3, 4, 5)
    found = load_module(tmp_path / "a.py", tmp_path / "a.safetensors", "Net")(x)
    torch.testing.assert_close(found["a_b"], net({"input": x})["a_b"].detach())


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (class_name, "bvlc_googlenet", "BvlcGooglenet"), (class_name, "GoogleNet", "GoogleNet"),
        (class_name, "3-d net", "Net3DNet"), (class_name, "", "Net"), (class_name, "été", "T"),
        (module_name, "mobilenet-ssd", "mobilenet_ssd"), (module_name, "50", "net_50"),
    ],
)  # fmt: skip
def test_names_of_files_and_classes(function, given: str, expected: str) -> None:
    assert function(given) == expected


def test_the_written_files_work_as_their_docstring_says(tmp_path) -> None:
    name = 'x"""\\ evil\nname'
    text = SMALL_TEXT.replace('name: "small"', 'name: "x\\"\\"\\"\\\\ evil\\nname"', 1)
    assert parse_net(text).name == name
    write_weights(tmp_path / "a-b.caffemodel", text)
    (tmp_path / "a-b.prototxt").write_text(text)
    report = ir.convert(tmp_path / "a-b.caffemodel", to=("python",), verify=True)
    assert [Path(entry.path).name for entry in report.written] == ["a_b.py", "a_b.weights.safetensors"]
    lines = ast.get_docstring(ast.parse((tmp_path / "a_b.py").read_text())).splitlines()
    assert lines[0].startswith("x____ evil_name in PyTorch, written by ilgnet_repro ")
    usage = "\n".join(lines[2:])
    script = tmp_path / "use.py"
    script.write_text(
        f"import torch\nfrom a_b import XEvilName\n{usage}\nprint(net(torch.zeros(2, 3, 9, 7))['prob'].shape)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([2, 5])"


def test_weights_of_another_net_are_refused(folder) -> None:
    ir.convert(folder / "small.caffemodel", to=("python", "safetensors"))
    weights = folder / "small.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"ip.bias"', b'"ip.bios"'))
    with pytest.raises(IlgnetError, match=r"small\.safetensors: does not fit small\.py"):
        load_module(folder / "small.py", weights, "Small")
