"""The symbolic expressions of a pt2 file: which of them are arithmetic on sizes, and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

# The functions that sympy prints the expressions of sizes with.
_SYMPY = """
    Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv IntTrueDiv FloatTrueDiv
    ToFloat TruncToInt FloorToInt CeilToInt RoundToInt Where Abs And Or Not Equality Unequality Eq Ne LessThan
    StrictLessThan GreaterThan StrictGreaterThan max min
"""
_FUNCTIONS = frozenset(_SYMPY.split())
_EXPRESSION_NODES = (
    ast.Expression, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.keyword,
)  # fmt: skip
LONGEST_EXPRESSION = 20_000


def symbolic_expressions(document: Any) -> Iterator[Any]:
    """Yield each symbolic expression of a document, at any depth."""
    open_: list[Any] = [document]
    while open_:
        found = open_.pop()
        if isinstance(found, dict):
            if "expr_str" in found:
                yield found["expr_str"]
            open_ += found.values()
        elif isinstance(found, list):
            open_ += found


def is_size_arithmetic(text: Any) -> bool:
    """Return whether an expression is arithmetic on sizes; it is parsed, not evaluated.

    The grammar: numbers, operators and comparisons; sympy's functions by name; symbols; ``L['input'].size()[0]``.
    """
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= LONGEST_EXPRESSION else None
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return False
    return tree is not None and all(_is_arithmetic(node) for node in _nodes(tree.body))


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of an expression; an input's size is one part."""
    open_ = [tree]
    while open_:
        node = open_.pop()
        yield node
        if not _is_size(node) and not _is_symbol(node):
            open_ += ast.iter_child_nodes(node)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or re.fullmatch(r"[suz]\d+", node.id) is not None
    if isinstance(node, ast.Call) and not _is_symbol(node):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS - {"Symbol"}
    return isinstance(node, _EXPRESSION_NODES) or _is_size(node) or _is_symbol(node)


def _is_symbol(node: ast.AST) -> bool:
    """Symbol('s17', positive=True, integer=True)."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol"):
        return False
    name = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
    flags = all(isinstance(word.value, ast.Constant) and word.arg for word in node.keywords)
    return isinstance(name, str) and re.fullmatch(r"\w+", name, re.ASCII) is not None and flags


def _is_size(node: ast.AST) -> bool:
    """L['data'].size()[2]."""
    return isinstance(node, ast.Subscript) and bool(
        re.fullmatch(r"L\['\w+'\]\.size\(\)\[\d+\]", ast.unparse(node), re.ASCII)
    )
