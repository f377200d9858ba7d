"""Names that a file chooses, everywhere in a net: no written format runs them, and the outputs stay the same."""

from __future__ import annotations

import keyword
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.to_python import class_name, load_module, module_name
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.python_names import Names, plain, quoted
from ilgnet_repro.schema import caffe_pb2 as pb

# Each leaves a file PWNED where its text runs.
RUNS = 'open("PWNED", "w")'
EVIL = {
    "closes a docstring": f'x"""\n{RUNS}\n"""',
    "closes a string": f"x';{RUNS};'",
    "closes a double string": f'x"; {RUNS}; "',
    "is a dict entry": f'x": {RUNS}, "',
    "a line of its own": f"x\n{RUNS}\n",
    "after a return": f"x\r{RUNS}\r",
    "ends in a backslash": 'x\\',
    "a backslash and a quote": 'x\\"',
    "calls getattr": f'x") or {RUNS} or getattr(self, "x',
    "a loop in a string": f"x for {RUNS} in (1, 2)",
    "brackets": "}{)(][",
    "commas": "a, b = c",
    "long": "x, " * 60,
    "long and closed": "a for b in c, ) \\" * 12,
    "format": "%s{0}{x}",
    "NUL": "x\0y",
    "escape": "\x1b[31mx",
    "C1": "x\x9b31m",
    "right to left": "x\u202ey",
    "line separator": "x\u2028y",
    "accent": "é",
    "beyond the plane": "x\U0001f600",
    "empty after cleaning": "''",
    "digits": "12",
    "space": "a b",
    "at": "x@left",
    "hash": "x#2",
    "slashes": "../../x",
    "markup": "[/x][red]",
    **{word: word for word in ("torch", "nn", "F", "math", "Tensor", "self", "None", "True", "class", "match", "_")},
    **{word: word for word in ("super", "print", "__init__", "__class__", "__x", "__debug__", "__dict__", "forward")},
    **{word: word for word in ("training", "parameters", "_modules", "state_dict", "lrn_across_channels", "l")},
}  # fmt: skip
PLACES = ("layer", "blob", "input", "net")
X = np.random.default_rng(3).standard_normal((4, 3, 6, 5)).astype(np.float32)
WEIGHT = np.random.default_rng(4).standard_normal((2, 3, 1, 1)).astype(np.float32)


def message_of(place: str, name: str) -> pb.NetParameter:
    """Input, 1x1 convolution, ReLU in place, LRN, Power; the name replaces one of its names."""
    names = {
        key: name if key == place else default
        for key, default in zip(PLACES, ("c", "y", "d", "n"), strict=True)
    }
    net = pb.NetParameter(name=names["net"])
    given = net.layer.add(name="in", type="Input", top=[names["input"]])
    given.input_param.shape.add().dim.extend((1, *X.shape[1:]))
    conv = net.layer.add(
        name=names["layer"], type="Convolution", bottom=[names["input"]], top=[names["blob"]]
    )
    conv.convolution_param.num_output = 2
    conv.convolution_param.kernel_size.append(1)
    conv.convolution_param.bias_term = False
    net.layer.add(name="relu", type="ReLU", bottom=[names["blob"]], top=[names["blob"]])
    net.layer.add(name="out", type="Power", bottom=[names["blob"]], top=["z"]).power_param.scale = 2
    # The name is an output too.
    net.layer.add(name="spare", type="AbsVal", bottom=["z"], top=["zz" if place != "blob" else f"{name}!"])
    return net


def expected_values() -> np.ndarray:
    return 2 * np.maximum(np.einsum("nchw,kc->nkhw", X, WEIGHT[:, :, 0, 0]), 0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("evil", EVIL)
def test_the_written_source_runs_nothing_and_is_right(evil: str, place: str, here: Path) -> None:
    from ilgnet_repro.runtime.safetensors_file import write_safetensors

    net = net_of(place, EVIL[evil])
    label = class_name(net.graph.name)
    source = build_source(net, class_name=label, comment=plain(net.graph.name))
    assert source.text.isascii()
    (here / "written.py").write_text(source.text)
    write_safetensors(here / "written.safetensors", source.state, {})
    written = load_module(here / "written.py", here / "written.safetensors", label)
    found = written(**{source.arguments[name]: torch.from_numpy(X) for name in net.inputs})
    assert list(found) == list(net.outputs)
    np.testing.assert_allclose(found[net.outputs[0]].numpy(), expected_values(), rtol=1e-5, atol=1e-6)
    assert not (here / "PWNED").exists()


def net_of(place: str, name: str) -> CaffeNet:
    return CaffeNet(build_graph(message_of(place, name)), {message_of(place, name).layer[1].name: [WEIGHT]})


FORMS = ("python", "onnx", "safetensors", "pt2", "caffemodel")
SOME = (
    "closes a docstring",
    "calls getattr",
    "a line of its own",
    "NUL",
    "C1",
    "at",
    "hash",
    "markup",
    "__class__",
    "training",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("evil", SOME)
def test_every_form_is_written_and_verified(evil: str, place: str, here: Path) -> None:
    message = message_of(place, EVIL[evil])
    write_caffemodel(here / "n.caffemodel", message, {message.layer[1].name: [WEIGHT]})
    (here / "n.prototxt").write_text(format_message(message))
    Path("o").mkdir()
    report = ir.convert("n.caffemodel", prototxt="n.prototxt", to=FORMS, out="o", verify=True)
    assert {file.format for file in report.written} >= set(FORMS)
    session = onnxruntime.InferenceSession("o/n.onnx")
    found = session.run(None, {session.get_inputs()[0].name: X})[0]
    np.testing.assert_allclose(found, expected_values(), rtol=1e-5, atol=1e-6)
    assert not list(here.rglob("PWNED"))
    assert not list(here.parent.glob("PWNED"))


# ---------------------------------------------------------------------- blobs that look like generated names


def test_a_blob_named_like_an_in_place_value_stays_separate(here: Path) -> None:
    text_net = pb.NetParameter(name="n")
    text_net.layer.add(name="in", type="Input", top=["x"]).input_param.shape.add().dim.extend((1, 3))
    for name, bottom, top, shift in (
        ("p", "x", "x@left", 1),
        ("q", "x", "x@right", 10),
        ("r", "x@left", "a", 100),
    ):
        text_net.layer.add(name=name, type="Power", bottom=[bottom], top=[top]).power_param.shift = shift
    net = CaffeNet(build_graph(text_net))
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    source = build_source(net)
    (here / "n.py").write_text(source.text)
    from ilgnet_repro.runtime.safetensors_file import write_safetensors

    write_safetensors(here / "n.safetensors", source.state, {})
    found = load_module(here / "n.py", here / "n.safetensors", "Net")(torch.from_numpy(x))
    np.testing.assert_array_equal(found["a"], x + 101)
    np.testing.assert_array_equal(found["x@right"], x + 10)


AT = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { shift: 1 } }
layer { name: "s" type: "Split" bottom: "y" top: "a@p" top: "b@p" }
layer { name: "relu" type: "ReLU" bottom: "a@p" top: "a@p" }
layer { name: "q" type: "Power" bottom: "a@p" top: "a" power_param { scale: 3 } }
layer { name: "r" type: "Power" bottom: "b@p" top: "b" power_param { shift: 100 } }
"""


@pytest.mark.parametrize("first", ["n.safetensors", "n.caffemodel"])
def test_compare_shows_blobs_whose_own_name_has_an_at(first: str, here: Path) -> None:
    from ilgnet_repro.compare.comparison import compare_files

    # "a" and "b" are left out of one side's outputs where names are cut at the @.
    text = AT.replace('top: "a" ', 'top: "z@p" ')
    write_caffemodel(here / "n.caffemodel", parse_net(text), {})
    (here / "n.prototxt").write_text(text)
    ir.convert("n.caffemodel", prototxt="n.prototxt", to=("onnx", "safetensors"), verify=True)
    found = compare_files(first, "n.onnx", prototxt="n.prototxt")
    assert found.agrees
    assert {"z@p", "b"} <= {row.blob for row in found.rows}
    assert not {"a@p@s"} & {row.blob for row in found.rows}
    x = np.float32([[1, -2, 3]])
    session = onnxruntime.InferenceSession("n.onnx")
    values = dict(
        zip([entry.name for entry in session.get_outputs()], session.run(None, {"x": x}), strict=True)
    )
    np.testing.assert_allclose(values["z@p"], 3 * np.maximum(x + 1, 0))
    # The tops of a Split share memory in Caffe, so that b@p is seen after the ReLU.
    np.testing.assert_allclose(values["b"], np.maximum(x + 1, 0) + 100)


ALIKE = """
layer { name: "in" type: "Input" top: "a_b" top: "a.b" input_param { shape { dim: 4 dim: 5 } shape { dim: 2 dim: 3 } } }
layer { name: "p" type: "Power" bottom: "a.b" top: "c@d" power_param { shift: 1 } }
layer { name: "q" type: "Power" bottom: "a_b" top: "e" power_param { scale: 3 } }
"""


@pytest.mark.parametrize("known", [True, False], ids=["of our own", "without the net's text"])
def test_compare_finds_inputs_and_blobs_by_name(known: bool, here: Path) -> None:
    """Two inputs with the same argument name; a blob with an @ that no layer in place replaces."""
    from ilgnet_repro.compare.comparison import compare_files
    from ilgnet_repro.export.onnx_graph import build_onnx

    net = CaffeNet(build_graph(parse_net(ALIKE)))
    metadata = {"caffe.net": ALIKE} if known else {}
    for name in ("first.onnx", "second.onnx"):
        (here / name).write_bytes(build_onnx(net, metadata=metadata).SerializeToString())
    found = compare_files("first.onnx", "second.onnx")
    assert found.agrees and [row.blob for row in found.rows] == ["c@d", "e"]
    assert [row.shape[1:] for row in found.rows] == [(3,), (5,)]


def test_compare_refuses_two_inputs_for_one(here: Path) -> None:
    from ilgnet_repro.compare.comparison import compare_files
    from ilgnet_repro.export.onnx_graph import build_onnx

    net = CaffeNet(build_graph(parse_net(ALIKE)))
    (here / "two.onnx").write_bytes(build_onnx(net).SerializeToString())
    (here / "one.onnx").write_bytes(build_onnx(net, outputs=["e"]).SerializeToString())
    with pytest.raises(
        IlgnetError,
        match=r"^two\.onnx takes a_b, a_b and one\.onnx takes a_b; their inputs must be the same$",
    ):
        compare_files("two.onnx", "one.onnx")


def test_tensors_of_layers_named_like_blobs_stay_separate(here: Path) -> None:
    """A key is LAYER.BLOB; no blob's name has a dot, so all keys differ for any names of layers."""
    names = ["a", "a.weight", "a.weight.weight", "a_weight", "a.weight_scale", "preprocessing/mean_image"]
    text = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
    for index, name in enumerate(names):
        text += f'''layer {{ name: "{name}" type: "InnerProduct" bottom: "x" top: "t{index}"
            inner_product_param {{ num_output: {index + 2} weight_filler {{ type: "gaussian" }} }} }}\n'''
    net = ir.load_net(parse_net(text), seed=3)
    blobs = {name: [blob.detach().numpy() for blob in held] for name, held in net.params.items()}
    write_caffemodel(here / "n.caffemodel", parse_net(text), blobs)
    (here / "n.prototxt").write_text(text)
    for precision in ("float32", "int8"):
        options = {"precision": precision}
        ir.convert("n.caffemodel", prototxt="n.prototxt", to=("safetensors",), **options, verify=True)
        again = ir.load("n.safetensors")
        for name, held in net.params.items():
            for mine, theirs in zip(held, again.params[name], strict=True):
                torch.testing.assert_close(theirs, mine, rtol=0, atol=0 if precision == "float32" else 0.02)


# ---------------------------------------------------------------------- helper functions


@pytest.mark.parametrize("name", [*EVIL.values(), "x" * 500])
def test_identifiers_and_literals(name: str) -> None:
    for names in (Names.for_variables(("helper",)), Names.for_attributes()):
        first, again, other = names.of(name), names.of(name), names.fresh(name)
        assert first == again != other
        for word in (first, other):
            assert word.isidentifier()
            assert word.isascii()
            assert not keyword.iskeyword(word)
            assert not word.startswith("__")
    text = quoted(name)
    assert text.isascii()
    assert text.isprintable()
    space: dict[str, object] = {}
    exec(f"value = {text}", space)
    assert space["value"] == name
    assert class_name(name).isidentifier()
    assert not keyword.iskeyword(class_name(name))
    assert class_name(name) not in ("F", "Tensor", "Exception")
    assert module_name(name).isidentifier()
    assert not keyword.iskeyword(module_name(name))


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (class_name, "f", "FNet"), (class_name, "none", "NoneNet"), (class_name, "tensor", "TensorNet"),
        (class_name, "exception", "ExceptionNet"), (class_name, "torch", "Torch"),
        (module_name, "class", "net_class"), (module_name, "torch", "net_torch"), (module_name, "random", "net_random"),
        (module_name, "test", "test"), (module_name, "my-net", "my_net"),
        (quoted, 'a"b', "'a\"b'"), (quoted, "a'b", '"a\'b"'), (quoted, "a'\"b", '"a\'\\"b"'), (quoted, "a\\", '"a\\\\"'),
        (quoted, "é\n", '"\\xe9\\n"'),
    ],
)  # fmt: skip
def test_names_in_the_written_file(function, given: str, expected: str) -> None:
    assert function(given) == expected
