"""Imports go one way: the diagram of docs/architecture.md, checked against every import statement."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ilgnet_repro"

# Each folder or module of the package, and those that it may import; docs/architecture.md draws it.
ALLOWED_IMPORTS = {
    "version": set(),
    "precisions": {"errors"},
    "manifest": set(),
    "errors": set(),
    "opencv": {"errors"},
    "process": {"errors", "opencv"},
    "signatures": set(),
    "intervals": set(),
    "files": {"errors", "staging"},
    "staging": {"errors"},
    "pages": {"errors"},
    "schema": set(),
    "caffe": {"errors", "files", "schema"},
    "layers": {"errors", "schema", "caffe"},
    "zoo": {"errors", "files", "manifest", "schema", "caffe"},
    "reading": {"errors", "opencv", "files", "pages", "schema", "caffe", "layers", "staging"},
    "known": {"errors", "files", "manifest", "schema", "caffe", "reading"},
    "about": {"errors", "files", "schema", "reading", "known"},
    "prepare_images": {"errors", "reading", "about"},
    "runtime": {
        "errors", "files", "manifest", "precisions", "process", "schema", "caffe", "layers", "zoo", "reading", "known",
        "about", "prepare_images", "signatures",
    },
    "audit": {"errors", "schema", "caffe", "layers", "known", "runtime"},
    "audit_folder": {"audit", "errors", "schema", "caffe", "layers", "runtime"},
    "image_paths": {"caffe", "errors", "files"},
    "scored": {"errors", "files"},
    "score_cache": {"errors", "files", "reading", "scored", "scoring"},
    "score_cluster": {"errors", "process", "reading", "score_cache", "scored", "scoring"},
    "scoring": {
        "engines", "errors", "reading", "known", "about", "image_paths", "prepare_images", "runtime", "scored",
        "signatures",
    },
    "features": {"errors", "image_paths", "reading", "prepare_images", "runtime", "scoring", "signatures"},
    "export": {
        "known",
        "version", "errors", "files", "precisions", "process", "schema", "caffe", "layers", "reading", "about",
        "runtime", "signatures", "staging",
    },
    "engines": {
        "version", "errors", "files", "precisions", "process", "schema", "caffe", "layers", "prepare_images", "runtime",
        "export", "signatures",
    },
    "gradcam": {"caffe", "errors", "layers", "manifest", "prepare_images", "runtime"},
    "web": {
        "version", "errors", "files", "opencv", "pages", "caffe", "layers", "reading", "about", "prepare_images", "runtime",
        "audit", "image_paths", "scored", "scoring", "engines", "gradcam",
    },
    "compare": {"engines", "errors", "opencv", "files", "schema", "caffe", "layers", "reading", "runtime"},
    "train": {"errors", "files", "precisions", "schema", "caffe", "layers", "reading", "runtime", "staging"},
    "caffe_tool": {"errors", "files", "schema", "caffe", "layers", "reading", "runtime", "train"},
    "training": {"errors", "caffe", "reading", "runtime", "train", "caffe_tool"},
    "finetune": {
        "errors", "files", "image_paths", "intervals", "pages", "schema", "caffe", "zoo", "reading", "runtime",
    },
    "cvdnn": {"errors", "opencv", "caffe", "schema", "runtime"},
    "pycaffe": {
        "version", "errors", "opencv", "files", "schema", "caffe", "layers", "reading", "known", "about",
        "prepare_images", "runtime", "export", "train", "caffe_tool", "training",
    },
}  # fmt: skip
# The study uses the core; only the command line knows the study.
STUDY = "aesthetics"
# The modules that read files and text do not import torch, so that they can be used without it.
WITHOUT_TORCH = (
    "version", "precisions", "manifest", "errors", "files", "pages", "opencv", "process", "schema", "caffe", "zoo",
    "known",
)  # fmt: skip


def folder_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


@cache
def imports(path: Path) -> set[str]:
    """Return the folders and outside packages that a file imports, anywhere in it."""
    found = set()
    depth = len(path.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                found.add(parts[1] if parts[0] == PACKAGE.name and len(parts) > 1 else parts[0])
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level == 0:
                if parts[0] == PACKAGE.name:
                    found.update(parts[1:2] or [alias.name for alias in node.names])
                else:
                    found.add(parts[0])
            elif node.level == depth + 1:  # from the package's root
                found.update(parts[:1] or [alias.name for alias in node.names])
            else:
                found.add(folder_of(path))
    return found


# The imports inside functions from core to core, and why each is not at the top of its file.
LATE_IMPORTS: dict[tuple[str, str], str] = {}
LAZY = ("cli",)  # a command imports what it needs when it runs, so that `ilgnet --help` takes no torch


@dataclass(frozen=True)
class Import:
    """One module of the package that another imports, wherever the import statement is in the file."""

    module: str
    line: int
    is_late: bool  # within a function


def module_imports(tree: ast.Module, package: str, modules: Collection[str]) -> list[Import]:
    """Return the imports of ``modules`` in a file of ``package``: those of functions and TYPE_CHECKING included."""
    found = []

    def visit(node: ast.AST, is_late: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                named = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                parents = package.split(".")
                stem = parents[: len(parents) - child.level + 1] if child.level else []
                stem = [*stem, *([child.module] if child.module else [])]
                named = [".".join([*stem, alias.name]) for alias in child.names]
                named = [name if name in modules else ".".join(stem) for name in named]
            else:
                named = []
            found.extend(Import(name, child.lineno, is_late) for name in named if name in modules)
            visit(child, is_late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(tree, is_late=False)
    return found


def circles(edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the groups of modules (or folders) that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            for name in edges.get(left.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    left.append(name)
        return seen

    after = {name: reached(name) for name in edges}
    groups = {frozenset(other for other in after[name] if name in after.get(other, ())) for name in edges}
    return sorted(sorted(group) for group in groups if group)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def read_imports() -> dict[str, list[Import]]:
    """Every module of the package and what of the package it imports."""
    paths = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {
        module: module_imports(
            ast.parse(path.read_text()),
            module if path.stem == "__init__" else module.rpartition(".")[0],
            paths.keys(),
        )
        for module, path in paths.items()
    }


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")
NAMES = {folder_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_go_one_way(path: Path) -> None:
    folder = folder_of(path)
    used = (imports(path) & NAMES) - {folder}
    if folder in ("cli", "__main__"):
        return
    if folder == STUDY:
        assert not used & {"cli", "tools"}, f"{path.name} imports the command line"
        return
    assert folder in ALLOWED_IMPORTS, (
        f"folder {folder} is not in this test's table, nor in docs/architecture.md"
    )
    assert used <= ALLOWED_IMPORTS[folder], f"{path.name} imports {used - ALLOWED_IMPORTS[folder]}"


def test_no_module_imports_itself_through_others() -> None:
    edges = {
        module: {one.module for one in imported if one.module != module}
        for module, imported in read_imports().items()
    }
    assert circles(edges) == []


def test_no_folder_imports_itself_through_others() -> None:
    edges: dict[str, set[str]] = {}
    for module, imported in read_imports().items():
        for other in (one.module for one in imported):
            if "." in module and "." in other and module.split(".")[1] != other.split(".")[1]:
                edges.setdefault(module.split(".")[1], set()).add(other.split(".")[1])
    assert {"cli", "export", "layers"} <= edges.keys()
    assert circles(edges) == []


def test_imports_inside_functions_are_in_the_table() -> None:
    found = {
        (module.partition(".")[2], one.module.partition(".")[2])
        for module, imported in read_imports().items()
        for one in imported
        if one.is_late and module.split(".")[1:2] not in [[name] for name in LAZY]
    }
    assert found == LATE_IMPORTS.keys()
    assert len(LATE_IMPORTS) <= 3, "break the circle by moving what is shared, not by importing late"


KNOWN_MODULES = {"p", "p.a", "p.b", "p.sub", "p.sub.c"}
IMPORTS = {
    "a module beside": ("from . import a", "p", ["p.a"], False),
    "a name of a module beside": ("from .a import x", "p", ["p.a"], False),
    "a module above": ("from ..a import x, y", "p.sub", ["p.a", "p.a"], False),
    "modules of a folder": ("from .. import a, b", "p.sub", ["p.a", "p.b"], False),
    "by its whole name": ("import p.sub.c", "p", ["p.sub.c"], False),
    "from its whole name": ("from p.sub import c, d", "p", ["p.sub.c", "p.sub"], False),
    "for types": ("if TYPE_CHECKING:\n    from .a import x", "p", ["p.a"], False),
    "in a function": ("def f():\n    from .a import x", "p", ["p.a"], True),
    "in a method's branch": ("class C:\n  def f(self):\n    if x:\n      import p.b", "p", ["p.b"], True),
    "another package": ("import torch\nfrom torch import a", "p", [], False),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_every_form_of_import_is_seen(name: str) -> None:
    text, package, modules, is_late = IMPORTS[name]
    found = module_imports(ast.parse(text), package, KNOWN_MODULES)
    assert [one.module for one in found] == modules
    assert all(one.is_late == is_late for one in found)


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ({"a": "b", "b": "c", "c": ""}, []),
        ({"a": "b", "b": "a", "c": "a"}, [["a", "b"]]),
        ({"a": "b", "b": "c", "c": "a", "d": "e", "e": "d"}, [["a", "b", "c"], ["d", "e"]]),
    ],
    ids=["none", "two and one outside", "three, and two more"],
)
def test_import_cycles_are_found(edges: dict[str, str], expected: list[list[str]]) -> None:
    assert circles(edges) == expected


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_folders_without_torch(folder: str) -> None:
    for path in FILES:
        if folder_of(path) == folder:
            assert "torch" not in imports(path), path


def test_importing_them_imports_no_torch() -> None:
    """Directly or through other modules."""
    modules = [module_of(path) for path in FILES if folder_of(path) in WITHOUT_TORCH]
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_folder_is_in_the_architecture_page() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    for folder in NAMES:
        assert f"`{folder}" in text, f"docs/architecture.md does not name {folder}"


def test_nothing_is_evaluated() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                assert name not in ("eval", "exec", "compile", "__import__"), (
                    f"{path}:{node.lineno} calls {name}"
                )


def test_never_imported() -> None:
    for path in FILES:
        assert not imports(path) & {"pickle", "shelve", "marshal", "dill", "torchvision", "timm"}, path


def test_types_are_checked_strictly() -> None:
    """No line is excluded from the check, and no type is stated by a cast."""
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    assert config.getboolean("mypy", "strict")
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "# type: ignore" not in text, path
        assert "# mypy: " not in text, path
        assert not uses_of_cast(text), path


def uses_of_cast(text: str) -> list[int]:
    """Return the lines that import or use typing's `cast`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.ImportFrom) and "cast" in (name.name for name in node.names))
        or (isinstance(node, ast.Attribute) and node.attr == "cast" and ast.unparse(node) == "typing.cast")
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from typing import Any, cast", [1]),
        ("import typing\ntyping.cast(int, 1)", [2]),
        ("memoryview(b'').cast('B')", []),
    ],
    ids=["from", "attribute", "another cast"],
)
def test_uses_of_cast_are_found(text: str, expected: list[int]) -> None:
    assert uses_of_cast(text) == expected


def test_each_folder_says_what_lives_there_in_one_sentence() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, f"{path} says nothing"
        assert doc.count("\n") == 0
        assert doc.endswith(".")
