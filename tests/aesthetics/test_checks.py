"""Checks of lists and images; the authors' own lists where they are on the machine."""

import argparse
import json

import cv2
import numpy as np
import pytest

from ilgnet_repro.aesthetics.partition_checks import (
    check_images,
    check_list,
    contamination,
    list_names,
    warn_contaminated,
)
from ilgnet_repro.aesthetics.releases import find_release
from ilgnet_repro.cli import partition as command
from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.image_list import ImageList


@pytest.mark.parametrize(
    ("rows", "sizes", "order", "duplicates"),
    [
        ("a.jpg 0\nb.jpg 0\nc.jpg 1\n", {0: 2, 1: 1}, (True, 2), ()),
        ("a.jpg 1\nb c.jpg 0\nd.jpg 1", {0: 1, 1: 2}, (False, 1), ()),
        ("a.jpg 0\nb.jpg 0\n", {0: 2}, (False, 2), ()),
        ("a.jpg 1\nb.jpg 0\na.jpg 0\na.jpg 0\n", {0: 3, 1: 1}, (True, 1), ("a.jpg",)),
    ],
    ids=["sorted", "mixed", "one-class", "twice"],
)
def test_contents_of_a_list(tmp_path, rows, sizes, order, duplicates):
    path = tmp_path / "list.txt"
    path.write_text(rows)
    report = check_list(path)
    assert (report.class_sizes, (report.sorted_by_class, report.first_run)) == (sizes, order)
    assert (report.rows, report.duplicates, report.release) == (sum(sizes.values()), duplicates, None)
    assert (report.order_note is None) == (not order[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", ": no rows; write `path label` lines"), ("a.jpg 0\nb.jpg\n", ":2: 'b.jpg' is not a row")],
    ids=["empty", "no-label"],
)
def test_bad_lists(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        check_list(path)
    assert str(error.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("name", "path", "sizes", "order"),
    [
        ("ava1-train", "AVA1/train.txt", {0: 70_673, 1: 164_856}, (True, 70_673)),
        ("ava1-val", "AVA1/val.txt", {0: 4_000, 1: 16_000}, (True, 4_000)),
        ("ava2-train", "AVA2/train.txt", {0: 12_722, 1: 12_831}, (False, 1)),
        ("ava2-val", "AVA2/val.txt", {0: 12_831, 1: 12_722}, (False, 1)),
    ],
    ids=["ava1-train", "ava1-val", "ava2-train", "ava2-val"],
)
def test_the_authors_lists(authors, name, path, sizes, order):
    report = check_list(authors / "data" / path)
    release = find_release(name)
    assert (report.release, report.sha256, report.rows) == (name, release.sha256, release.rows)
    assert (report.class_sizes, report.duplicates) == (sizes, ())
    assert (report.sorted_by_class, report.first_run) == order
    if name == "ava1-val":
        assert "its first 4,000 rows are all label 0" in report.order_note


@pytest.mark.parametrize(
    ("train", "val", "shared"),
    [
        ("AVA1/train.txt", "AVA1/val.txt", 0),
        ("AVA2/train.txt", "AVA2/val.txt", 0),
        ("AVA1/train.txt", "AVA2/val.txt", 23_768),
        ("AVA1/train.txt", "AVA2/train.txt", 23_735),
        ("AVA2/train.txt", "AVA1/val.txt", 1_818),
    ],
    ids=["within-ava1", "within-ava2", "ava1-on-ava2-val", "ava1-on-ava2-train", "ava2-on-ava1-val"],
)
def test_overlap_of_the_authors_lists(authors, train, val, shared):
    folder = authors / "data"
    assert contamination(list_names(folder / train), list_names(folder / val)) == shared


CONTAMINATED = (
    "ava1-weights were trained on 23,768 of the 25,553 images of ava2-val (93.0%), "
    "so this is no test of them; use ava1-val"
)


@pytest.mark.parametrize(
    ("weights", "partition", "warning"),
    [
        ("ava1-weights", "ava2-val", CONTAMINATED),
        (
            "ava2-weights",
            "ava2-train",
            "ava2-weights were trained on 25,553 of the 25,553 images of ava2-train (100.0%), "
            "so this is no test of them; use ava2-val",
        ),
        (
            "ava2-weights",
            "ava1-val",
            "ava2-weights were trained on 1,818 of the 20,000 images of ava1-val (9.1%), "
            "so this is no test of them; use ava2-val",
        ),
        ("ava1-weights", "ava1-val", None),
        ("ava2-weights", "ava2-val", None),
        (None, "ava2-val", None),
        ("ava1-weights", None, None),
        ("ava1-mean", "ava2-val", None),
        ("ava1-weights", "ava1-mean", None),
    ],
    ids=["1-on-2", "own-train", "2-on-1", "1-on-1", "2-on-2", "own-weights", "own-list", "mean", "no-list"],
)
def test_contamination_is_warned_of(weights, partition, warning):
    releases = [name and find_release(name) for name in (weights, partition)]
    assert warn_contaminated(*releases) == warning


@pytest.fixture
def images(tmp_path):
    """A folder of good and bad images, and the list of them."""
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    jpeg, png = (cv2.imencode(kind, image)[1].tobytes() for kind in (".jpg", ".png"))
    files = {
        "good.jpg": jpeg,
        "trailing.jpg": jpeg + b"\0" * 9,
        "a space.png": png,
        "cut.jpg": jpeg[: len(jpeg) * 3 // 4],
        "text.jpg": b"<html>not found</html>",
        "empty.jpg": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{name} {row % 2}\n" for row, name in enumerate([*files, "absent.jpg"])))
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_images_are_classified(images, workers):
    progress = []
    report = check_images(ImageList(images), images.parent, workers, progress.append)
    assert report.missing == ("absent.jpg",)
    assert report.corrupt == ("text.jpg", "empty.jpg")
    assert report.truncated == ("cut.jpg",)
    assert (report.checked, progress) == (7, list(range(1, 8)))


def test_a_list_of_windows_names_the_same_images(images):
    (images.parent / "sub").mkdir()
    (images.parent / "cut.jpg").rename(images.parent / "sub" / "cut.jpg")
    images.write_bytes(b"sub\\cut.jpg 0\r\nsub\\absent.jpg 1\r\n")
    report = check_images(ImageList(images), images.parent)
    assert (report.truncated, report.missing) == (("sub\\cut.jpg",), ("sub\\absent.jpg",))


def ilgnet(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.run(parser.parse_args(["partition", "check", *map(str, words)]))


def test_the_command_reports_and_lists_bad_images(images, capsys):
    bad = images.parent / "bad.txt"
    words = [images, "--pictures", images.parent, "--bad", bad]
    assert ilgnet(*words) == 1
    text = capsys.readouterr().out
    assert "  1 image (absent.jpg) missing, of 7\n" in text
    assert "  2 images (text.jpg, empty.jpg) corrupt, of 7\n" in text
    assert bad.read_text() == "absent.jpg missing\ntext.jpg corrupt\nempty.jpg corrupt\ncut.jpg truncated\n"
    assert ilgnet(*words, "--json") == 1
    assert json.loads(capsys.readouterr().out)["lists"][0]["pictures"]["truncated"] == ["cut.jpg"]


@pytest.mark.parametrize(
    ("second", "code", "shared"),
    [("c.jpg 0\nd.jpg 1\n", 0, 0), ("b.jpg 0\nd.jpg 1\n", 1, 1)],
    ids=["apart", "overlap"],
)
def test_the_command_reports_overlap(tmp_path, capsys, second, code, shared):
    first, other = tmp_path / "train.txt", tmp_path / "val.txt"
    first.write_text("a.jpg 0\nb.jpg 1\n")
    other.write_text(second)
    assert ilgnet(first, other) == code
    assert capsys.readouterr().out.endswith(f"{shared} rows of {other} are in {first}\n")
    assert ilgnet(first, other, "--json") == code
    progress = json.loads(capsys.readouterr().out)
    assert (progress["overlaps"], progress["faulty"]) == (
        [{"lists": [str(first), str(other)], "rows": shared}],
        bool(code),
    )


def test_a_list_of_bad_images_needs_the_images(tmp_path):
    with pytest.raises(DataError) as error:
        ilgnet(tmp_path / "list.txt", "--bad", "bad.txt")
    assert str(error.value) == "--bad bad.txt: needs the images; add --pictures DIR"
