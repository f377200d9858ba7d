"""pt2 files as data: files of `ilgnet convert` are read and run; anything that could run code is refused first."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import read_case
from small_nets import FULLY_CONVOLUTIONAL, net_of
from zoo_weights import drawn_net, narrow_text

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main
from ilgnet_repro.compare.comparison import compare_files
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.to_pt2 import export, reopen
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.pt2_file import OPERATORS, check_expression, read_pt2
from ilgnet_repro.runtime.python_names import argument_name

REMEDY = "; only pt2 files as `ilgnet convert` writes them are read"

# ---------------------------------------------------------------------- accepted files

# Between them: integer results, several outputs, tuples, computed sizes, dtypes, scalars, constants, checks.
CASES = (
    "Accuracy-per_class", "ArgMax-top2_val", "BatchNorm-2d", "Im2col-basic", "LRN-within", "Pooling-max_mask", "SPP-max3",
    "SigmoidCrossEntropyLoss-ignore", "Slice-points", "SoftmaxWithLoss-ignore",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_recorded_nets_give_caffes_values(name: str, tmp_path: Path) -> None:
    case = read_case(name)
    torch.export.save(export(case.net(tmp_path)), tmp_path / "n.pt2")
    program = read_pt2(tmp_path / "n.pt2")
    found = program.run({argument_name(key): torch.from_numpy(value) for key, value in case.inputs.items()})
    assert list(found) == list(program.outputs)
    for blob, value in found.items():
        np.testing.assert_allclose(value.numpy(), case.outputs[blob], rtol=1e-4, atol=1e-5)


def test_a_net_of_any_size(tmp_path: Path) -> None:
    net = net_of(FULLY_CONVOLUTIONAL)
    torch.export.save(export(net, dynamic_size=True), tmp_path / "n.pt2")
    program = read_pt2(tmp_path / "n.pt2")
    assert program.inputs == {"data": (None, 3, None, None)}
    x = torch.randn(2, 3, 40, 33)
    for blob, value in net(data=x).items():
        torch.testing.assert_close(program.run({"data": x})[blob], value.detach(), rtol=1e-4, atol=1e-5)


def test_it_agrees_with_torchs_own_loader(tmp_path: Path) -> None:
    net = drawn_net(narrow_text("squeezenet"))
    torch.export.save(export(net), tmp_path / "n.pt2")
    inputs = {argument_name(key): value for key, value in seeded_inputs(net).items()}
    expected = torch.export.load(tmp_path / "n.pt2").module()(**inputs)
    found = read_pt2(tmp_path / "n.pt2").run(inputs)
    for blob, value in expected.items():
        torch.testing.assert_close(found[blob], value.detach(), rtol=1e-6, atol=1e-6)


def test_every_operator_named_is_torchs() -> None:
    assert not [name for name in OPERATORS if not hasattr(torch.ops.aten, name)]
    # Each returns new values: none writes to an argument, reads a file or accesses memory by address.
    assert not [name for name in OPERATORS if name.endswith("_") and not name.endswith("__")]
    assert not OPERATORS & {"from_file", "save", "set_", "as_strided", "resize_", "_unsafe_index", "set_data"}


# ---------------------------------------------------------------------- refused files


class Boom:
    def __reduce__(self) -> Any:
        return open, ("PWNED", "w")


PICKLE = pickle.dumps(Boom())
Parts = dict[str, bytes]
RUNS = "open('PWNED', 'w')"


def rewritten(name: str, change: Callable[[Any], None]) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        document = json.loads(parts[name])
        change(document)
        parts[name] = json.dumps(document).encode()

    return edit


def in_model(change: Callable[[Any], None]) -> Callable[[Parts], None]:
    return rewritten("models/model.json", change)


def in_weights(change: Callable[[Any], None]) -> Callable[[Parts], None]:
    return rewritten("data/weights/model_weights_config.json", change)


def put(name: str, data: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.update({name: data})


def first_weight(config: Any) -> Any:
    return next(iter(config["config"].values()))


def pickled_weight(parts: Parts) -> None:
    in_weights(lambda c: first_weight(c).update(use_pickle=True))(parts)
    parts["data/weights/weight_0"] = PICKLE


def opaque_constant(parts: Parts) -> None:
    parts["data/constants/opaque_obj_0"] = PICKLE
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    rewritten("data/constants/model_constants_config.json", lambda c: c["config"].update(x=entry))(parts)


def size_of_input(text: str) -> Callable[[Parts], None]:
    def change(model: Any) -> None:
        sizes = model["graph_module"]["graph"]["tensor_values"]["data"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 3}}}

    return in_model(change)


def target(text: str) -> Callable[[Parts], None]:
    return in_model(lambda m: m["graph_module"]["graph"]["nodes"][0].update(target=text))


def spec(which: str, text: str) -> Callable[[Parts], None]:
    return in_model(lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update({which: text}))


ENUM = json.dumps(
    [1, {"type": "builtins.dict", "context": '["x"]', "children_spec": [{"type": "evil.Class"}]}]
)
HOSTILE = {
    "pickled samples": (put("data/sample_inputs/model.pt", PICKLE), "holds 'n/data/sample_inputs/model.pt', a pickle; "),
    "a pickled weight": (pickled_weight, "keeps 'layers.conv.weight' as a pickle; pickles are not read"),
    "weights of old files": (put("data/weights/model.pt", PICKLE), "holds 'n/data/weights/model.pt', which "),
    "constants of old files": (put("data/constants/model.pt", PICKLE), "holds 'n/data/constants/model.pt', which "),
    "an opaque constant": (opaque_constant, "holds 'n/data/constants/opaque_obj_0', which "),
    "a custom object": (put("data/constants/custom_obj_0", PICKLE), "holds 'n/data/constants/custom_obj_0', which "),
    "compiled code": (put("data/aotinductor/model/x.so", b"\x7fELF"), "holds 'n/data/aotinductor/model/x.so', which "),
    "a second model": (put("models/other.json", b"{}"), "holds 'n/models/other.json', which "),
    "an unknown member": (put("readme", b"x"), "holds 'n/readme', which `ilgnet convert` does not write; "),
    "a member outside": (put("../n/models/model.json", b"x"), "holds 'n/../n/models/model.json', which "),
    "an expression": (size_of_input(RUNS), f'holds the expression "{RUNS}", which is more than arithmetic on sizes'),
    "an attribute": (size_of_input("().__class__.__base__"), "holds the expression '().__class__.__base__', which "),
    "a lambda": (size_of_input("Max(1, (lambda: 2)())"), "holds the expression "),
    "a symbol's name": (size_of_input("Symbol('s0.__class__')"), "holds the expression "),
    "a keyword": (size_of_input(f"Symbol('s0', integer={RUNS})"), "holds the expression "),
    "no expression": (size_of_input("import os"), "holds the expression 'import os', which "),
    "no text": (size_of_input(["x"]), "holds the expression \"['x']\", which "),
    "a guard": (in_model(lambda m: m["guards_code"].append(f"{RUNS} is not None")), "holds the expression "),
    "a guard's key": (in_model(lambda m: m["guards_code"].append(f"L[{RUNS}].size()[0] == 1")), "holds the expression "),
    "an operator of torch": (target("torch.hub.load"), "calls 'torch.hub.load', which no layer is exported to"),
    "a private one": (target("torch._C._jit_set_profiling_mode"), "calls 'torch._C._jit_set_profiling_mode', which "),
    "one that reads a file": (target("torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file.default', "),
    "one that writes a file": (target("torch.ops.aten.save.default"), "calls 'torch.ops.aten.save.default', which "),
    "one in place": (target("torch.ops.aten.conv2d.out"), "calls 'torch.ops.aten.conv2d.out', which "),
    "one of Python": (target("_operator.attrgetter"), "calls '_operator.attrgetter', which no layer is exported to"),
    "an extension": (target("#evil:x"), "calls '#evil:x', which no layer is exported to"),
    "a class of inputs": (spec("in_spec", ENUM), "its inputs or outputs have no names"),
    "a class of outputs": (spec("out_spec", ENUM), "its inputs or outputs have no names"),
    "a weight that is longer": (
        in_weights(lambda c: first_weight(c)["tensor_meta"].update(sizes=[{"as_int": 1 << 40}] * 4)),
        "keeps 'layers.conv.weight' in 'data/weights/weight_0', which is too short for it",
    ),
    "a weight from before": (
        in_weights(lambda c: first_weight(c)["tensor_meta"].update(storage_offset={"as_int": -8})),
        "keeps 'layers.conv.weight' in 'data/weights/weight_0', which is too short for it",
    ),
    "a weight elsewhere": (
        in_weights(lambda c: first_weight(c).update(path_name="../../models/model.json")),
        "keeps 'layers.conv.weight' in 'data/weights/../../models/model.json', which is not one of its arrays",
    ),
    "no model": (lambda parts: parts.pop("models/model.json"), "lacks models/model.json"),
    "no JSON": (put("models/model.json", b"["), "cannot be read (Expecting value: line 1 column 2 (char 1))"),
    "deep JSON": (put("models/model.json", b"[" * 100_000), "cannot be read ("),
    "other JSON": (put("models/model.json", b"{}"), "cannot be read ('graph_module')"),
    "another byte order": (put("byteorder", b"big"), "was written on a machine of the other byte order"),
}  # fmt: skip


@pytest.fixture
def small(folder: Path, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    ir.convert("small.caffemodel", to=("pt2", "safetensors"))
    return folder


def rewrite(source: Path, target_: Path, edit: Callable[[Parts], Any]) -> None:
    with zipfile.ZipFile(source) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(parts)
    with zipfile.ZipFile(target_, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(f"n/{name}", data)


def test_a_rewritten_file_is_read(small: Path) -> None:
    rewrite(small / "small.pt2", small / "n.pt2", lambda parts: None)
    assert compare_files("small.safetensors", "n.pt2").agrees


@pytest.fixture(scope="module")
def archive_bytes(tmp_path_factory) -> bytes:
    from small_nets import SMALL_TEXT, write_weights

    place = tmp_path_factory.mktemp("pt2")
    write_weights(place / "small.caffemodel")
    (place / "deploy.prototxt").write_text(SMALL_TEXT)
    ir.convert(place / "small.caffemodel", to=("pt2",))
    return (place / "small.pt2").read_bytes()


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_not_known_to_be_safe_is_refused(
    case: str, archive_bytes: bytes, tmp_path: Path, monkeypatch
) -> None:
    edit, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    Path("small.pt2").write_bytes(archive_bytes)
    rewrite(Path("small.pt2"), Path("n.pt2"), edit)
    with pytest.raises(IlgnetError) as caught:
        read_pt2("n.pt2")
    assert str(caught.value).startswith(f"n.pt2: {message}")
    assert str(caught.value).endswith(REMEDY)
    assert not os.path.exists("PWNED")


def test_compare_refuses_in_one_line(small: Path, capsys) -> None:
    rewrite(small / "small.pt2", small / "n.pt2", pickled_weight)
    assert main(["compare", "small.safetensors", "n.pt2"]) == 1
    assert capsys.readouterr().err.startswith("ilgnet: n.pt2: keeps 'layers.conv.weight' as a pickle; ")
    assert not os.path.exists("PWNED")


def test_torchs_loader_gets_no_pickle(small: Path) -> None:
    rewrite(small / "small.pt2", small / "n.pt2", put("data/sample_inputs/model.pt", PICKLE))
    with pytest.raises(IlgnetError, match="a pickle; pickles are not read"):
        reopen([small / "n.pt2"], None)  # type: ignore[arg-type]
    assert not os.path.exists("PWNED")


def test_packed_members_are_refused(small: Path) -> None:
    with (
        zipfile.ZipFile("small.pt2") as source,
        zipfile.ZipFile("n.pt2", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(IlgnetError, match="compressed or encrypted; only pt2 files"):
        read_pt2("n.pt2")


def test_a_repeated_member_is_refused(small: Path) -> None:
    with zipfile.ZipFile("small.pt2", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        archive.writestr(name, b"{}")
    with pytest.raises(IlgnetError, match=f"holds '{name}', which"):
        read_pt2("small.pt2")


@pytest.mark.parametrize("length", [0, 10, 100, 2000, -10, -1])
def test_a_truncated_file_is_refused(length: int, archive_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "n.pt2").write_bytes(archive_bytes[:length])
    with pytest.raises(IlgnetError) as caught:
        read_pt2(tmp_path / "n.pt2")
    assert str(caught.value).endswith(REMEDY)


def test_a_changed_weight_is_found_by_its_checksum(archive_bytes: bytes, tmp_path: Path) -> None:
    data = bytearray(archive_bytes)
    with zipfile.ZipFile(io.BytesIO(archive_bytes)) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("weight_0"))
        name, extra = struct.unpack_from("<HH", archive_bytes, entry.header_offset + 26)
        at = entry.header_offset + 30 + name + extra
    data[at] ^= 255
    (tmp_path / "n.pt2").write_bytes(data)
    with pytest.raises(IlgnetError, match="cannot be read"):
        read_pt2(tmp_path / "n.pt2")


SAFE = [
    "Symbol('s17', positive=True, integer=True)",
    "Mul(Integer(12), Symbol('s17', positive=True, integer=True))",
    "FloorDiv(Add(s3, Integer(-1)), Integer(2))",
    "s0 + 2*s1",
    "L['data'].size()[2] >= 3",
    "(1 + (((-3) + L['data'].size()[3]) // 2)) != 1",
    "(max(1, 8 + 4*(((-3) + L['a_b'].size()[3]) // 4))*2) != (L['data'].size()[2]*8)",
    "True",
    "-1.5",
]


@pytest.mark.parametrize("text", SAFE)
def test_arithmetic_on_sizes_passes(text: str) -> None:
    check_expression("n.pt2", text)


UNSAFE = [
    "__import__('os').system('x')", "x", "os", "'s0'", "[s0]", "s0.real", "Symbol(s0)", "Symbol('a', 'b')", "Max(*[1])",
    "L['data'].size()[open('PWNED','w')]", "L['data'].size(1)[0]", "L['data'].__class__", "L[0].size()[0]", "f'{s0}'",
    "s0 if s1 else s2", "[s0 for s0 in s1]", "(s0 := 1)", "Symbol('s0')(1)", "Mul(1)(2)", "1" + "+1" * 20_000, "",
    "s0; s1", "Symbol(**{})", "eval", "await s0", "lambda: s0", "\0",
]  # fmt: skip


@pytest.mark.parametrize("text", UNSAFE)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(IlgnetError, match="more than arithmetic on sizes"):
        check_expression("n.pt2", text)
