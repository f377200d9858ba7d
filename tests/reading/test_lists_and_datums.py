"""Rows: of list files, of databases, and the means over them, good and damaged."""

import pickle

import cv2
import numpy as np
import pytest

from ilgnet_repro.errors import DataError, FormatError, IlgnetError, printable
from ilgnet_repro.reading.datum import datum_header, datum_image, encoded_datum, parse_datum, raw_datum
from ilgnet_repro.reading.image_list import ImageList, image_path
from ilgnet_repro.reading.lmdb_check import check_lmdb
from ilgnet_repro.reading.lmdb_export import export_lmdb
from ilgnet_repro.reading.lmdb_read import LmdbReader, row_key, split_key
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.reading.mean import compute_mean, read_mean
from ilgnet_repro.reading.rows import ListRows
from ilgnet_repro.schema import caffe_pb2

PICTURE = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)


def database(folder, rows):
    writer = LmdbWriter(folder)
    writer.write(rows)
    writer.close()
    return folder


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a.jpg 0\nb.jpg 1\n", [("a.jpg", 0), ("b.jpg", 1)]),
        ("sub dir/with space.png 3", [("sub dir/with space.png", 3)]),
        ("a.jpg\t-2\r\nb  1  \r\n\n \n", [("a.jpg", -2), ("b", 1)]),
        ("é.jpg 7\n", [("é.jpg", 7)]),
        ("", []),
        ("\ufeffa.jpg 4\nb.jpg 5\n", [("a.jpg", 4), ("b.jpg", 5)]),
        ("\ufeff", []),
        ("a.jpg\r\nb.jpg 2\r\n", [("a.jpg", 0), ("b.jpg", 2)]),
        # Caffe's atoi of the whole row
        ("12.jpg\n-3x.jpg\nsub/7.jpg", [("12.jpg", 12), ("-3x.jpg", -3), ("sub/7.jpg", 0)]),
        ("a.jpg 5.0\nb.jpg 6.\n", [("a.jpg", 5), ("b.jpg", 6)]),
        ('"a.jpg" 1\n', [('"a.jpg"', 1)]),
    ],
    ids=[
        "plain",
        "spaces",
        "tabs-and-crlf",
        "utf8",
        "empty",
        "byte-order-mark",
        "byte-order-mark-alone",
        "no-label",
        "no-label-but-digits",
        "whole-floats",
        "quotes",
    ],
)
def test_list_rows(text, rows, tmp_path):
    (tmp_path / "list.txt").write_bytes(text.encode())
    images = ImageList(tmp_path / "list.txt")
    assert list(images) == rows and len(images) == len(rows)
    assert list(pickle.loads(pickle.dumps(images))) == rows  # noqa: S301 (our own bytes, as a worker gets them)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\n\nb.jpg 1\n", r"list.txt:2: '' is not a row"),
        ("a.jpg 0.5\n", r"list.txt:1: label '0.5' is not an integer"),
        ("a.jpg 3000000000\n", r"list.txt:1: label '3000000000' is not an integer"),
        (
            "a.jpg 0.25\n",
            r"list.txt:1: label '0.25' is not an integer; round it, or store such labels as HDF5Data$",
        ),
        (
            "a.jpg 1,0,2\n",
            r"list.txt:1: label '1,0,2' is not an integer; give one label per row, or store them as HDF5",
        ),
        (
            "a.jpg 0.5 1.5\n",
            r"list.txt:1: label '1.5' is not an integer; give one label per row, or store them as HDF5",
        ),
        ("a.jpg 0\rb.jpg 1\r", r"list.txt: its lines end in carriage returns alone; end them in line feeds$"),
        ("a.jpg 0\n".encode("utf-16"), r"list.txt: is UTF-16 text; save it as UTF-8$"),
        ("a.jpg 0\n".encode("utf-16-le"), r"list.txt:1: has a zero byte; save the list as UTF-8 text$"),
        (b"\x89PNG\r\n\x1a\n", r"list.txt: is a PNG image, not an image list; give rows of `path label`$"),
        ("hello there\n", r"list.txt:1: label 'there' is not an integer; write `path label`$"),
    ],
    ids=[
        "blank-line",
        "fraction",
        "too-large",
        "float",
        "commas",
        "several-floats",
        "old-mac",
        "utf-16",
        "utf-16-without-mark",
        "an-image",
        "prose",
    ],
)
def test_bad_list_rows(text, message, tmp_path):
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IlgnetError, match=message):
        list(ImageList(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a.jpg 1\nb.jpg 2\n", None),
        (
            "a.jpg 1\nb.jpg\nc.jpg \n",
            "2 rows have no label, the first in line 2 (b.jpg); its label is 0, as in Caffe",
        ),
        (
            "\ufeff31.jpg\n",
            "1 rows have no label, the first in line 1 (31.jpg); its label is the number that its name starts with, 31, "
            "as in Caffe",
        ),
    ],
    ids=["labelled", "some", "digits"],
)
@pytest.mark.parametrize("seed", [None, 5], ids=["in-order", "shuffled"])
def test_rows_without_a_label_are_said(text, note, seed, tmp_path):
    (tmp_path / "list.txt").write_text(text)
    images = ImageList(tmp_path / "list.txt", seed)
    assert images.notes() == ([] if note is None else [f"{tmp_path}/list.txt: {note}"])
    if note is None:
        images.check_labels()
    else:
        with pytest.raises(DataError, match=r"list.txt:[12]: '.*' is not a row; write `path label`$"):
            images.check_labels()


NOT_FOUND = {  # rows whose image is there under another name: the reason beside "no such file"
    "labels": (
        "p.png 0 1 0",
        "",
        "its row has several labels (0 1 0): give one label per row, or store them as HDF5Data",
    ),
    "float labels": (
        "p.png 0.5 1.5 2",
        "",
        "its row has several labels (0.5 1.5 2): give one label per row, or",
    ),
    "tabs": ("p.png\t3\t4", "", "its row has several labels (3 4): give one label"),
    "csv": ("p.png,3", "", "write a space between path and label"),
    "quotes": ('"p.png" 3', "", "its path is in quotation marks: remove them from the list"),
    "absolute": (
        "{here}/p.png 3",
        "{here}",
        "its path in the list is absolute: give / as the folder of the images",
    ),
    "absent": ("q.png 3", "", None),
}


@pytest.mark.parametrize(("row", "root", "why"), NOT_FOUND.values(), ids=NOT_FOUND)
def test_a_missing_image_and_what_its_row_shows(row, root, why, tmp_path):
    row, root = row.format(here=tmp_path), root.format(here=tmp_path)
    cv2.imwrite(str(tmp_path / "p.png"), PICTURE.transpose(1, 2, 0))
    (tmp_path / "list.txt").write_text(row)
    rows = ListRows(tmp_path / "list.txt", root, base=tmp_path)
    with pytest.raises(DataError) as raised:
        rows.image(0)
    name = rows.name(0)
    path = f"{root}/{name}" if root else tmp_path / name
    ending = f"no such file; {why}" if why else "no such file; remove the row or replace the image"
    assert str(raised.value).startswith(f"{printable(str(path))}: {ending}")


FOUND = {  # a row, the folder of the images, the base without one
    "relative": ("sub/p.png 1", "", "{here}"),
    "absolute": ("{here}/sub/p.png 1", "", "{here}/elsewhere"),
    "absolute under the root": ("{here}/sub/p.png 1", "/", "{here}/elsewhere"),
    "under a folder": ("p.png 1", "{here}/sub/", "."),
    "under a folder without a slash": ("p.png 1", "{here}/sub", "."),
    "a prefix of the names": (".png 1", "{here}/sub/p", "."),
    "separators of Windows": ("sub\\p.png 1", "", "{here}"),
    "a folder of Windows": ("p.png 1", "{here}\\sub\\", "."),
}


@pytest.mark.parametrize(("row", "root", "base"), FOUND.values(), ids=FOUND)
def test_where_a_lists_images_are(row, root, base, tmp_path):
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "sub" / "p.png"), PICTURE.transpose(1, 2, 0))
    (tmp_path / "list.txt").write_text(row.format(here=tmp_path))
    rows = ListRows(tmp_path / "list.txt", root.format(here=tmp_path), base=base.format(here=tmp_path))
    image, label = rows.image(0)
    assert np.array_equal(image, PICTURE) and label == 1


def test_list_larger_than_a_block(tmp_path):
    rows = [(f"{'x' * (number % 50)}{number}.jpg", number % 5) for number in range(60_000)]
    (tmp_path / "list.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    assert (tmp_path / "list.txt").stat().st_size > 2 << 20
    assert list(ImageList(tmp_path / "list.txt")) == rows
    assert (
        sorted(ImageList(tmp_path / "list.txt", 3))
        == sorted(rows)
        != list(ImageList(tmp_path / "list.txt", 3))
    )


@pytest.mark.parametrize(
    ("root", "path"), [("a/", "a/b.jpg"), ("a", "a/b.jpg"), ("", "b.jpg")], ids=["slash", "none", "no-root"]
)
def test_roots_are_joined_as_in_caffe(root, path):
    assert image_path(root, "b.jpg") == path


def test_keys():
    assert row_key(12, "a b/c.jpg") == b"00000012_a b/c.jpg" and split_key(b"123456789_x_y") == (
        123456789,
        "x_y",
    )
    with pytest.raises(DataError, match="not a key of convert_imageset"):
        split_key(b"12_x")


@pytest.mark.parametrize("label", [0, 5, -3])
def test_datum_bytes_are_what_protobuf_writes(label):
    raw = caffe_pb2.Datum(channels=3, height=5, width=7, data=PICTURE.tobytes(), label=label, encoded=False)
    assert raw_datum(PICTURE, label) == raw.SerializeToString(deterministic=True)
    assert datum_header(memoryview(raw_datum(PICTURE, label)), "x") == (label, "raw", (3, 5, 7), 105)
    encoded = encoded_datum(b"\x89PNG...", label)
    assert datum_header(memoryview(encoded), "x") == (label, "png", None, 7)
    assert parse_datum(encoded, "x").HasField("channels") is False


def test_float_data_round_trip():
    values = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    datum = parse_datum(raw_datum(values, 1), "x")
    assert np.array_equal(datum_image(datum, "x"), values) and datum_image(datum, "x").dtype == np.float32
    assert datum_header(memoryview(datum.SerializeToString()), "x").kind == "float"


def test_force_color_on_raw_rows_warns():
    with pytest.warns(UserWarning, match="have no effect on rows that are not encoded"):
        image = datum_image(parse_datum(raw_datum(PICTURE, 1), "x"), "x", colour=False)
    assert np.array_equal(image, PICTURE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff\xff", "row: is not a Datum"),
        (
            caffe_pb2.Datum(channels=3, height=5, width=7, data=b"123").SerializeToString(),
            "has 3 values where 3x5x7",
        ),
        (
            caffe_pb2.Datum(channels=3, height=-1, width=7).SerializeToString(),
            "shape 3x-1x7 is not valid",
        ),
        (caffe_pb2.Datum(channels=1 << 30, height=1, width=1).SerializeToString(), "is not valid"),
        (encoded_datum(b"\x89PNG", 0), "the encoded image cannot be decoded"),
        (encoded_datum(b"", 0), "the encoded image cannot be decoded"),
        (encoded_datum(cv2.imencode(".png", np.zeros((2, 3), np.uint16))[1].tobytes(), 0), "has type uint16"),
    ],
    ids=["not-protobuf", "short", "negative", "huge", "bad-png", "empty", "sixteen-bit"],
)
def test_damaged_datums(value, message):
    with pytest.raises(DataError, match=message):
        datum_image(parse_datum(value, "row"), "row")


def test_check_names_every_fault(tmp_path):
    good, bad = raw_datum(PICTURE, 1), raw_datum(PICTURE, 9)
    rows = [
        (b"00000000_a", good),
        (b"00000001_b", b"\xff"),
        (b"00000001_c", good),
        (b"00000003_d", bad),
        (b"x", good),
    ]
    (tmp_path / "list.txt").write_text("a 0\nB 1\nc 1\nd 9\ne 1\n")
    found = check_lmdb(database(tmp_path / "db", rows), images=ImageList(tmp_path / "list.txt"), labels=2)
    assert (found.rows, found.fault_count, len(found.faults)) == (5, 9, 9)
    for words in (
        "00000000_a: label 1 where the list has 0",
        "00000001_b: is not a Datum",
        "00000001_b: the list's row is B",
        "00000001_c: a second row with number 1",
        "00000001_c: the list's row is B",
        "00000003_d: label 9 is not in 0..1",
        "row 2 (c) of the list is missing",
        "x: is not a key of convert_imageset",
        "row 4 (e) of the list is missing",
    ):
        assert sum(fault.startswith(words) for fault in found.faults) == 1, words


def test_database_cut_short_or_absent_or_garbage(golden, tmp_path):
    data = (golden / "pipeline" / "raw64_lmdb" / "data.mdb").read_bytes()
    for name, content in (("short", data[: len(data) // 2]), ("garbage", b"x" * 9000), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").write_bytes(content)
    with pytest.raises(DataError, match=r"data.mdb has 202752 of 405504 bytes; copy or build it again"):
        len(LmdbReader(tmp_path / "short"))
    for name in ("garbage", "empty"):
        with pytest.raises(DataError, match="is not an LMDB"):
            len(LmdbReader(tmp_path / name))
    with pytest.raises(DataError, match=r"is not an LMDB \(no data.mdb\)"):
        LmdbReader(tmp_path)


def test_reader_by_number_and_key(golden):
    reader = LmdbReader(golden / "pipeline" / "raw64_lmdb")
    rows = list(reader)
    assert [reader[number] for number in (23, 0, 5)] == [rows[23], rows[0], rows[5]]
    assert list(reader.keys()) == [row.key for row in rows]
    assert reader.get(rows[3].key) == rows[3]
    with pytest.raises(IndexError):
        reader[24]
    with pytest.raises(DataError, match="has no row nothing"):
        reader.get(b"nothing")


def test_iterators_of_one_reader_do_not_disturb_each_other(golden):
    path = golden / "pipeline" / "raw64_lmdb"
    rows = list(LmdbReader(path))
    reader = LmdbReader(path)
    assert list(reader) == rows and list(reader.keys()) == [row.key for row in rows]
    assert [head.label for _, head in reader.headers()] == [row.datum().label for row in rows]
    first, second = iter(reader), iter(reader)
    assert [(a.key, b.key) for a, b in zip(first, second, strict=True)] == [(r.key, r.key) for r in rows]


def test_mean_over_many_rows_is_exact_and_caffes_rounding_is_not(tmp_path):
    """Sums past 2**24 lose units in float32; a slow loop in float32 serves as Caffe's."""
    values = np.random.default_rng(0).choice(np.array([16_777_213.0, 3.0, 1.0], np.float32), (9, 1, 2, 3))
    values[0] = 16_777_213
    rows = [(b"%08d_x" % number, raw_datum(value, 0)) for number, value in enumerate(values)]
    path = database(tmp_path / "db", rows)
    exact = (values.astype(np.float64).sum(0) / 9).astype(np.float32)
    total = np.zeros((1, 2, 3), np.float32)
    for value in values:
        total += value
    assert np.array_equal(compute_mean(path).image, exact)
    assert np.array_equal(compute_mean(path, caffe_rounding=True).image, total / np.float32(9))
    assert not np.array_equal(exact, total / np.float32(9))


def test_mean_refuses_unequal_sizes_and_no_rows(golden, tmp_path):
    with pytest.raises(DataError, match=r"00000001_0001.jpg is 3x81x108, the first row 3x65x103; build it"):
        compute_mean(golden / "pipeline" / "raw_native_lmdb")
    with pytest.raises(DataError, match="has no rows"):
        compute_mean(database(tmp_path / "empty", []))


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("m.npy", b"not numpy", DataError),
        ("m.binaryproto", b"\xff\xff\xff", FormatError),
        ("absent.npy", None, DataError),
        ("absent.binaryproto", None, IlgnetError),
    ],
)
def test_bad_mean_files(name, content, error, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name):
        read_mean(tmp_path / name)


def test_a_pickled_mean_file_is_not_opened(tmp_path):
    np.save(tmp_path / "m.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="is not an npy file"):
        read_mean(tmp_path / "m.npy")


def test_exported_files_and_list_rebuild_the_database(golden, tmp_path):
    source = golden / "pipeline" / "raw64_lmdb"
    assert export_lmdb(source, tmp_path / "out") == 24
    from ilgnet_repro.reading.lmdb_build import build_lmdb

    build_lmdb(tmp_path / "out", tmp_path / "out" / "list.txt", tmp_path / "db")
    assert [row.value for row in LmdbReader(tmp_path / "db")] == [row.value for row in LmdbReader(source)]
    names = [row.path for row in ImageList(tmp_path / "out" / "list.txt")]
    assert names[1] == "0001.jpg.png" and names[12] == "sub dir/with space.png"


def test_export_keeps_each_row_where_names_collide(tmp_path):
    """The name made from the third row's number is that of the first row's path."""
    keys = (b"00000000_00000002_a.png", b"00000001_a.png", b"00000002_a.png")
    images = [np.full((3, 4, 5), number, np.uint8) for number in range(3)]
    path = database(
        tmp_path / "db", [(key, raw_datum(image, 0)) for key, image in zip(keys, images, strict=True)]
    )
    assert export_lmdb(path, tmp_path / "out") == 3
    names = ["00000002_a.png", "a.png", "00000002_00000002_a.png"]
    assert (tmp_path / "out" / "list.txt").read_text() == "".join(f"{name} 0\n" for name in names)
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(cv2.imread(str(tmp_path / "out" / name)), image.transpose(1, 2, 0))


def test_export_keeps_encoded_bytes_and_separates_duplicates(tmp_path):
    png = cv2.imencode(".png", PICTURE.transpose(1, 2, 0))[1].tobytes()
    floats = np.ones((2, 3, 4), np.float32)
    rows = [
        (b"00000000_/a/b.png", encoded_datum(png, 1)),
        (b"00000001_a/b.png", encoded_datum(png, 2)),
        (b"00000002_f", raw_datum(floats, 3)),
    ]
    export_lmdb(database(tmp_path / "db", rows), tmp_path / "out")
    assert (tmp_path / "out" / "list.txt").read_text() == "a/b.png 1\n00000001_b.png 2\nf.npy 3\n"
    assert (tmp_path / "out" / "a" / "b.png").read_bytes() == png
    assert np.array_equal(np.load(tmp_path / "out" / "f.npy"), floats)


def test_export_writes_only_into_its_folder(tmp_path):
    path = database(tmp_path / "db", [(b"00000000_../evil.png", raw_datum(PICTURE, 0))])
    with pytest.raises(DataError, match="leaves the folder"):
        export_lmdb(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["db"]
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out: already exists"):
        export_lmdb(path, tmp_path / "out")
