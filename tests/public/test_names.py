"""The tests of this folder import public names only, and `dir` lists the package's."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ilgnet_repro as ir

FOLDER = Path(__file__).parent
PACKAGE = ir.__name__
# Modules of the package that are public, and for one of them the names.
PUBLIC = {
    PACKAGE: None,
    f"{PACKAGE}.errors": None,
    f"{PACKAGE}.schema.caffe_pb2": None,
    f"{PACKAGE}.zoo": None,
    f"{PACKAGE}.aesthetics": None,
    f"{PACKAGE}.cli.main": {"main"},
}


def private_imports(text: str) -> list[str]:
    """Return what ``text`` imports of the package that is not public, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if not _is_public(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [
                f"{module}.{alias.name}"
                for alias in node.names
                if not _is_public(module, alias.name) and not _is_public(f"{module}.{alias.name}")
            ]
    return found


def _is_public(module: str, name: str = "") -> bool:
    """Return whether a module, or a name in it, is public or of another package."""
    if module.startswith("."):
        return False
    if module.partition(".")[0] != PACKAGE:
        return True
    if module == PACKAGE and name:
        return name in ir.__all__
    if module not in PUBLIC:
        return False
    names = PUBLIC[module]
    return not name.startswith("_") and (names is None or not name or name in names)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_public_names_only(path: Path) -> None:
    assert private_imports(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import ilgnet_repro as ir, numpy.linalg", []),
        ("from ilgnet_repro import CaffeNet, load, errors, zoo, aesthetics", []),
        ("from ilgnet_repro.errors import ParseError", []),
        ("from ilgnet_repro.schema import caffe_pb2", []),
        ("from ilgnet_repro.cli.main import main", []),
        ("from ilgnet_repro.cli.main import run_group", ["ilgnet_repro.cli.main.run_group"]),
        ("from ilgnet_repro import _ERRORS, runtime", ["ilgnet_repro._ERRORS", "ilgnet_repro.runtime"]),
        ("import ilgnet_repro.runtime.net", ["ilgnet_repro.runtime.net"]),
        (
            "def f():\n    from ilgnet_repro.runtime.net import CaffeNet",
            ["ilgnet_repro.runtime.net.CaffeNet"],
        ),
        ("from ilgnet_repro.errors import _private", ["ilgnet_repro.errors._private"]),
        ("from .helpers import x", [".helpers.x"]),
    ],
)
def test_a_private_import_is_found(text: str, found: list[str]) -> None:
    assert private_imports(text) == found


def test_dir_lists_the_public_names_before_they_are_imported() -> None:
    code = (
        "import sys, ilgnet_repro as ir; print(sorted(dir(ir)) == sorted(ir.__all__), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize("name", ir.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(ir, name) is not None


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'ilgnet_repro' has no attribute 'laod'"):
        ir.laod  # noqa: B018


OPTIONS = {
    "load": {"prototxt", "phase", "level", "stages", "input_shapes", "ignore_fields", "allow_missing", "crop"},
    "save": {"fold", "precision", "dynamic_size", "with_preprocessing", "input_order", "fast_lrn"},
    "convert": {"to", "out", "verify", "fold", "precision", "dynamic_size"},
    "score": {"preprocessing", "batch", "prototxt", "phase", "carry_state", "allow_missing"},
    "fast": {"precision", "compile"},
    "solve": {"weights", "resume", "max_iter", "precision", "log"},
    "batches": {"seed", "root", "start", "workers"},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_shown_by_their_names(name: str) -> None:
    """As `help()` and completion show them, with types and defaults."""
    shown = inspect.signature(getattr(ir, name))
    assert shown.parameters.keys() >= OPTIONS[name]
    for one in shown.parameters.values():
        assert one.kind is not one.VAR_KEYWORD, f"{name} hides its options"
        assert one.annotation is not one.empty, f"{name}: {one.name} has no type"
    assert shown.return_annotation not in ("Any", shown.empty)


@pytest.mark.parametrize("kind", [ir.CaffeNet, ir.FastNet, ir.FileNet], ids=lambda kind: kind.__name__)
def test_the_options_of_prepare_are_shown(kind: type) -> None:
    shown = inspect.signature(kind.prepare).parameters
    assert list(shown) == ["self", "images", "preprocessing", "size", "order"]
    assert shown["order"].default == "BGR"


FORMS = {"fast": ir.fast, "save": lambda net: ir.save(net, "net.onnx"), "batches": ir.batches}
NO_NETS = {"a path": "net.caffemodel", "None": None, "a torch module": torch.nn.Linear(2, 3)}


@pytest.mark.parametrize("value", NO_NETS.values(), ids=NO_NETS)
@pytest.mark.parametrize("use", FORMS.values(), ids=FORMS)
def test_what_is_no_net_is_named(use, value) -> None:
    with pytest.raises(ir.GraphError, match=f"a {type(value).__name__} is not a net, so it cannot be"):
        use(value)
