"""AVA.txt: rows, columns, and what is refused; moments against sums over the votes one by one."""

import tracemalloc
from fractions import Fraction
from statistics import fmean, pstdev

import numpy as np
import pytest

from ilgnet_repro.aesthetics.ava import AvaRow, iter_ava, read_ava
from ilgnet_repro.errors import DataError

GOOD = "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396"
ROWS = [
    GOOD,
    "2 953958 10 7 15 26 26 21 10 8 1 2 15 21 1396",
    "3 88 0 0 0 0 7 0 0 0 0 0 0 0 5",
    "4 17 1 0 0 0 0 0 0 0 0 1 66 0 33",
]


def write(tmp_path, text):
    path = tmp_path / "AVA.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    ["\n".join(ROWS) + "\n", "\n".join(ROWS), "\r\n".join(ROWS) + "\r\n", "\n".join(ROWS) + "\n\n \n"],
    ids=["plain", "no-last-newline", "crlf", "blank-at-end"],
)
def test_rows_and_table_agree_with_the_text(tmp_path, text):
    path = write(tmp_path, text)
    wanted = []
    for line in ROWS:
        numbers = [int(field) for field in line.split()]
        wanted.append(AvaRow(numbers[1], tuple(numbers[2:12]), (numbers[12], numbers[13]), numbers[14]))
    assert list(iter_ava(path)) == wanted
    table = read_ava(path)
    assert [table.row(index) for index in range(len(table))] == wanted


@pytest.mark.parametrize("line", ROWS, ids=["953619", "953958", "one-score", "two-extremes"])
def test_moments_equal_those_of_the_single_votes(tmp_path, line):
    path = write(tmp_path, line)
    row, table = next(iter_ava(path)), read_ava(path)
    votes = [score for score, count in enumerate(map(int, line.split()[2:12]), 1) for _ in range(count)]
    shares = [float(Fraction(votes.count(score), len(votes))) for score in range(1, 11)]
    assert row.mean == pytest.approx(fmean(votes), abs=1e-12)
    assert row.std == pytest.approx(pstdev(votes), abs=1e-12)
    assert row.distribution == pytest.approx(shares, abs=1e-15)
    assert table.means[0] == row.mean
    assert table.stds[0] == pytest.approx(pstdev(votes), abs=1e-7)
    assert table.distributions[0].tolist() == pytest.approx(shares, abs=1e-15)


def changed(column, value):
    fields = GOOD.split()
    fields[column - 1] = value
    return " ".join(fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            GOOD.rsplit(" ", 1)[0],
            "14 columns instead of 15 (index, id, ten vote counts, two tags, challenge)",
        ),
        (GOOD + " 7", "16 columns instead of 15 (index, id, ten vote counts, two tags, challenge)"),
        (changed(4, "-1"), "column 4 is '-1'; an integer from 0 to 2147483647 is needed"),
        (changed(5, "2.5"), "column 5 is '2.5'; an integer from 0 to 2147483647 is needed"),
        (changed(6, "1_0"), "column 6 is '1_0'; an integer from 0 to 2147483647 is needed"),
        (
            changed(7, "２"),
            "column 7 is '\\\\xef\\\\xbc\\\\x92'; an integer from 0 to 2147483647 is needed",
        ),
        (changed(2, "2147483648"), "column 2 is '2147483648'; an integer from 0 to 2147483647 is needed"),
        (changed(2, "9" * 500), f"column 2 is '{'9' * 20}'; an integer from 0 to 2147483647 is needed"),
        ("7 99" + " 0" * 10 + " 1 2 3", "image 99 has no votes, so no mean score; remove the row"),
        ("", "blank line between rows; remove it"),
        ("x" * 2000, "longer than 1024 bytes; not an AVA.txt"),
        (ROWS[1], "image 953958 is already at line 2; remove one of them"),
    ],
    ids=[
        "too-few",
        "too-many",
        "negative",
        "fraction",
        "underscore",
        "wide-digit",
        "33-bits",
        "500-digits",
        "no-votes",
        "blank",
        "long-line",
        "twice",
    ],
)
def test_a_bad_row_is_reported_with_file_and_line(tmp_path, line, message):
    path = write(tmp_path, "\n".join([ROWS[0], ROWS[1], line, ROWS[2]]))
    with pytest.raises(DataError) as error:
        read_ava(path)
    assert str(error.value) == f"{path}:3: {message}"


@pytest.mark.parametrize("text", [b"", b"\n \n"], ids=["empty", "blank"])
def test_a_file_without_rows_is_refused(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_ava(path)
    assert str(error.value) == f"{path}: no rows; give the path of AVA.txt"


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"AVA.txt: cannot be read \(No such file or directory\)"):
        read_ava(tmp_path / "AVA.txt")


def test_the_streaming_readers_memory_does_not_grow_with_rows(tmp_path):
    path = write(tmp_path, "".join(f"{i} {i} 0 1 5 17 38 36 15 6 5 1 1 22 1396\n" for i in range(1, 20_001)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_ava(path)) == 20_000
        streamed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        table = read_ava(path)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert streamed < 200_000  # ten bytes per row
    assert held < 20_000 * 100
    assert np.array_equal(table.ids, np.arange(1, 20_001))
