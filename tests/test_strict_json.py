"""JSON without bare NaN or Infinity, here and wherever the package writes JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ilgnet_repro import files as strict_json

PACKAGE = Path(strict_json.__file__).parent
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1.5, "b": [1, None, True]}, '{"a": 1.5, "b": [1, null, true]}'),
        ({"a": NAN, "b": [INF, (-INF, 2)]}, '{"a": "NaN", "b": ["Infinity", ["-Infinity", 2]]}'),
        (NAN, '"NaN"'),
    ],
)
def test_values(value, text) -> None:
    assert strict_json.dumps(value) == text
    json.loads(text, parse_constant=pytest.fail)


def test_the_strings_are_numbers_again() -> None:
    assert [float(text) for text in json.loads(strict_json.dumps([INF, -INF]))] == [INF, -INF]
    assert str(float(json.loads(strict_json.dumps(NAN)))) == "nan"


def test_options_pass() -> None:
    assert strict_json.dumps({"a": NAN}, indent=1) == '{\n "a": "NaN"\n}'


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_else_writes_json(path: Path) -> None:
    if path.name != "strict_json.py":
        assert not re.search(r"(?<!strict_)json\.dumps?\(", path.read_text()), "use strict_json.dumps"
