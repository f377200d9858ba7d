"""The format coreml: what coremltools makes of the exported net is read again and compared before it is kept.

coremltools is not in the tests' environment, so its place is taken by a converter that keeps the program; where it is
installed, the real one runs too.  Core ML itself runs on macOS only: there the package is run and compared.
"""

from __future__ import annotations

import json
import operator
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT, net_of, write_weights

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export import to_coreml, to_pt2
from ilgnet_repro.export.coreml_package import MANIFEST, MODEL, rename_values
from ilgnet_repro.export.coreml_program import prepared

FLOAT32, FLOAT16 = 65568, 65552
NOT_RUN = (
    "outputs: Core ML runs on macOS only; names, shapes and types of inputs and outputs are those of the net, and 4 of its "
    "4 weights and biases are in the package as they are"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "small.prototxt").write_text(SMALL_TEXT)
    write_weights(tmp_path / "small.caffemodel")
    return tmp_path


def _described(name: str, shape: list[int], kind: int) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, type=SimpleNamespace(multiArrayType=SimpleNamespace(shape=shape, dataType=kind))
    )


def _operation(inputs: list[str], outputs: list[str]) -> SimpleNamespace:
    arguments = [SimpleNamespace(name=name) for name in inputs]
    return SimpleNamespace(
        inputs={"x": SimpleNamespace(arguments=arguments)}, blocks=[],
        outputs=[SimpleNamespace(name=name) for name in outputs],
    )  # fmt: skip


class _Made:
    """What the stand-in converts: a specification whose values have names of the program, and its constants."""

    def __init__(self, program: torch.export.ExportedProgram, setting: SimpleNamespace) -> None:
        (name,) = program.graph_signature.user_inputs
        (output,) = program.graph_signature.user_outputs
        shapes = {
            node.name: list(node.meta["val"].shape)
            for node in program.graph.nodes
            if node.name in (name, output)
        }
        block = SimpleNamespace(
            inputs=[], outputs=[output],
            operations=[_operation([name], ["prob"]), _operation(["prob"], [output])],  # "prob" is a value inside
        )  # fmt: skip
        function = SimpleNamespace(
            inputs=[SimpleNamespace(name=name)], block_specializations={"CoreML6": block}
        )
        self.spec = SimpleNamespace(
            specificationVersion=7, mlProgram=SimpleNamespace(functions={"main": function}),
            description=SimpleNamespace(
                input=[_described(name, shapes[name], setting.kind)],
                output=[_described(output, shapes[output], FLOAT32)],
                metadata=SimpleNamespace(userDefined={}),
            ),
            SerializeToString=lambda deterministic: json.dumps(self.spec.description.metadata.userDefined).encode(),
        )  # fmt: skip
        self.weights_dir = ""
        self.get_spec = lambda: self.spec

    def save(self, path: str) -> None:
        (Path(path) / MODEL).parent.mkdir(parents=True)
        (Path(path) / MODEL).touch()
        entries = {
            str(uuid.uuid4()): {"path": f"com.apple.CoreML/{name}"} for name in ("model.mlmodel", "weights")
        }
        root = next(iter(entries))
        (Path(path) / MANIFEST).write_text(
            json.dumps({"itemInfoEntries": entries, "rootModelIdentifier": root})
        )


@pytest.fixture
def converter(monkeypatch):
    """A converter that keeps the program, its reader, and a Core ML that runs it; a test changes what they return."""
    setting = SimpleNamespace(
        error=None, kind=FLOAT32, weights=lambda value: value, outputs=lambda value: value
    )

    def convert(program, convert_to, pass_pipeline, **options):
        if setting.error is not None:
            raise setting.error
        print("progress")
        setting.program, setting.options = program, options
        setting.made = _Made(program, setting)
        return setting.made

    def load(spec, version, weights_dir):
        arrays = [setting.weights(value.detach().numpy()) for value in setting.program.state_dict.values()]
        operations = [
            SimpleNamespace(op_type="const", outputs=[SimpleNamespace(val=array)]) for array in arrays
        ]
        return SimpleNamespace(functions={"main": SimpleNamespace(operations=operations)})

    def predict(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = setting.program.module()(**{name: torch.from_numpy(value) for name, value in given.items()})
        return {name: setting.outputs(value.numpy()) for name, value in found.items()}

    def read(path, **options):
        assert json.loads((Path(path) / MODEL).read_text())["caffe.phase"] == "TEST"
        setting.made.predict = predict
        return setting.made

    fake = SimpleNamespace(
        convert=convert,
        PassPipeline=SimpleNamespace(DEFAULT=SimpleNamespace(remove_passes=lambda names: None)),
        precision=SimpleNamespace(FLOAT32="float32"), target=SimpleNamespace(iOS16="iOS16"),
        ComputeUnit=SimpleNamespace(CPU_ONLY="cpu"), models=SimpleNamespace(MLModel=read),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setitem(
        sys.modules, "coremltools.converters.mil.frontend.milproto.load", SimpleNamespace(load=load)
    )
    return setting


@pytest.mark.parametrize(("options", "batch"), [({}, 1), ({"batch": 3}, 3)], ids=["stated", "batch"])
def test_packages_are_compared_and_replaced(folder, converter, capsys, options, batch: int) -> None:
    """A second conversion replaces the package, to the same bytes."""
    found = []
    for _ in range(2):
        report = ir.convert(
            folder / "small.caffemodel", to="coreml", verify=True, out=folder / "out", **options
        )
        place = folder / "out" / "small.mlpackage"
        found.append({path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert [Path(entry.path).name for entry in report.written] == ["small.mlpackage"]
    assert report.written[0].bytes == sum(map(len, found[0].values()))
    assert [path.name for path in (folder / "out").iterdir()] == ["small.mlpackage"]
    assert (report.is_verified, report.verified[0].is_equal) == (False, None)
    assert report.verified[0].not_compared == (NOT_RUN,)
    assert report.notes[-2:] == (
        f"coreml: sizes are fixed (data {batch}x3x9x7); batch= or another input shape gives others",
        "coreml: its outputs were not computed: Core ML runs on macOS only; verify it there before use",
    )
    assert capsys.readouterr().out == ""
    assert converter.options["compute_precision"] == "float32"
    described = converter.made.spec.description
    assert [one.name for one in (*described.input, *described.output)] == ["data", "prob"]
    metadata = json.loads((place / MODEL).read_text())
    assert json.loads(metadata["caffe.input_shapes"]) == {"data": [batch, 3, 9, 7]}


def test_a_package_of_a_net_with_random_weights_says_so(folder, converter) -> None:
    ir.save(ir.load_net(folder / "small.prototxt", seed=3), folder / "drawn.mlpackage")
    metadata = json.loads((folder / "drawn.mlpackage" / MODEL).read_text())
    assert json.loads(metadata["about"])["drawn"]


def test_a_value_inside_keeps_out_of_the_way_of_an_output(folder, converter) -> None:
    ir.save(ir.load(folder / "small.caffemodel"), folder / "small.mlpackage")
    (block,) = converter.made.spec.mlProgram.functions["main"].block_specializations.values()
    first, last = block.operations
    assert [one.name for one in (*first.outputs, *last.inputs["x"].arguments)] == ["prob_", "prob_"]
    assert ([one.name for one in last.outputs], list(block.outputs)) == (["prob"], ["prob"])


def test_names_that_are_swapped_stay_distinct() -> None:
    block = SimpleNamespace(inputs=[], operations=[_operation(["a"], ["b"])], outputs=["b"])
    function = SimpleNamespace(inputs=[SimpleNamespace(name="a")], block_specializations={"": block})
    spec = SimpleNamespace(
        mlProgram=SimpleNamespace(functions={"main": function}),
        description=SimpleNamespace(input=[SimpleNamespace(name="a")], output=[SimpleNamespace(name="b")]),
    )
    rename_values(spec, {"a": "b", "b": "a"})
    assert (spec.description.input[0].name, spec.description.output[0].name) == ("b", "a")
    assert (function.inputs[0].name, block.outputs) == ("b", ["a"])


WRONG = {
    "other weights": (
        {"weights": lambda value: value + (value.ndim == 4)},
        "net 'small': what coremltools makes of it has other weights in layer conv (Convolution); use to='onnx'",
    ),
    "another type": (
        {"kind": FLOAT16},
        "net 'small': what coremltools makes of it has inputs data 1x3x9x7 (not float32), not data 1x3x9x7; use to='onnx'",
    ),
    "an operator that it lacks": (
        {"error": NotImplementedError("Unsupported fx node\n foo")},
        "net 'small': coremltools cannot convert it (NotImplementedError: Unsupported fx node foo); use to='onnx'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("through", ["convert", "save"])
@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_differs_or_fails_is_refused(folder, converter, change, message: str, through) -> None:
    vars(converter).update(change)
    before = sorted(folder.iterdir())
    with pytest.raises(IlgnetError) as caught:
        if through == "convert":
            ir.convert(folder / "small.caffemodel", to="coreml")
        else:
            ir.save(ir.load(folder / "small.caffemodel"), folder / "small.mlpackage")
    assert str(caught.value) == message
    assert caught.value.remedy == "use to='onnx'"
    assert sorted(folder.iterdir()) == before


def test_on_macos_the_package_is_run_and_compared(folder, converter, monkeypatch) -> None:
    monkeypatch.setattr(to_coreml, "IS_MACOS", True)
    report = ir.convert(folder / "small.caffemodel", to="coreml", verify=True)
    assert report.is_verified
    assert (report.verified[0].blob, report.verified[0].inputs) == ("prob", "seed 7: data 1x3x9x7")
    assert not any("not computed" in note for note in report.notes)
    converter.outputs = lambda value: value * 0
    with pytest.raises(
        IlgnetError, match=r"^net 'small': what coremltools makes of it computes output 'prob' oth"
    ):
        ir.convert(folder / "small.caffemodel", to="coreml")


OCCUPIED = {
    "a file": lambda path: path.write_text("mine"),
    "a folder": lambda path: (path / "a").mkdir(parents=True),
    "another's package": lambda path: [
        (path / one).parent.mkdir(parents=True, exist_ok=True) or (path / one).write_text("{}")
        for one in (MANIFEST, MODEL)
    ],
}


@pytest.mark.parametrize("make", OCCUPIED.values(), ids=OCCUPIED)
def test_what_no_conversion_wrote_is_kept(folder, converter, make) -> None:
    place = folder / "small.mlpackage"
    make(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(
        IlgnetError, match=r"small\.mlpackage: exists and was not written by `ilgnet convert`"
    ):
        ir.convert(folder / "small.caffemodel", to="coreml")
    assert sorted(place.rglob("*")) == before


REFUSED = {
    "dynamic size": (
        {"dynamic_size": True}, "dynamic_size= is for onnx and pt2 files, not coreml; convert to that separately"
    ),
    "eight bits": (
        {"precision": "int8"},
        "precision= is for safetensors and onnx files, not coreml; convert to that separately",
    ),
    "float16 arithmetic": (
        {"arithmetic": "float16"}, "arithmetic= is for onnx files, not coreml; convert to that separately"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_it_lacks_are_refused(folder, converter, options, message: str) -> None:
    with pytest.raises(IlgnetError) as caught:
        ir.convert(folder / "small.caffemodel", to="coreml", **options)
    assert str(caught.value) == message


def test_names_that_would_be_the_same_are_refused(tmp_path, converter) -> None:
    net = net_of(SMALL_TEXT.replace('"data"', '"a/b"').replace('"prob"', '"a_b"'))
    with pytest.raises(
        IlgnetError, match=r"^blobs 'a/b' and 'a_b' would both be called a_b in a package of Core ML"
    ):
        ir.save(net, tmp_path / "x.mlpackage")


def test_without_coremltools_one_line_says_what_to_install(folder, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    before = sorted(folder.iterdir())
    assert main(["convert", str(folder / "small.caffemodel"), "--to", "coreml"]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "coremltools is not installed, so Core ML's packages cannot be written; pip install 'ilgnet_repro[coreml]'"
        )
    )
    assert sorted(folder.iterdir()) == before


MASKED = """
layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "m" pooling_param { kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "u" type: "Upsample" bottom: "p" bottom: "m" top: "u" upsample_param { upsample_h: 9 upsample_w: 7 } }
"""
STATISTICS = (
    'layer { name: "b" type: "BatchNorm" bottom: "x" top: "b" batch_norm_param { use_global_stats: false } }'
)


@pytest.mark.parametrize(
    ("text", "lacks"),
    [(MASKED, "max_pool2d_with_indices"), (STATISTICS, "var_mean")],
    ids=["mask of max pooling", "statistics of the batch"],
)
def test_operators_that_coremltools_lacks_are_written_by_others(text: str, lacks: str) -> None:
    head = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }'
    net = net_of(head + text)
    draw = np.random.default_rng(5)
    x = torch.from_numpy(draw.integers(-3, 4, (2, 3, 9, 7)).astype("f"))  # equal maxima, too
    program = prepared(to_pt2.export(net, open_batch=False))
    assert not any(lacks in str(node.target) for node in program.graph.nodes)
    assert not any(node.target is operator.getitem for node in program.graph.nodes)
    expected = net(x)
    for name, value in program.module()(x=x).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_coremltools_writes_the_weights_of_the_net(folder, precision: str) -> None:
    found = []
    for _ in range(2):
        report = ir.convert(folder / "small.caffemodel", to="coreml", verify=True, precision=precision)
        place = folder / "small.mlpackage"
        found.append({path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert report.verified[0].not_compared[0].startswith("outputs: Core ML runs on macOS only; names, ")
    assert found[0] == found[1]
    assert sorted(found[0]) == ["Manifest.json", "model.mlmodel", "weight.bin"]
