"""Names from a file in Python source: as identifiers, string literals and docstring text.

A prototxt may call a layer, a blob or a net anything, and the written file runs when it is imported,
so names are written in these three forms only.
"""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from collections.abc import Iterable

from torch import nn

# The written file's imports, and names that linters mistake for digits.
_IMPORTED = frozenset({"torch", "nn", "F", "math", "Tensor"})
_VARIABLES = frozenset({"self", "l", "I", "O", *dir(builtins), *_IMPORTED})
_ATTRIBUTES = frozenset({"forward", *dir(nn.Module())})
# "test" is Python's own test suite, which nothing imports.
_MODULES = frozenset({"torch", "numpy", "safetensors", *sys.stdlib_module_names} - {"test"})


class Names:
    """Identifiers for Caffe names, each unique: `conv1/7x7_s2` becomes conv1_7x7_s2."""

    def __init__(self, reserved: Iterable[str]) -> None:
        self._reserved = frozenset(reserved)
        self._taken = set(self._reserved)
        self._known: dict[str, str] = {}

    @classmethod
    def for_variables(cls, helpers: Iterable[str]) -> Names:
        """Return names for variables of ``forward``, which shadow no import, builtin or helper."""
        return cls({*_VARIABLES, *helpers})

    @classmethod
    def for_attributes(cls) -> Names:
        """Return names for attributes of the module, which replace no attribute of nn.Module."""
        return cls(_ATTRIBUTES)

    def of(self, name: str) -> str:
        """Return the identifier of ``name``: the same one each time."""
        if name not in self._known:
            self._known[name] = self.fresh(name)
        return self._known[name]

    def fresh(self, name: str) -> str:
        """Return an identifier made from ``name`` that no other call has returned."""
        stem = _identifier(name)
        if stem in self._reserved:
            stem += "_"
        candidate, count = stem, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{stem}_{count}"
        self._taken.add(candidate)
        return candidate


def _identifier(name: str) -> str:
    """Return an ASCII identifier that is neither a keyword nor ``__x``, which a class body would mangle."""
    stem = re.sub(r"\W", "_", name, flags=re.ASCII)
    if stem.startswith("__"):
        stem = f"_{stem.lstrip('_')}"
    if stem in ("", "_"):
        return "unnamed"
    if stem[0].isdigit():
        stem = f"_{stem}"
    return f"{stem}_" if keyword.iskeyword(stem) else stem


def argument_name(name: str) -> str:
    """Return a blob's name as an argument, as in torch.export's files; two names may map to the same one."""
    argument = re.sub(r"\W", "_", name if name[:1].isalpha() else f"_{name}", flags=re.ASCII)
    return f"{argument}_" if keyword.iskeyword(argument) or argument == "self" else argument


def class_name(net: str) -> str:
    """Return a net's name as a class name: `bvlc_googlenet` becomes BvlcGooglenet."""
    words = [word for word in re.split(r"[^0-9A-Za-z]+", net) if word]
    name = "".join(word[0].upper() + word[1:] for word in words)
    name = name if name[:1].isalpha() else f"Net{name}"
    return f"{name}Net" if keyword.iskeyword(name) or name in _VARIABLES else name


def module_name(stem: str) -> str:
    """Return a file's stem as a module name that shadows no module torch needs."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    is_free = not keyword.iskeyword(name) and name not in _MODULES
    return name if is_free and (name[:1].isalpha() or name.startswith("_")) else f"net_{name}"


def quoted(text: str) -> str:
    """Return ``text`` as an ASCII string literal, in the quotes that need fewer escapes."""
    escaped = text.encode("unicode_escape").decode("ascii")
    if '"' in text and "'" not in text:
        return f"'{escaped}'"
    return '"' + escaped.replace('"', '\\"') + '"'


def plain(text: str, longest: int | None = None) -> str:
    """Return text with characters that are not safe in a docstring replaced."""
    return re.sub(r'[^ -~]|["\\]', "_", text)[:longest]
