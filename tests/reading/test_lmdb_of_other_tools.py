"""Databases that other tools wrote: their keys, files and named databases, float_data, SSD's boxes, LevelDB."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import cv2
import lmdb
import numpy as np
import plyvel
import pytest

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError, IlgnetError
from ilgnet_repro.reading import leveldb_convert
from ilgnet_repro.reading.annotated import Box, boxes
from ilgnet_repro.reading.data_layer_batches import Feed
from ilgnet_repro.reading.image_list import ImageList
from ilgnet_repro.reading.leveldb_convert import convert_leveldb
from ilgnet_repro.reading.lmdb_check import check_lmdb, summarise
from ilgnet_repro.reading.lmdb_export import export_lmdb
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import compute_mean
from ilgnet_repro.reading.sheet import make_sheet
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.schema import caffe_pb2 as pb

ROWS = 5
IMAGES = np.random.default_rng(7).integers(0, 256, (ROWS, 3, 6, 8), dtype=np.uint8)
FLOATS = np.random.default_rng(8).normal(size=(ROWS, 2, 6, 8)).astype(np.float32)


def raw(image: np.ndarray, label: int) -> bytes:
    channels, height, width = image.shape
    datum = pb.Datum(channels=channels, height=height, width=width, label=label)
    if image.dtype == np.uint8:
        datum.data = image.tobytes()
    else:
        datum.float_data.extend(image.ravel().tolist())
    return datum.SerializeToString()


def write(path: Path, rows: dict[bytes, bytes], name: str = "", flags: dict | None = None, **options) -> Path:
    """Write rows as py-lmdb does."""
    with lmdb.open(str(path), map_size=1 << 24, max_dbs=3, **options) as env:
        database = env.open_db(name.encode() or None, **(flags or {}))
        with env.begin(write=True, db=database) as transaction:
            for key, value in rows.items():
                transaction.put(key, value)
    return path


# The keys of the five rows in the order they are written, and the names of their images.
KEYS = {
    "%08d": ([b"%08d" % n for n in range(ROWS)], [f"{n:08d}.png" for n in range(ROWS)]),
    "%05d": ([b"%05d" % n for n in range(ROWS)], [f"{n:05d}.png" for n in range(ROWS)]),
    "%010d": ([b"%010d" % n for n in range(ROWS)], [f"{n:010d}.png" for n in range(ROWS)]),
    "not padded": ([b"%d" % n for n in (1, 10, 100, 2, 20)], ["1.png", "10.png", "100.png", "2.png", "20.png"]),
    "paths": ([b"a/%d.png" % n for n in range(ROWS)], [f"a/{n}.png" for n in range(ROWS)]),
    "number and word": ([b"%d_cat" % n for n in range(ROWS)], [f"{n}_cat.png" for n in range(ROWS)]),
    "big-endian": ([struct.pack(">I", n) for n in range(ROWS)], [f"0000000{n}.png" for n in range(ROWS)]),
    "no file names": (
        [b"../0", b"/", b"1\n2", b" 3", b"\xff4"],
        ["../0", "/", "1\n2", " 3", "\\xff4"],
    ),
    "of convert_imageset": ([b"%08d_p/%d" % (n, n) for n in range(ROWS)], [f"p/{n}.png" for n in range(ROWS)]),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_any_key_is_good(case, tmp_path):
    keys, names = KEYS[case]
    path = write(
        tmp_path / "db", {key: raw(x, n % 3) for n, (key, x) in enumerate(zip(keys, IMAGES, strict=True))}
    )
    order = sorted(range(ROWS), key=keys.__getitem__)
    assert check_lmdb(path, labels=3) == (check_lmdb(path)) and check_lmdb(path).faults == ()
    assert check_lmdb(path, labels=2).fault_count == 1
    sheet = make_sheet(path)
    assert (len(sheet.sizes), sheet.unreadable) == (ROWS, ())
    assert export_lmdb(path, tmp_path / "out") == ROWS
    listed = ImageList(tmp_path / "out" / "list.txt")
    if case == "no file names":
        names = [key.hex() + ".png" if n < 4 else "\\xff4.png" for n, key in enumerate(keys)]
    assert [row.path for row in listed] == [names[n] for n in order]
    assert [row.label for row in listed] == [n % 3 for n in order]
    for number, row in zip(order, listed, strict=True):
        image = cv2.imread(str(tmp_path / "out" / row.path))
        assert np.array_equal(image.transpose(2, 0, 1), IMAGES[number])
    assert np.allclose(compute_mean(path).image, IMAGES.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "labels", "faults"),
    [
        ([b"%08d" % n for n in range(ROWS)], [0, 1, 2, 0, 1], []),
        ([b"%d" % n for n in range(ROWS)], [0, 1, 2, 0, 1], []),
        ([b"%d.png" % n for n in (4, 3, 2, 1, 0)], [1, 0, 2, 1, 0], []),
        ([b"k%d" % n for n in range(ROWS)], [0, 1, 2, 0, 1], []),
        ([b"%08d" % n for n in range(ROWS)], [0, 1, 1, 0, 1], ["00000002: label 1 where the list has 2; build it again"]),
        (
            [b"%08d" % n for n in (0, 1, 2, 3, 7)], [0, 1, 2, 0, 1],
            ["00000007: the list has 5 rows; give the list it was made from",
             "row 4 (4.png) of the list is missing; build it again"],
        ),
        (
            [b"1", b"01", b"0", b"3", b"4"], [1, 1, 0, 0, 1],
            ["1: a second row with number 1; build the database again",
             "row 2 (2.png) of the list is missing; build it again"],
        ),
    ],
    ids=["padded", "plain", "paths", "position", "wrong-label", "beyond", "twice"],
)  # fmt: skip
def test_check_with_the_list(keys, labels, faults, tmp_path):
    rows = {key: raw(IMAGES[n], label) for n, (key, label) in enumerate(zip(keys, labels, strict=True))}
    (tmp_path / "list.txt").write_text("".join(f"{n}.png {n % 3}\n" for n in range(ROWS)))
    found = check_lmdb(write(tmp_path / "db", rows), images=ImageList(tmp_path / "list.txt"))
    assert list(found.faults) == faults


FORMS = {  # how it is written, and how its path is given
    "folder": ({}, "", "db"),
    "data.mdb itself": ({}, "", "db/data.mdb"),
    "one file": ({"subdir": False}, "", "db"),
    "named, in a folder": ({}, "train", "db#train"),
    "named, in one file": ({"subdir": False}, "train", "db#train"),
    "keys from their end": ({"flags": {"reverse_key": True}}, "train", "db#train"),
    "keys of integers": ({"flags": {"integerkey": True}}, "train", "db#train"),
}


@pytest.mark.parametrize("case", FORMS)
def test_files_and_named_databases(case, tmp_path, monkeypatch, capsys):
    options, name, given = FORMS[case]
    key = (lambda n: struct.pack("<Q", 300 - n)) if "integers" in case else (lambda n: b"%d" % (11 * n))
    rows = {key(n): raw(x, n) for n, x in enumerate(IMAGES)}
    if "end" in case:
        rows = {b"%d" % (10 * n): value for n, value in enumerate(rows.values())}
    write(tmp_path / "db", rows, name, **options)
    if name:
        write(tmp_path / "db", {b"x": b"y"}, "other", **{k: v for k, v in options.items() if k != "flags"})
    with lmdb.open(str(tmp_path / "db"), max_dbs=3, subdir=options.get("subdir", True)) as env:
        database = env.open_db(name.encode() or None, create=False)
        with env.begin(db=database) as transaction:
            expected = [(bytes(k), bytes(v)) for k, v in transaction.cursor()]
    assert len(expected) == ROWS
    monkeypatch.chdir(tmp_path)
    reader = LmdbReader(given)
    assert list(reader) == expected and list(pickle.loads(pickle.dumps(reader))) == expected  # noqa: S301
    assert [reader.get(k).value for k, _ in expected] == [v for _, v in expected]
    labels = [row.datum().label for row in reader]
    text = f'source: "{given}" batch_size: 5 backend: LMDB'
    text = f'layer {{ name: "d" type: "Data" top: "x" top: "y" data_param {{ {text} }} }}'
    batch = next(iter(Feed(load_graph(parse_net(text)), Path()).batches(1)))
    assert batch["y"].tolist() == labels and np.array_equal(batch["x"].numpy(), IMAGES[labels])
    option = ["--db", name] if name else []
    path = given.partition("#")[0]
    for command in (["lmdb", "info"], ["lmdb", "check"], ["mean"]):
        assert main([*command, path, *option]) == 0, capsys.readouterr().err
    assert main(["lmdb", "export", path, "out", *option]) == 0
    assert main(["sheet", path, "--out", "page.html", *option]) == 0
    assert "5 images measured, 0 unreadable" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["lmdb", "info"], ["lmdb", "check"], ["mean"], ["lmdb", "export"]], ids=" ".join
)
def test_the_named_databases_are_listed(command, tmp_path, capsys):
    for name in ("train", "val"):
        write(tmp_path / "db.mdb", {b"0": raw(IMAGES[0], 1)}, name, subdir=False)
    out = [str(tmp_path / "out")] if "export" in command else []
    assert main([*command, str(tmp_path / "db.mdb"), *out]) == 1
    choice = "choose train, val with --db NAME, or as source: DB#NAME"
    assert capsys.readouterr().err == f"ilgnet: {tmp_path}/db.mdb: holds several databases; {choice}\n"
    assert main([*command, str(tmp_path / "db.mdb"), *out, "--db", "vla"]) == 1
    assert capsys.readouterr().err == f"ilgnet: {tmp_path}/db.mdb: has no database 'vla'; {choice}\n"
    assert not (tmp_path / "out").exists()


def test_several_values_under_a_key_are_refused(tmp_path):
    write(tmp_path / "db", {b"0": raw(IMAGES[0], 1)[:400]}, "two", {"dupsort": True})
    with pytest.raises(DataError, match=r"its keys are sorted otherwise than Caffe's \(flags 0x4\)"):
        len(LmdbReader(tmp_path / "db#two"))
    write(tmp_path / "plain", {b"0": raw(IMAGES[0], 1)})
    with pytest.raises(DataError, match=r"plain: has no database 'two'; it has no named ones$"):
        len(LmdbReader(tmp_path / "plain#two"))


def test_float_data(tmp_path, capsys):
    path = write(tmp_path / "db", {b"%d" % n: raw(x, n) for n, x in enumerate(FLOATS)})
    assert summarise(path).kinds == {"float": ROWS} and summarise(path).shapes == {"2x6x8": ROWS}
    assert check_lmdb(path).faults == ()
    np.testing.assert_allclose(compute_mean(path).image, FLOATS.mean(axis=0), rtol=1e-5, atol=1e-6)
    sheet = make_sheet(path)
    assert (sheet.sizes, sheet.unreadable) == (((8, 6),) * ROWS, ())
    thumbnail = sheet.samples[0][0].thumbnail[..., 0].astype(int)
    plane = FLOATS[0].mean(axis=0)
    assert thumbnail.max() > 240 and thumbnail.min() < 15 and plane.argmax() != plane.argmin()
    export_lmdb(path, tmp_path / "out")
    assert np.array_equal(np.load(tmp_path / "out" / "3.npy"), FLOATS[3])


@pytest.mark.parametrize(
    ("datum", "message"),
    [
        (
            pb.Datum(encoded=True, float_data=[1, 2]),
            "0: is marked encoded but holds float_data; rebuild the row",
        ),
        (
            pb.Datum(encoded=True, data=cv2.imencode(".tiff", np.ones((3, 4), np.float32))[1].tobytes()),
            "0: has type float32, Caffe reads uint8 only",
        ),
        (
            pb.Datum(channels=1, height=2, width=2, float_data=[1, 2, 3]),
            "0: has 3 values where 1x2x2 needs 4",
        ),
    ],
    ids=["encoded-float", "float-image", "too-few"],
)
def test_float_rows_that_cannot_be_read(datum, message, tmp_path):
    found = check_lmdb(write(tmp_path / "db", {b"0": datum.SerializeToString()}))
    assert found.fault_count == 1 and found.faults[0].startswith(message)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_named_databases_are_refused_in_one_line(seed, tmp_path):
    """A byte of the record that holds the named database's tree is changed, or of the pages."""
    source = write(
        tmp_path / "db", {b"%d" % n: raw(x, n) for n, x in enumerate(IMAGES)}, "train", subdir=False
    )
    data = source.read_bytes()
    at = data.rindex(b"train") + 5
    rng = np.random.default_rng(seed)
    for _ in range(60):
        changed = bytearray(data)
        for position in rng.integers(at, at + 48, 2) if rng.random() < 0.5 else rng.integers(0, len(data), 3):
            changed[position] = rng.integers(0, 256)
        source.write_bytes(changed)
        try:
            assert len(list(LmdbReader(f"{source}#train"))) <= ROWS
        except IlgnetError as error:
            assert "\n" not in str(error)


# ------------------------------------------------------------------------------------ SSD's AnnotatedDatum


def field(number: int, wire: int, payload: bytes) -> bytes:
    return bytes([number << 3 | wire]) + (bytes([len(payload)]) + payload if wire == 2 else payload)


def box_bytes(box: Box) -> bytes:
    corners = b"".join(
        field(n, 5, struct.pack("<f", side)) for n, side in enumerate(box[2:6], 1) if n != 3 or side
    )
    return field(1, 0, bytes([box.instance])) + field(2, 2, corners + field(6, 0, bytes([box.difficult])))


BOXES = (
    Box(7, 0, 0.25, 0.5, 0.75, 1.0, False),
    Box(7, 1, 0.0, 0.0, 0.5, 0.25, True),
    Box(2, 0, 0.5, 0, 1, 1, False),
)


def annotated(image: np.ndarray, encoded: bool = True) -> bytes:
    if encoded:
        data = cv2.imencode(".png", image.transpose(1, 2, 0))[1].tobytes()
        datum = pb.Datum(data=data, label=-1, encoded=True).SerializeToString()
    else:
        datum = raw(image, -1)
    length = bytes([len(datum) & 127 | 128, len(datum) >> 7])
    groups = b""
    for label in (7, 2):
        ones = b"".join(field(2, 2, box_bytes(box)) for box in BOXES if box.label == label)
        groups += field(3, 2, field(1, 0, bytes([label])) + ones)
    return b"\x0a" + length + datum + field(2, 0, b"\0") + groups


@pytest.mark.parametrize("encoded", [True, False], ids=["encoded", "raw"])
def test_annotated_rows(encoded, tmp_path, capsys):
    rows = {b"%08d_v/%d.png" % (n, n): annotated(x, encoded) for n, x in enumerate(IMAGES)}
    path = write(tmp_path / "db", rows)
    assert boxes(rows[b"00000001_v/1.png"], "x") == BOXES
    reader = LmdbReader(path)
    assert np.array_equal(reader[2].image()[0], IMAGES[2]) and reader[2].image()[1] == -1
    found = summarise(path)
    assert check_lmdb(path, labels=8).faults == ()
    wrong = [f"{key.decode()}: box of class 7 is not in 0..6; correct it" for key in rows]
    assert list(check_lmdb(path, labels=7).faults) == wrong
    assert (found.labels, found.boxes) == ({-1: ROWS}, {2: ROWS, 7: 2 * ROWS})
    assert main(["lmdb", "info", str(path)]) == 0
    assert "class 7: 10 boxes" in capsys.readouterr().out
    assert check_lmdb(path).faults == ()
    assert np.allclose(compute_mean(path).image, IMAGES.mean(axis=0), rtol=1e-6)
    thumbnail = make_sheet(path).samples[-1][0].thumbnail
    assert (thumbnail == (0, 255, 0)).all(axis=2).sum() > 200  # the boxes' borders, in green
    export_lmdb(path, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert [entry["image"] for entry in written] == [f"v/{n}.png" for n in range(ROWS)]
    assert written[3]["boxes"] == [box._asdict() for box in BOXES]
    assert (written[3]["width"], written[3]["height"]) == (8, 6)
    tree = ElementTree.parse(tmp_path / "out" / "v" / "3.xml")
    assert [e.text for e in tree.findall("size/")] == ["8", "6", "3"]
    assert [e.text for e in tree.findall("object/name")] == ["7", "7", "2"]
    assert [e.text for e in tree.findall("object/difficult")] == ["0", "1", "0"]
    assert [e.text for e in tree.find("object/bndbox")] == ["3", "4", "6", "6"]


def test_damaged_boxes_are_a_problem_of_their_row(tmp_path):
    good = annotated(IMAGES[0])
    path = write(tmp_path / "db", {b"0": good, b"1": good[:-3]})
    assert check_lmdb(path).fault_count == 1 and check_lmdb(path).faults[0].startswith("1: ")
    assert len(make_sheet(path).unreadable) == 1


# ------------------------------------------------------------------------------------------------ LevelDB


@pytest.fixture
def leveldb(tmp_path):
    """Rows in tables and in the log, as a killed convert_imageset leaves them too; one was written twice."""
    with plyvel.DB(str(tmp_path / "level"), create_if_missing=True) as database:
        for n, x in enumerate(IMAGES[:3]):
            database.put(b"%08d_%d.png" % (n, n), raw(x, n))
        database.compact_range()
    with plyvel.DB(str(tmp_path / "level")) as database:
        database.put(b"00000000_0.png", raw(IMAGES[0], 9))
        for n in (3, 4):
            database.put(b"%08d_%d.png" % (n, n), raw(IMAGES[n], n))
    return tmp_path / "level"


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_leveldb_is_copied_row_by_row(leveldb, tmp_path, capsys):
    before = tree(leveldb)
    assert main(["lmdb", "from-leveldb", str(leveldb), str(tmp_path / "db")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/db: 5 rows\n"
    expected = [(b"%08d_%d.png" % (n, n), raw(IMAGES[n], n or 9)) for n in range(ROWS)]
    assert [tuple(row) for row in LmdbReader(tmp_path / "db")] == expected
    assert tree(leveldb) == before
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["data.mdb"]


def damaged(folder: Path) -> None:
    table = next(folder.glob("*.ldb"))
    data = bytearray(table.read_bytes())
    data[40] ^= 255
    table.write_bytes(data)


LEVELDB = {
    "no LevelDB": (shutil.rmtree, "is not a LevelDB (no CURRENT); give its folder"),
    "a table is missing": (lambda folder: next(folder.glob("*.ldb")).unlink(), "cannot be read as LevelDB ("),
    "damaged": (damaged, "cannot be read as LevelDB ("),
    "no list of files": (
        lambda folder: next(folder.glob("MANIFEST-*")).unlink(),
        "cannot be read as LevelDB (",
    ),
}


@pytest.mark.parametrize(("change", "message"), LEVELDB.values(), ids=LEVELDB)
def test_leveldb_that_cannot_be_read(change, message, leveldb, tmp_path):
    change(leveldb)
    with pytest.raises(IlgnetError) as raised:
        convert_leveldb(leveldb, tmp_path / "db")
    assert str(raised.value).startswith(f"{leveldb}: {message}") and "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"level"}


@pytest.mark.parametrize(("key", "what"), [(b"k" * 512, "512"), (b"", "0")], ids=["long", "empty"])
def test_leveldb_keys_that_lmdb_cannot_hold(key, what, tmp_path):
    with plyvel.DB(str(tmp_path / "level"), create_if_missing=True) as database:
        database.put(key, b"x")
    with pytest.raises(DataError, match=rf"row 0 has a key of {what} bytes; LMDB takes 1 to 511$"):
        convert_leveldb(tmp_path / "level", tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_leveldb_needs_its_extra_and_a_new_name(leveldb, tmp_path, monkeypatch):
    (tmp_path / "db").mkdir()
    with pytest.raises(DataError, match=r"db: already exists; remove it or give another name$"):
        convert_leveldb(leveldb, tmp_path / "db")
    monkeypatch.setitem(__import__("sys").modules, "plyvel", None)
    with pytest.raises(DataError, match=r"^LevelDB needs plyvel; pip install 'ilgnet_repro\[leveldb\]'$"):
        list(islice(leveldb_convert._rows(leveldb), 1))
