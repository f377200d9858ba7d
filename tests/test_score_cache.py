"""A score cache that someone else wrote or damaged: computed again, or refused in one line; never believed."""

# Long lines are tables.
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import main

SCORE = ["score", "images", "--weights", "net.caffemodel", "--scale", "0.01", "--cache", "kept.db", "--csv"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> tuple[Path, str]:
    """A folder with a cache of two images, and what was printed of them."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "images").mkdir()
    write_weights(folder / "net.caffemodel", SMALL_TEXT)
    (folder / "net.prototxt").write_text(SMALL_TEXT)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 31, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"images/{index}.png"), pixels)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    with contextlib.chdir(folder), contextlib.redirect_stdout(open("out.csv", "w")):
        assert main(SCORE) == 0
    return folder, (folder / "out.csv").read_text()


@pytest.fixture
def here(scored, tmp_path, monkeypatch) -> Path:
    shutil.copytree(scored[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def change(*statements: str) -> None:
    with contextlib.closing(sqlite3.connect("kept.db")) as base, base:
        for statement in statements:
            base.execute(statement)


RECORD = {"outputs": {}, "value": None, "meaning": "", "size": None, "notes": [], "error": ""}
COMPUTED_AGAIN = {
    "no JSON": "update scores set record = 'x'",
    "no text": "update scores set record = 5",
    "null": "update scores set record = null",
    "bytes": "update scores set record = x'ff'",
    "no object": "update scores set record = '[]'",
    "a list of texts": f"update scores set record = '{json.dumps({**RECORD, 'outputs': {'p': ['x']}})}'",
    "a number beyond float": f"update scores set record = '{json.dumps({**RECORD, 'value': 10**400})}'",
    "a side beyond images": f"update scores set record = '{json.dumps({**RECORD, 'size': [2**40, 1]})}'",
    "an index below 0": f"update scores set record = '{json.dumps({**RECORD, 'boxes': [[-1, 1, 0, 0, 1, 1]]})}'",
    "a digest that is none": "update files set digest = 'x'",
    "a digest of bytes": "update files set digest = x'00'",
    "facts that are no JSON": "update models set facts = 'x'",
    "facts without labels": """update models set facts = '{"notes": []}'""",
    "labels that are no texts": """update models set facts = '{"notes": [], "labels": [5]}'""",
    "facts removed": "delete from models",
}


@pytest.mark.parametrize("statement", COMPUTED_AGAIN.values(), ids=COMPUTED_AGAIN)
def test_what_is_damaged_is_computed_again(here, scored, capsys, statement) -> None:
    change(statement)
    for _ in range(2):
        assert main(SCORE) == 0
        assert capsys.readouterr().out == scored[1]


OTHER = "has other tables than a cache of scores; give another name"
REFUSED = {
    "a newer form": (lambda: change("pragma user_version = 2"), "is not a cache of scores of this version; give another name"),
    "a table removed": (lambda: change("drop table models"), OTHER),
    "a view": (
        lambda: change(
            "drop table scores",
            "create view scores as with recursive n(x) as (select 1 union all select x + 1 from n) select x model, x digest, x record from n",
        ),
        OTHER,
    ),
    "a trigger": (lambda: change("create trigger t after insert on scores begin delete from files; end"), OTHER),
    "cut short": (lambda: os.truncate("kept.db", 5000), "cannot be used as a cache (database disk image is malformed); give another name"),
    "zeros": (lambda: Path("kept.db").write_bytes(bytes(9000)), "cannot be used as a cache (file is not a database); give another name"),
    "a folder": (lambda: (os.remove("kept.db"), os.mkdir("kept.db")), "is not a plain file; give another name"),
    "a pipe": (lambda: (os.remove("kept.db"), os.mkfifo("kept.db")), "is not a plain file; give another name"),
    "a device": (lambda: (os.remove("kept.db"), os.symlink("/dev/zero", "kept.db")), "is not a plain file; give another name"),
    "a loop": (
        lambda: (os.remove("kept.db"), os.symlink("kept.db", "kept.db")),
        "cannot be used as a cache (Too many levels of symbolic links); give another name",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_another_file_is_refused(here, capsys, make, message) -> None:
    make()
    assert main(SCORE) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == f"ilgnet: kept.db: {message}"


def test_a_link_to_a_cache_is_followed(here, scored, capsys) -> None:
    os.rename("kept.db", "elsewhere.db")
    os.symlink("elsewhere.db", "kept.db")
    assert main(SCORE) == 0
    assert capsys.readouterr().out == scored[1] and os.path.islink("kept.db")
