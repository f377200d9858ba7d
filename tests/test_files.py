"""Files: every JSON that the package writes is standard JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ilgnet_repro import files
from ilgnet_repro.files import json_text

PACKAGE = Path(files.__file__).parent
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1.5, "b": [1, None, True]}, '{"a": 1.5, "b": [1, null, true]}'),
        ({"a": NAN, "b": [INF, (-INF, 2)]}, '{"a": "NaN", "b": ["Infinity", ["-Infinity", 2]]}'),
        (NAN, '"NaN"'),
    ],
)
def test_json_values(value, text) -> None:
    assert json_text(value) == text
    json.loads(text, parse_constant=pytest.fail)


def test_float_reads_the_strings_of_non_finite_numbers() -> None:
    assert [float(text) for text in json.loads(json_text([INF, -INF]))] == [INF, -INF]
    assert str(float(json.loads(json_text(NAN)))) == "nan"


def test_json_options() -> None:
    assert json_text({"a": NAN}, indent=1) == '{\n "a": "NaN"\n}'


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_else_writes_json(path: Path) -> None:
    if path != Path(files.__file__):
        assert not re.search(r"\bjson\.dumps?\(", path.read_text()), "use files.json_text"
