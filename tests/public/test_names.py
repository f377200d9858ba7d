"""The tests of this folder import public names only, and `dir` lists the package's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
