"""Folders and CSVs of labelled images, and how they are divided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ilgnet_repro.errors import DataError
from ilgnet_repro.finetune.dataset import Split, read_examples


def touch(folder: Path, *names: str) -> Path:
    """Create empty files: what is in an image is read later."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def by_class(split: Split) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in split.names}
    for one in (*split.train, *split.val):
        found[split.names[int(one.target[0])]].append(one.path)
    return {name: sorted(paths) for name, paths in found.items()}


def test_a_folder_per_class(tmp_path: Path) -> None:
    names = [f"cat/{n}.jpg" for n in range(10)] + [f"a dog/deep/{n}.PNG" for n in range(5)]
    touch(
        tmp_path,
        *names,
        "cat/notes.txt",
        "cat/.hidden.jpg",
        "a dog/x.heic",
        "loose.png",
        ".git/x.jpg",
        "README",
    )
    split = read_examples(tmp_path)
    assert (split.task, split.names, split.root, split.outputs) == (
        "classes",
        ("a dog", "cat"),
        str(tmp_path),
        2,
    )
    assert by_class(split) == {
        "a dog": [f"a dog/deep/{n}.PNG" for n in range(5)], "cat": [f"cat/{n}.jpg" for n in range(10)],
    }  # fmt: skip
    # A fifth of each class.
    assert sorted(os.path.dirname(one.path) for one in split.val) == ["a dog/deep", "cat", "cat"]
    assert [note.partition(": ")[2] for note in split.notes] == [
        "1 images outside of the class folders are left out",
        "2 files that are no images are left out (1 .heic, 1 .txt)",
    ]


def test_the_split_follows_from_images_share_and_seed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{n}.jpg" for name in "abc" for n in range(12)))
    split = read_examples(tmp_path, seed=4)
    assert read_examples(tmp_path, seed=4) == split
    assert {one.path for one in split.val}.isdisjoint(one.path for one in split.train)
    other, larger = read_examples(tmp_path, seed=5), read_examples(tmp_path, val=0.5, seed=4)
    assert set(other.val) != set(split.val)
    assert (len(split.val), len(larger.val)) == (6, 18)
    # Rows of one class do not follow each other in training: data layers read in order.
    labels = [one.target[0] for one in split.train]
    assert labels != sorted(labels)


def test_folders_that_are_divided_already(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(
            f"{part}/{name}/{n}.jpg"
            for part, count in (("train", 3), ("val", 2))
            for name in "ab"
            for n in range(count)
        ),
    )
    split = read_examples(tmp_path)
    assert sorted(one.path for one in split.train) == [
        f"train/{name}/{n}.jpg" for name in "ab" for n in range(3)
    ]
    assert [one.path for one in split.val] == [f"val/{name}/{n}.jpg" for name in "ab" for n in range(2)]
    touch(tmp_path, "val/c/0.jpg")
    with pytest.raises(
        DataError, match="class c is in only one of train and val; give both the same classes"
    ):
        read_examples(tmp_path)


def test_a_class_of_one_image(tmp_path: Path) -> None:
    split = read_examples(touch(tmp_path, "a/0.jpg", "b/0.jpg", "b/1.jpg"))
    assert sorted(one.path for one in split.train)[0] == "a/0.jpg" and len(split.val) == 1
    assert split.notes == ("class a has one image, which is a train image",)


CSVS = {
    "classes": ("path,label\nx/a.jpg,good\nx/b.jpg,bad\nx/c.jpg,good\n", "classes", ("bad", "good"), ()),
    "integers, without a head": ("a.jpg,10\nb.jpg,9\nc.jpg,10\n", "classes", ("9", "10"), ()),
    "semicolons and a byte order mark": ("\ufeffimage;score\na.jpg;1.5\nb.jpg;-2\nc.jpg;3\n", "score", (), ()),
    "quoted paths": ('"a, b.jpg","x"\n"c.jpg","y"\n\nd.jpg,x\n', "classes", ("x", "y"), ()),
    "a number among classes": ("a.jpg,x\nb.jpg,1.5\nc.jpg,x\n", "classes", ("1.5", "x"), ()),
    "votes": ("a.jpg,1,3\nb.jpg,2,2\nc.jpg,0,1\n", "distribution", ("1", "2"), (1.0, 2.0)),
    "votes with named scores": ("path,0.5,4\na.jpg,1,3\nb.jpg,2,2\n", "distribution", ("0.5", "4"), (0.5, 4.0)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "task", "names", "values"), CSVS.values(), ids=CSVS)
def test_a_csv(
    text: str, task: str, names: tuple[str, ...], values: tuple[float, ...], tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    split = read_examples(path)
    assert (split.task, split.names, split.values, split.root) == (task, names, values, str(tmp_path))
    assert len(split.train) + len(split.val) == 2 + text.count("c.jpg")
    if task == "distribution":
        targets = {one.path: one.target for one in (*split.train, *split.val)}
        assert targets["a.jpg"] == (0.25, 0.75) and targets["b.jpg"] == (0.5, 0.5)
    elif task == "score":
        assert {one.path: one.target for one in (*split.train, *split.val)}["b.jpg"] == (-2.0,)


def test_integers_as_scores_and_paths_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{tmp_path}/a.jpg,3\nb.jpg,5\n")
    split = read_examples(path, task="score")
    assert {one.path: one.target for one in (*split.train, *split.val)} == {"a.jpg": (3.0,), "b.jpg": (5.0,)}


WRONG = {
    "one cell": ("a.jpg\nb.jpg\n", None, ":1: has 1 cells; write a path, then its label"),
    "cells": ("a.jpg,1.5\nb.jpg,1,2\n", None, ":2: has 3 cells where others have 2; write a path"),
    "no rows": ("path,label\n", None, ": has no rows; write rows of path and label"),
    "one class": ("a.jpg,x\nb.jpg,x\n", None, ": has one class, x; give at least two"),
    "a score": ("a.jpg,1.5\nb.jpg,high\n", "score", ":2: 'high' is not a finite number; correct the row"),
    "a score among numbers": ("a.jpg,1.5\nb.jpg,high\nc.jpg,2\n", None, ":2: 'high' is not a finite number; correct"),
    "NaN": ("a.jpg,1.5\nb.jpg,2\nc.jpg,nan\n", None, ":3: 'nan' is not a finite number; correct the row"),
    "decimal commas": ("a.jpg;1,5\nb.jpg;2,5\n", None, ":1: '1,5' is not a finite number; write 1.5"),
    "a label per image": ("a.jpg,x\nb.jpg,y\n", None, ": no class has two images, of which one could be held out"),
    "one image": ("a.jpg,1.5\n", None, ": all scores are equal; there is nothing to learn"),
    "infinite": ("a.jpg,inf\nb.jpg,1.5\n", "score", ":1: 'inf' is not a finite number; correct the row"),
    "negative votes": ("a.jpg,1,-2\nb.jpg,1,2\n", None, ":1: '-2' is not a number of votes or a share, 0 or more"),
    "no votes": ("a.jpg,1,2\nb.jpg,0,0\n", None, ":2: its votes add up to 0; correct or remove the row"),
    "several labels": ("a.jpg,1,2\nb.jpg,1,2\n", "classes", ":1: has 2 labels; give one per row, or --task dist"),
    "one vote": ("a.jpg,1\nb.jpg,2\n", "distribution", ":1: give a number for each score, at least two, in a row"),
    "twice": ("a.jpg,x\nb.jpg,y\na.jpg,y\n", None, ": a.jpg is listed 2 times; list an image once"),
    "equal": ("a.jpg,2.5\nb.jpg,2.5\n", None, ": all scores are equal; there is nothing to learn"),
    "zero byte": ("a.jpg,x\0\n", None, ": is not a CSV file; write rows of path and label"),
    "empty class": ("a.jpg,\nb.jpg,x\n", None, ": class '' is empty or has a line break, or spaces"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "task", "message"), WRONG.values(), ids=WRONG)
def test_a_csv_that_cannot_be_learned_from(text: str, task: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_examples(path, task=task)
    assert str(error.value).startswith(f"{path}{message}"), error.value


FOLDERS = {
    "no class": (("0.jpg",), "needs a folder per class, at least two (none there); or give a CSV of path and label"),
    "one class": (("a/0.jpg",), "needs a folder per class, at least two (only a there)"),
    "an empty class": (("a/0.jpg", "a/1.jpg", "b/x.txt"), "contains no images; add some, or remove the folder"),
    "too few": (("a/0.jpg", "b/0.jpg"), "no class has two images, of which one could be held out for val; give more images"),
    "a class name": (("a /0.jpg", "b/0.jpg"), "class 'a ' is empty or has a line break, or spaces at its ends"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_learned_from(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_examples(touch(tmp_path, *names))
    assert message in str(error.value), error.value


def test_names_that_no_list_can_hold_are_named(tmp_path: Path) -> None:
    split = read_examples(
        touch(tmp_path, "a/x\ny.jpg", *(f"{name}/{n}.jpg" for name in "ab" for n in range(3)))
    )
    assert split.notes == ("a/x\\ny.jpg: left out, its name has a line break, or spaces at its ends",)
    assert len(split.train) + len(split.val) == 6


@pytest.mark.parametrize(("option", "value"), [("val", 0.0), ("val", 1.0), ("task", "classify")])
def test_options_out_of_range(option: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{option}="):
        read_examples(touch(tmp_path, "a/0.jpg", "b/0.jpg"), **{option: value})
