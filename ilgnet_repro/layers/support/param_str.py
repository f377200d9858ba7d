"""Reads `python_param.param_str`, the YAML that configures Python layers; nothing is evaluated."""

from __future__ import annotations

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_REMEDY = "write key: value"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with tuples and Python's None and 1e-3, and without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        parser: Any = self  # its methods have no types
        event = parser.peek_event()
        if isinstance(event, yaml.AliasEvent):  # a few lines of aliases can expand to gigabytes
            raise _error(event, f"alias *{event.anchor} is not supported; write its value again")
        if isinstance(event, yaml.ScalarEvent) and event.style is None and event.value.startswith("("):
            # YAML would split a Python tuple at its commas and read its entries as keys.
            raise _error(event, f"{event.value!r} starts a tuple; write [1, 2] or !!python/tuple [1, 2]")
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # PyYAML does not catch these: !!int x, !!bool maybe, the date 2026-13-45, a number of 5000 digits.
            tag = node.tag.replace(_TAG, "!!")
            raise _error(
                node, f"{str(node.value)[:20]!r} cannot be read as {tag}; write another value"
            ) from None

    def construct_tuple(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))

    def refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace(_TAG, "!!")
        raise _error(
            node, f"tag {tag} is not supported; write numbers, text, lists and !!python/tuple [1, 2]"
        )


_Loader.add_constructor(f"{_TAG}python/tuple", _Loader.construct_tuple)
_Loader.add_constructor(None, _Loader.refuse_tag)
# YAML 1.1 requires a decimal point and a sign; Python, whose dicts are often written here, requires neither.
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"None\Z"), ["N"])


def parse_param_str(text: str) -> dict[str, Any]:
    """Return the YAML or Python dict that configures a layer: ``'feat_stride': 16, 'scales': [8, 16]``.

    The braces of a dict may be omitted.  Raises ValueError, in one line, for anything but a dict with strings as keys.
    """
    try:
        found = _load(text)
    except ValueError:
        try:
            found = _load(f"{{{text}\n}}")
        except ValueError:
            found = None
        if found is None:
            raise
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{str(found)[:20]!r} is not a dict; {_REMEDY}")
    for key in found:
        if not isinstance(key, str):
            raise ValueError(f"the key {str(key)[:20]!r} is not a string; {_REMEDY}")
    return found


def _load(text: str) -> Any:
    """Return what PyYAML reads; raises ValueError, in one line with line and column, for what it refuses."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{problem}" + ("" if "; " in problem else f"; {_REMEDY}")) from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"character {error.position + 1} is {error.character:#x}; {_REMEDY}") from None
    except RecursionError:
        raise ValueError("lists or dicts are nested too deeply; write fewer levels") from None


def _error(place: Any, problem: str) -> yaml.MarkedYAMLError:
    """Return the error that PyYAML would raise for the event or node at ``place``."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
