"""`import caffe`: one module under both names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator

import pytest

import ilgnet_repro.pycaffe as own
from ilgnet_repro.pycaffe import alias


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(alias._finder, "is_installed", False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "caffe":
            del sys.modules[name]


def test_installed() -> None:
    alias.install()
    caffe = importlib.import_module("caffe")
    assert caffe is own
    for name in ("io", "proto", "proto.caffe_pb2", "net_spec", "phases"):
        assert importlib.import_module(f"caffe.{name}") is importlib.import_module(
            f"ilgnet_repro.pycaffe.{name}"
        )
    assert own.__spec__.name == "ilgnet_repro.pycaffe"
    assert own.phases.__spec__.name == own.phases.__name__ == "ilgnet_repro.pycaffe.phases"


def test_put_into_the_modules_by_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "caffe", own)
    assert importlib.import_module("caffe.phases") is own.phases
    assert importlib.import_module("caffe.pycaffe").Net is own.Net
    assert importlib.import_module("caffe._caffe").get_solver is own.get_solver


def test_not_asked_for_it_changes_nothing() -> None:
    found = importlib.util.find_spec("caffe")  # in a run of all tests their folder of this name
    assert found is None or found.loader is None
    assert importlib.util.find_spec("caffe2") is None


def test_an_unknown_module() -> None:
    alias.install()
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'caffe.nothing'$"):
        importlib.import_module("caffe.nothing")
