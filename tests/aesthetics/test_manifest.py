"""The manifest against the authors' files, and its look-up functions."""

import argparse
import hashlib
import json
import re
from pathlib import Path

import pytest

from ilgnet_repro.aesthetics import releases as manifest
from ilgnet_repro.aesthetics.releases import fault, find_release, known_release, releases, select, shared_rows
from ilgnet_repro.cli import data as command
from ilgnet_repro.errors import DataError

NAMES = [
    *("ava1-train", "ava1-val", "ava2-train", "ava2-val", "ava1-mean", "ava2-mean"),
    *("ava1-weights", "ava2-weights", "deploy", "train", "val", "v4"),
    *("ava1-solver", "ava2-solver", "ava1-log", "ava2-log"),
]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
LISTS = {"ava1-train": 235_529, "ava1-val": 20_000, "ava2-train": 25_553, "ava2-val": 25_553}


def test_the_manifest_names_every_release_once():
    assert [release.name for release in releases()] == NAMES
    for field in ("path", "sha256"):
        assert len({getattr(release, field) for release in releases()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_complete(name):
    release = find_release(name)
    assert re.fullmatch("[0-9a-f]{64}", release.sha256)
    assert release.size > 0
    assert not Path(release.path).is_absolute() and ".." not in Path(release.path).parts
    # A file is either at an address or, the weights, at cloud drives only.
    assert bool(release.addresses) != bool(release.drives)
    assert (release.kind == "weights") == bool(release.drives) == (release.trained_on is not None)
    for address in release.addresses:
        start = "https://raw.githubusercontent.com/BestiVictory/ILGnet/"
        assert re.fullmatch(f"{re.escape(start)}[0-9a-f]{{7,40}}/{re.escape(release.path)}", address)
    assert (release.rows is not None) == (release.kind == "partition") == (release.classes is not None)
    if release.classes:
        assert sum(release.classes) == release.rows == LISTS[name]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("weights")])
def test_an_entry_describes_the_authors_file(authors, name):
    release = find_release(name)
    data = (authors / release.path).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (release.size, release.sha256)
    if release.kind == "partition":
        labels = [line.split()[1] for line in data.splitlines()]
        assert release.classes == (labels.count(b"0"), labels.count(b"1"))


@pytest.mark.parametrize("name", LISTS)
def test_the_page_has_the_numbers_of_the_lists(name):
    release = find_release(name)
    row, *_ = re.findall(rf"^\| {name} \| (\d.*)$", PAGE, re.MULTILINE)
    assert row.split(" | ")[:3] == [f"{number:,}" for number in (release.rows, *release.classes)]


@pytest.mark.parametrize("train", ["ava1-train", "ava2-train"])
def test_the_page_has_the_overlaps(train):
    others = ("ava1-val", "ava2-train", "ava2-val")
    (row,) = re.findall(rf"^\| {train} \| (\d[\d,]* .*|0 \|.*)\|$", PAGE, re.MULTILINE)[-1:]
    for cell, other in zip(row.split("|"), others, strict=True):
        if other != train:
            assert cell.strip(" *").split()[0].rstrip("*") == f"{shared_rows(train, other):,}"


def test_overlaps_are_those_of_the_authors_lists(authors):
    held = {}
    for name in LISTS:
        lines = (authors / find_release(name).path).read_text().splitlines()
        held[name] = {line.split()[0] for line in lines}
    for train in ("ava1-train", "ava2-train"):
        for other in held.keys() - {train}:
            assert shared_rows(train, other) == len(held[train] & held[other])
    with pytest.raises(DataError, match="deploy and ava1-val: the manifest does not count their overlap"):
        shared_rows("deploy", "ava1-val")


@pytest.mark.parametrize(
    ("sha256", "name"),
    [
        ("adac77adead5629becacd11c860262caeef14d05d21ff1e7d0fc177d00000c71", "ava1-weights"),
        ("9EEAC7EF7D566193C4416556C5BEACAE0F50CD1E158AABB87D5E974252D23DE2", "ava2-weights"),
        ("3036ea827bf097e9d5f18999e60666cb6bdf626c9cc60a34de3d5f00f0ebd5a2", "ava2-val"),
        ("0" * 64, None),
        ("", None),
    ],
    ids=["ava1-weights", "upper-case", "ava2-val", "unknown", "empty"],
)
def test_known_release(sha256, name):
    release = known_release(sha256)
    assert (release and release.name) == name


@pytest.mark.parametrize(
    ("names", "given"),
    [
        ([], NAMES),
        (["val"], ["val"]),
        (["partition"], list(LISTS)),
        (["ava1-val", "partition"], ["ava1-val", "ava1-train", "ava2-train", "ava2-val"]),
        (["weights", "weights"], ["ava1-weights", "ava2-weights"]),
    ],
    ids=["all", "name", "kind", "name-and-kind", "twice"],
)
def test_select(names, given):
    assert [release.name for release in select(names)] == given


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(DataError) as error:
        select(["ava1-val", "ava3"])
    known = ", ".join(NAMES)
    assert str(error.value) == f"ava3: no such released file; use one of {known}, or a kind such as partition"


SOLVER = find_release("ava1-solver")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 281\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        (b"x" * 280, "280 bytes instead of 281"),
        (POINTER, "a Git-LFS pointer, not the file it stands for"),
        (b"x" * 281, f"SHA-256 {hashlib.sha256(b'x' * 281).hexdigest()} instead of {SOLVER.sha256}"),
    ],
    ids=["missing", "short", "pointer", "wrong-bytes"],
)
def test_faults_of_a_copy(tmp_path, content, message):
    path = tmp_path / "solver"
    if content is not None:
        path.write_bytes(content)
    assert fault(SOLVER, path) == message


@pytest.mark.parametrize(
    ("environment", "folder"),
    [({"ILGNET_HOME": "/h"}, "/h"), ({"ILGNET_HOME": "", "HOME": "/u"}, "/u/.cache/ilgnet_repro")],
    ids=["ILGNET_HOME", "home"],
)
def test_default_folder(monkeypatch, environment, folder):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert manifest.default_folder() == Path(folder)


def ilgnet(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.run(parser.parse_args(["data", *map(str, words)]))


def test_where_explains_downloads_from_cloud_drives(tmp_path, capsys):
    assert ilgnet("where", "ava2-weights", "--dest", tmp_path) == 0
    text = capsys.readouterr().out
    assert "no direct address is known" in text
    assert all(drive in text for drive in find_release("ava2-weights").drives)
    assert "ilgnet data get ava2-weights --from FOLDER" in text
    assert f"{tmp_path / 'models/ILGnet-AVA2.caffemodel'} (not there)" in text


def test_where_as_json_has_every_release(tmp_path, capsys):
    assert ilgnet("where", "--json", "--dest", tmp_path) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["size"]) for row in rows] == [(r.name, r.size) for r in releases()]


@pytest.mark.parametrize(
    ("names", "code"),
    [([], 0), (["ava1-solver"], 0), (["solver"], 1), (["deploy"], 1), (["net"], 1)],
    ids=["all", "named", "one-missing", "missing", "all-missing"],
)
def test_verify_with_one_good_file(authors, tmp_path, capsys, names, code):
    target = tmp_path / SOLVER.path
    target.parent.mkdir()
    target.write_bytes((authors / SOLVER.path).read_bytes())
    assert ilgnet("verify", *names, "--dest", tmp_path, "--json") == code
    rows = {row["name"]: row["fault"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {r.name: None if r.name == "ava1-solver" else "missing" for r in select(names)}


@pytest.mark.parametrize("content", [None, b"x" * 281], ids=["nothing-there", "wrong-bytes"])
def test_verify_ends_with_1(tmp_path, capsys, content):
    if content:
        (tmp_path / "solver").mkdir()
        (tmp_path / SOLVER.path).write_bytes(content)
    assert ilgnet("verify", "--dest", tmp_path) == 1
    assert ("SHA-256" in capsys.readouterr().out) == bool(content)
