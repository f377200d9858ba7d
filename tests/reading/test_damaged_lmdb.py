"""A damaged database is one line by name: never a signal, another exception, or rows that are not there."""

import random
import struct

import lmdb
import numpy as np
import pytest

from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.datum import raw_datum
from ilgnet_repro.reading.lmdb_build import build_lmdb
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.lmdb_write import LmdbWriter

PAGE = 4096
META = 4096 + 16  # the newer meta page of a database written in one transaction
ROWS = 300


def stored_rows(size):
    image = np.random.default_rng(size).integers(0, 256, (1, size, 7), np.uint8)
    return [(b"%08d_x" % number, raw_datum(image, number)) for number in range(ROWS)]


@pytest.fixture(scope="module", params=[900, 11], ids=["overflow", "inline"])
def seed(request, tmp_path_factory):
    """A database of two levels whose values lie on overflow pages, and one whose values lie in the leaves."""
    folder = tmp_path_factory.mktemp("seed")
    handle = lmdb.open(str(folder), map_size=1 << 26, lock=False)
    rows = stored_rows(request.param)
    with handle.begin(write=True) as transaction:
        for row in rows:
            transaction.put(*row)
    handle.close()
    return (folder / "data.mdb").read_bytes(), rows


def read_all(folder):
    """Every way of reading; what each gave."""
    reader = LmdbReader(folder)
    rows = [tuple(row) for row in reader]
    heads = [header.label for _, header in reader.headers()]
    one_by_one = [tuple(reader[number]) for number in range(len(reader))]
    by_key = [(row.key, reader.get(row.key).value) for row in reader]
    assert list(map(bytes, reader.keys())) == [key for key, _ in by_key]
    return rows, heads, one_by_one, by_key


def put(tmp_path, data):
    (tmp_path / "data.mdb").write_bytes(data)
    return tmp_path


def test_every_way_of_reading_gives_what_lmdb_stored(seed, tmp_path):
    data, rows = seed
    labels = list(range(ROWS))
    assert read_all(put(tmp_path, data)) == (rows, labels, rows, rows)
    with pytest.raises(IlgnetError, match="has no row 00000001_;"):
        LmdbReader(tmp_path).get(b"00000001_")


def patched(data, at, code, *values):
    out = bytearray(data)
    struct.pack_into(code, out, at, *values)
    return bytes(out)


TREE = META + 24 + 48  # the tree of rows
CASES = {
    "no-content": (lambda d: b"", "is not an LMDB (its first two pages are missing); give the folder of data.mdb"),
    "cut-in-meta": (lambda d: d[:5000], "needed"),
    "cut": (lambda d: d[: len(d) - 5], "data.mdb has {short} of {size} bytes; copy or build it again"),
    "text": (lambda d: b"text " * 3000, "is not an LMDB (its first bytes are not LMDB's)"),
    "big-endian": (lambda d: patched(d, 16, ">I", 0xBEEFC0DE), "is not an LMDB (written on another kind of machine"),
    "32-bit": (lambda d: patched(patched(d, 16, "<I", 1), 12, "<I", 0xBEEFC0DE), "written on another kind of machine"),
    "version": (lambda d: patched(d, META + 4, "<I", 2), "is not an LMDB (format 2; LMDB 0.9 writes 1)"),
    "page-size": (lambda d: patched(d, META + 24, "<I", 0), "data.mdb is damaged (a page size of 0)"),
    "page-sizes": (lambda d: patched(d, META + 24, "<I", 8192), "data.mdb is damaged (two page sizes)"),
    "pages": (lambda d: patched(d, META + 120, "<Q", 2**50), "bytes; copy or build it again"),
    "sorted-otherwise": (lambda d: patched(d, TREE + 4, "<H", 4), "its keys are sorted otherwise than Caffe's (flags 0x4)"),
    "levels": (lambda d: patched(d, TREE + 6, "<H", 999), "data.mdb is damaged (a tree of 999 levels)"),
    "no-levels": (lambda d: patched(d, TREE + 6, "<H", 0), "data.mdb is damaged (a tree of 0 levels)"),
    "too-many-rows": (lambda d: patched(d, TREE + 32, "<Q", 2**60), "data.mdb is damaged (1,152,921,504,606,846,976 rows"),
    "other-rows": (lambda d: patched(d, TREE + 32, "<Q", ROWS + 1), "data.mdb is damaged (300 rows where it states 301)"),
    "root": (lambda d: patched(d, TREE + 40, "<Q", 2**40), "data.mdb is damaged (page 1099511627776 of"),
    "no-root": (lambda d: patched(d, TREE + 40, "<Q", 2**64 - 1), "data.mdb is damaged (0 rows where it states 300)"),
    "root-is-meta": (lambda d: patched(d, TREE + 40, "<Q", 0), "data.mdb is damaged (page 0 of"),
    "zeros": (lambda d: d[: 2 * PAGE] + bytes(PAGE) + d[3 * PAGE :], "(page 2 is not a leaf of its tree)"),
    "row-count": (lambda d: patched(d, 2 * PAGE + 12, "<H", 4097), "(page 2 has no valid number of rows)"),
    "row-offset": (lambda d: patched(d, 2 * PAGE + 16, "<H", 65535), "data.mdb is damaged (page 2, row 0)"),
    "row-order": (lambda d: patched(d, 2 * PAGE + 16, "<HH", *reversed(struct.unpack_from("<HH", d, 8208))), "out of order"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_damage_is_named(name, seed, tmp_path):
    damage, message = CASES[name]
    data = damage(seed[0])
    message = "" if message == "needed" else message.format(short=len(data), size=len(seed[0]))
    with pytest.raises(IlgnetError) as caught:
        read_all(put(tmp_path, data))
    assert str(caught.value).startswith(f"{tmp_path.resolve()}: ") and message in str(caught.value)


def test_pages_that_point_to_each_other_end(seed, tmp_path):
    """The root's second child is the root itself, or its first child again."""
    data, _ = seed
    (root,) = struct.unpack_from("<Q", data, TREE + 40)
    (node,) = struct.unpack_from("<H", data, root * PAGE + 18)
    for child in (
        root,
        struct.unpack_from("<H", data, root * PAGE + struct.unpack_from("<H", data, root * PAGE + 16)[0])[0],
    ):
        with pytest.raises(IlgnetError, match=r"data\.mdb is damaged"):
            read_all(put(tmp_path, patched(data, root * PAGE + node, "<H", child)))


@pytest.mark.parametrize("seed", [900], indirect=True, ids=["overflow"])
def test_values_that_are_not_where_their_rows_say(seed, tmp_path):
    data, rows = seed
    at = data.index(rows[7][1]) - 16
    for code, offset, value in (("<Q", 0, 5), ("<H", 10, 2), ("<I", 12, 0)):
        with pytest.raises(IlgnetError, match=rf"damaged \(page {at // PAGE} does not hold a value of 6,3"):
            read_all(put(tmp_path, patched(data, at + offset, code, value)))


def test_a_file_cut_short_while_it_is_read(seed, tmp_path):
    folder = put(tmp_path, seed[0])
    with pytest.raises(IlgnetError, match=r"data\.mdb is damaged"):
        for _ in LmdbReader(folder):
            with open(folder / "data.mdb", "r+b") as file:
                file.truncate(3 * PAGE)


def test_random_damage(seed, tmp_path):
    """Bytes and pages changed at random: rows, or an IlgnetError; nothing else."""
    draw, refused = random.Random(7), 0
    for _ in range(40):
        data = bytearray(seed[0])
        for _ in range(draw.choice((1, 2, 8))):
            page = PAGE * draw.randrange(len(data) // PAGE)
            kind = draw.randrange(4)
            if kind == 0:
                data[page + draw.randrange(32)] = draw.choice((0, 1, 255, draw.randrange(256)))
            elif kind == 1:
                data[page : page + PAGE] = draw.randbytes(PAGE)
            elif kind == 2:
                data[draw.choice((0, PAGE)) + draw.randrange(180)] = draw.randrange(256)
            else:
                data[draw.randrange(min(4 * PAGE, len(data)))] = draw.randrange(256)
        put(tmp_path, data)
        try:
            read_all(tmp_path)
        except IlgnetError:
            refused += 1
    assert refused > 13


def test_a_damaged_partial_build_is_not_written_to(seed, tmp_path, monkeypatch):
    data, rows = seed
    damages = [
        data[:9000],
        data[:-1],
        patched(data, 2 * PAGE + 10, "<H", 9),
        patched(data, META + 24 + 4, "<H", 1),
    ]
    for damaged in damages:
        with pytest.raises(IlgnetError, match=r"data.mdb (is damaged|has \d+ of \d+ bytes)"):
            LmdbWriter(put(tmp_path, damaged))
        assert (tmp_path / "data.mdb").read_bytes() == damaged
    writer = LmdbWriter(put(tmp_path, data))
    writer.write([(b"00000300_y", b"value")])
    assert writer.last_key() == b"00000300_y"
    writer.close()
    assert [tuple(row) for row in LmdbReader(tmp_path)] == [*rows, (b"00000300_y", b"value")]


@pytest.mark.parametrize(
    "line",
    ["garbage\n", "\0\n", '["x","y","z","w"]\n', '{"a":1}\n', "5\n", "[" * 9000 + "\n", "[1]\n", '[1,2,3,4]\n'],
    ids=["text", "zeros", "types", "object", "number", "deep", "short", "numbers"],
)  # fmt: skip
def test_a_damaged_journal_is_named(line, tmp_path):
    (tmp_path / "list.txt").write_text("missing.png 1\nabsent.png 0\n")
    target = tmp_path / "db"
    with pytest.raises(IlgnetError, match="row 0"):
        build_lmdb(tmp_path, tmp_path / "list.txt", target, strict=True)
    (tmp_path / "db.partial" / "bad.jsonl").write_text(line)
    with pytest.raises(
        IlgnetError, match=r"db.partial: its bad.jsonl is damaged \(line 1\); remove the folder"
    ):
        build_lmdb(tmp_path, tmp_path / "list.txt", target)
