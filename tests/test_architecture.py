"""Imports go one way: what docs/architecture.md draws, held against every import statement."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ilgnet_repro"

# Each room may import itself and the rooms named here; `*` stands for everything.
ROOMS = {
    "version": set(),
    "errors": set(),
    "atomic": {"errors"},
    "paths": {"errors"},
    "strict_json": set(),
    "memory": set(),
    "schema": set(),
    "formats": {"errors", "atomic", "schema"},
    "graph": {"errors", "schema"},
    "data": {"errors", "atomic", "paths", "schema", "formats", "strict_json"},
    "known": {"errors", "schema", "formats", "data"},
    "about": {"errors", "strict_json", "schema", "data", "feeding", "known"},
    "zoo": {"errors", "atomic", "paths", "schema", "formats"},
    "layers": {"errors", "schema", "graph"},
    "feeding": {"errors", "schema", "graph", "data", "layers"},
    "weights": {"errors", "graph", "layers"},
    "plan": {"errors", "graph", "layers"},
    "calls": {"errors", "graph", "layers", "plan"},
    "placed": {"errors", "graph", "layers"},
    "net": {"errors", "schema", "graph", "layers", "memory", "plan", "calls", "placed"},
    "modes": {"net"},
    "loading": {"errors", "schema", "formats", "graph", "layers", "net", "plan", "calls", "weights"},
}
LATER = {  # rooms built on nets; none of them imports the command line
    "audit", "conversion", "demo", "evaluate", "fastnet", "scoring", "train", "pycaffe",
}  # fmt: skip
FORBIDDEN_FOR_LATER = {"cli", "tools"}
# Torch stays out of what reads files and text, so that it can be used without it.
WITHOUT_TORCH = ("errors", "atomic", "paths", "strict_json", "memory", "schema", "formats", "graph", "zoo")


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the rooms and outside packages that a file imports, anywhere in it."""
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
                found.add(room_of(path))
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")
NAMES = {room_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    used = (imports(path) & NAMES) - {room}
    if room == "cli":
        return
    if room in LATER:
        assert not used & FORBIDDEN_FOR_LATER, f"{path.name} imports {used & FORBIDDEN_FOR_LATER}"
        return
    assert room in ROOMS, f"room {room} is not in this test's table, nor in docs/architecture.md"
    assert used <= ROOMS[room], f"{path.name} imports {used - ROOMS[room]}"


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_without_torch(room: str) -> None:
    for path in FILES:
        if room_of(path) == room:
            assert "torch" not in imports(path), path


def test_every_room_is_in_the_architecture_page() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    for room in NAMES:
        assert f"`{room}" in text, f"docs/architecture.md does not name {room}"


@pytest.mark.parametrize("call", ["eval", "exec", "compile", "__import__"])
def test_nothing_is_evaluated(call: str) -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != call, f"{path}:{node.lineno} calls {call}"


@pytest.mark.parametrize("module", ["pickle", "shelve", "marshal", "dill", "torchvision", "timm"])
def test_never_imported(module: str) -> None:
    for path in FILES:
        assert module not in imports(path), path


def test_each_folder_says_what_lives_there_in_one_sentence() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, f"{path} says nothing"
        assert doc.count("\n") == 0
        assert doc.endswith(".")
