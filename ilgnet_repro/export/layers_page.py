"""The table of supported layers, made from the classes: `python -m ilgnet_repro.export.layers_page --write FILE`.

It goes between two markers, `<!-- layers:start -->` and `<!-- layers:end -->`; without ``--write`` it is printed.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..errors import IlgnetError
from ..files import atomic_file
from ..layers.support.base import Layer
from ..layers.support.registry import layer_types

START, END = "<!-- layers:start -->", "<!-- layers:end -->"
COMMAND = "python -m ilgnet_repro.export.layers_page --write"
YES, NO = "✓", "–"
HEAD = ("layer", "torch", "gradient", "ONNX", "source")


def rows() -> list[tuple[str, ...]]:
    """Return one row per layer type; several types may be one class."""
    return [
        (
            f"`{name}`",
            "fed" if cls.is_input else YES,
            YES if cls.has_gradient else NO,
            _use(cls, "no_onnx"),
            _use(cls, "no_source"),
        )
        for name, cls in layer_types().items()
    ]


def _use(cls: type[Layer], attribute: str) -> str:
    """Return ✓ or the reason why not; a reason that depends on the layer's fields is added to a ✓."""
    always = getattr(cls, attribute)
    if always:
        return f"{NO} {always}"
    reasons = [
        reason for base in cls.__mro__ if base not in Layer.__mro__ for reason in _sometimes(base, attribute)
    ]
    return f"{YES}, except: {'; '.join(dict.fromkeys(reasons))}" if reasons else YES


def _sometimes(cls: type, attribute: str) -> Iterable[str]:
    return re.findall(rf'self\.{attribute} = "([^"]+)"', _class_texts(inspect.getfile(cls))[cls.__name__])


@cache
def _class_texts(path: str) -> dict[str, str]:
    """Return the text of each class of a file; `inspect.getsource` parses the whole file for each."""
    text = Path(path).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    classes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    return {node.name: "".join(lines[node.lineno - 1 : node.end_lineno]) for node in classes}


def table() -> str:
    """Return the table as Markdown."""
    lines = [HEAD, ("---", *[":-:"] * 2, "---", "---"), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(text: str, name: str) -> str:
    """Return a page's text with the table between the markers.  Raises IlgnetError where they are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise IlgnetError(f"{name}: holds no markers {START} and {END}; add them where the table belongs")
    return f"{before}{START}\n<!-- Written by: {COMMAND} {name} -->\n{table()}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table or write it into pages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ilgnet_repro.export.layers_page", description=__doc__)
    parser.add_argument("--write", nargs="+", default=[], metavar="FILE", help="pages that hold the markers")
    options = parser.parse_args(arguments)
    try:
        for name in options.write:
            text = replaced(Path(name).read_text(encoding="utf-8"), name)
            with atomic_file(name, "w") as file:
                file.write(text)
    except (IlgnetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if not options.write:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
