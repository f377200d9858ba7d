"""Files: every JSON that the package writes is standard JSON."""

from __future__ import annotations

import json
import os
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


FORMULAS = {
    "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "\tx": "'\tx", "\rx": "'\rx", "'=1": "''=1",
    "a=1": "a=1", "'a": "'a", "": "", "1": "1", " =1": " =1",
}  # fmt: skip


@pytest.mark.parametrize(("text", "cell"), FORMULAS.items(), ids=map(repr, FORMULAS))
def test_no_cell_of_csv_is_a_formula(text, cell) -> None:
    assert files.csv_text(text) == cell
    assert files.from_csv_text(cell) == text


# What might never end, or never begin, and how it is made.
NO_FILES = {
    "a pipe": (os.mkfifo, "is a pipe or device, not a plain file"),
    "/dev/zero": (lambda path: path.symlink_to("/dev/zero"), "is a pipe or device, not a plain file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "nothing": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize(("make", "reason"), NO_FILES.values(), ids=NO_FILES)
def test_an_input_that_is_no_file(tmp_path, make, reason) -> None:
    make(tmp_path / "x")
    for read in (files.read_input, lambda path: files.open_input(path, "r", encoding="utf-8")):
        with pytest.raises(OSError) as refused:
            read(tmp_path / "x")
        assert refused.value.strerror == reason


def test_an_input_that_is_a_file(tmp_path) -> None:
    (tmp_path / "x").write_bytes("é\n".encode())
    (tmp_path / "link").symlink_to("x")
    assert files.read_input(tmp_path / "link") == b"\xc3\xa9\n"
    with files.open_input(tmp_path / "x", "r", encoding="utf-8") as file:
        assert file.read() == "é\n"
