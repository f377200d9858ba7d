"""`import caffe` for scripts: the name of Caffe's own package leads to this one.

A module must be the same object under both names (`caffe.io` and `ilgnet_repro.pycaffe.io`); loaded twice, its classes
would differ from themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

CAFFE = "caffe"


class _Existing(Loader):
    """Gives a module of this package to the import system, as it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has set that of the alias


class _Finder(MetaPathFinder):
    """Answers for `caffe` once it is installed, and for `caffe.NAME` wherever `caffe` is this package."""

    def __init__(self) -> None:
        self.is_installed = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, dot, rest = name.partition(".")
        if package != CAFFE:
            return None
        if dot and sys.modules.get(CAFFE) is not sys.modules.get(__package__):
            return None
        if not dot and not self.is_installed:
            return None
        real = f"{__package__}.{rest}" if dot else __package__
        return spec_from_loader(name, _Existing(real)) if find_spec(real) else None


_finder = _Finder()


def answer_submodules() -> None:
    """Make `import caffe.NAME` work where a script has put this package into `sys.modules` as `caffe`."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def install() -> None:
    """Make `import caffe` lead to this package, in this process, from now on."""
    answer_submodules()
    _finder.is_installed = True
    _forget()


@contextmanager
def installed() -> Iterator[None]:
    """Make `import caffe` lead to this package for a while."""
    before = _finder.is_installed
    install()
    try:
        yield
    finally:
        _finder.is_installed = before
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == CAFFE]:
        del sys.modules[name]
