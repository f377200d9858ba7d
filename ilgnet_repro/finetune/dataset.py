"""Labelled images for fine-tuning: a folder per class, or a CSV of labels, scores or distributions; and their split."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError, excerpt
from ..image_paths import DECODED, ImagePaths, suffix_of
from ..reading.image_list import find_image, read_list

TASKS = ("classes", "score", "distribution")
_VAL_NAMES = ("val", "valid", "validation")
_LARGEST = 1e30  # of a score: sums of squares fit float64, values float32
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """An image, relative to the data's root, and its target: (class number,), (score,) or the shares of the scores."""

    path: str
    target: tuple[float, ...]


@dataclass(frozen=True)
class Split:
    """Labelled images, divided.

    ``names`` are the classes, in the order of their numbers, or the names of the scores that a distribution is over;
    ``values`` these scores.  ``notes`` say what was left out and what was assumed, one line each.
    """

    task: str
    root: str
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    names: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """The number of outputs of a net for this task."""
        return 1 if self.task == "score" else len(self.names)


def read_examples(
    source: str | os.PathLike[str], *, task: str | None = None, val: float = 0.2, seed: int = 1
) -> Split:
    """Read a folder or a CSV and divide it: ``val`` is the share of val images, of each class where there are classes.

    The same images, ``val`` and ``seed`` give the same split.  ``task`` is one of `TASKS`; by default it follows from
    the labels.  A folder that consists of ``train`` and ``val`` is divided so already.  Raises DataError for data that
    cannot be learned from.
    """
    if task not in (None, *TASKS):
        raise DataError(f"task={task!r}: is one of {', '.join(TASKS)}", option="task")
    if not 0 < val < 1:
        raise DataError(f"val={val}: give a share between 0 and 1", option="val")
    if not os.path.isdir(source):
        return _divide(_read_csv(Path(source), task), val, seed, source)
    if task not in (None, "classes"):
        raise DataError(f"{source}: is a folder per class; write scores into a CSV of path and score")
    folder = Path(source)
    inside = {entry.name: entry for entry in _folders(folder)}
    held_out = next((inside[name] for name in _VAL_NAMES if name in inside), None)
    if held_out is None or inside.keys() != {"train", held_out.name}:
        return _divide(_read_folder(folder, folder), val, seed, source)
    train, held = _read_folder(inside["train"], folder), _read_folder(held_out, folder)
    if train.names != held.names:
        differing = sorted(set(train.names) ^ set(held.names))
        raise DataError(
            f"{folder}: class {differing[0]} is in only one of train and {held_out.name}; give both the same classes"
        )
    order = np.random.default_rng(seed).permutation(len(train.train))
    notes = (*train.notes, *held.notes, f"the split is that of the folders train and {held_out.name}")
    return replace(train, train=tuple(train.train[index] for index in order), val=held.train, notes=notes)


# ---------------------------------------------------------------------- a folder per class


def _folders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _read_folder(folder: Path, root: Path) -> Split:
    """The images of each folder in ``folder`` and below it, all as train images."""
    classes = _folders(folder)
    loose = sum(_is_image(entry.name) for entry in folder.iterdir() if entry.is_file())
    if len(classes) < 2:
        found = f"only {classes[0].name}" if classes else "none"
        raise DataError(
            f"{folder}: needs a folder per class, at least two ({found} there); or give a CSV of path and label"
        )
    skipped: Counter[str] = Counter()
    examples: list[Example] = []
    for number, place in enumerate(classes):
        before = len(examples)
        images = ImagePaths((os.fspath(place),), suffixes=DECODED, hidden=False)
        examples += [Example(os.path.relpath(name, root), (float(number),)) for name in images]
        for counts in images.skipped.values():
            skipped.update(counts)
        if len(examples) == before:
            raise DataError(f"{place}: contains no images; add some, or remove the folder")
    notes = []
    if loose:
        notes.append(f"{folder}: {loose:,} images outside of the class folders are left out")
    if skipped:
        kinds = ", ".join(
            f"{count:,} {excerpt(suffix, 12)}" for suffix, count in skipped.most_common(_MOST_SHOWN)
        )
        notes.append(f"{folder}: {sum(skipped.values()):,} files that are no images are left out ({kinds})")
    examples, unlisted = _listable(examples)
    names = tuple(place.name for place in classes)
    _check_names(names, folder)
    return Split(
        "classes", os.fspath(root), tuple(examples), (), names, notes=(*notes, *unlisted)
    )  # fmt: skip


def _is_image(name: str) -> bool:
    return suffix_of(name) in DECODED


def _listable(examples: list[Example]) -> tuple[list[Example], list[str]]:
    """Leave out images whose names no row of a list can hold."""
    bad = [one for one in examples if set(one.path) & set("\n\r\0") or one.path != one.path.strip()]
    if not bad:
        return examples, []
    left = set(bad)
    kept = [one for one in examples if one not in left]
    return kept, [
        f"{excerpt(one.path)}: left out, its name has a line break, or spaces at its ends" for one in bad
    ]


# ---------------------------------------------------------------------- a CSV


def _read_csv(path: Path, task: str | None) -> Split:
    """The rows of a CSV: a path, relative to its folder, then a label, a score, or a number for each score."""
    try:
        text = read_list(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a folder or a CSV") from error
    if "\0" in text:
        raise DataError(f"{path}: is not a CSV file; write rows of path and label")
    first = text.partition("\n")[0]
    delimiter = max(";\t,", key=first.count)  # `a.jpg;1,5` has one of two
    lines: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                lines.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: is not a row of a CSV file ({error}); correct it"
        ) from error
    root = os.fspath(path.parent)
    head: list[str] = []
    if lines and not _is_image(lines[0][1][0]) and not os.path.isfile(find_image(root, lines[0][1][0])):
        head, lines = lines[0][1], lines[1:]
    if not lines:
        raise DataError(f"{path}: has no rows; write rows of path and label")
    width = len(lines[0][1])
    for line, cells in lines:
        if len(cells) != width or width < 2 or not cells[0]:
            raise DataError(
                f"{path}:{line}: has {len(cells)} cells{'' if len(cells) == width else f' where others have {width}'}; "
                "write a path, then its label, its score, or a number for each score"
            )
    task = task or _task_of([cells[1:] for _, cells in lines])
    examples: list[Example] = []
    names: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    if task == "classes":
        if width > 2:
            raise DataError(
                f"{path}:{lines[0][0]}: has {width - 1} labels; give one per row, or --task distribution"
            )
        names = _class_names({cells[1] for _, cells in lines})
        _check_names(names, path)
        if len(names) < 2:
            raise DataError(f"{path}: has one class, {names[0]}; give at least two")
        number = {name: float(index) for index, name in enumerate(names)}
        examples = [Example(_relative(cells[0], root), (number[cells[1]],)) for _, cells in lines]
    else:
        if (width > 2) is (task == "score"):
            wanted = "one score" if task == "score" else "a number for each score, at least two,"
            raise DataError(f"{path}:{lines[0][0]}: give {wanted} in a row, or another --task")
        for line, cells in lines:
            target = _numbers(cells[1:], f"{path}:{line}", is_share=task == "distribution")
            examples.append(Example(_relative(cells[0], root), target))
        if task == "distribution":
            values = _bin_values(head[1:], width - 1)
            names = tuple(f"{value:g}" for value in values)
    examples, notes = _listable(examples)
    path_of, most = Counter(example.path for example in examples).most_common(1)[0]
    if most > 1:
        raise DataError(f"{path}: {excerpt(path_of)} is listed {most} times; list an image once")
    if task == "score" and len({example.target for example in examples}) < 2:
        raise DataError(f"{path}: all scores are equal; there is nothing to learn")
    return Split(task, root, tuple(examples), (), names, values, tuple(notes))


def _check_names(names: Sequence[str], where: Path) -> None:
    """Refuse a class whose name is no line of a list of labels."""
    wrong = [name for name in names if name.splitlines() != [name] or name != name.strip()]
    if wrong:
        raise DataError(
            f"{where}: class {excerpt(wrong[0])!r} is empty or has a line break, or spaces at its ends; give it another name"
        )


def _relative(name: str, root: str) -> str:
    return os.path.relpath(name, root or ".") if os.path.isabs(name) else name


def _task_of(labels: list[list[str]]) -> str:
    """Several numbers are a distribution, numbers with a decimal point scores, everything else classes.

    A few labels that are no numbers do not make classes of scores: the row is named later.
    """
    if len(labels[0]) > 1:
        return "distribution"
    texts = [row[0].replace(",", ".") for row in labels]
    scores = sum(_float(text) is not None and not _is_integer(text) for text in texts)
    numbers = sum(_float(text) is not None for text in texts)
    return "score" if scores and 2 * numbers > len(texts) else "classes"


def _is_integer(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None


def _class_names(found: set[str]) -> tuple[str, ...]:
    if all(map(_is_integer, found)):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def _numbers(cells: Sequence[str], where: str, *, is_share: bool) -> tuple[float, ...]:
    numbers = []
    for cell in cells:
        value = _float(cell)
        if value is None or (is_share and value < 0):
            wanted = "a number of votes or a share, 0 or more" if is_share else "a finite number"
            point = cell.replace(",", ".")
            remedy = "correct the row" if _float(point) is None or point == cell else f"write {point}"
            raise DataError(f"{where}: {excerpt(cell)!r} is not {wanted}; {remedy}")
        numbers.append(value)
    if not is_share:
        return tuple(numbers)
    total = sum(numbers)
    if not 0 < total <= _LARGEST:
        raise DataError(f"{where}: its votes add up to {total:g}; correct or remove the row")
    return tuple(number / total for number in numbers)


def _bin_values(head: Sequence[str], count: int) -> tuple[float, ...]:
    """The scores that the columns stand for: their heads if these are numbers, else 1, 2, ..."""
    values = [_float(cell) for cell in head]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == count else tuple(float(index + 1) for index in range(count))


# ---------------------------------------------------------------------- dividing


def _divide(whole: Split, share: float, seed: int, source: str | os.PathLike[str]) -> Split:
    """Take ``share`` of each class for val, at least one image and never all; then shuffle the train images."""
    groups: dict[float, list[Example]] = {}
    for example in whole.train:
        groups.setdefault(example.target[0] if whole.task == "classes" else 0.0, []).append(example)
    train: list[Example] = []
    val: list[Example] = []
    notes = list(whole.notes)
    for key in sorted(groups):
        rng = np.random.default_rng([seed, int(key)])
        group = sorted(groups[key], key=lambda example: os.fsencode(example.path))
        order = rng.permutation(len(group))
        count = min(max(round(share * len(group)), 1), len(group) - 1)
        if not count:
            notes.append(f"class {excerpt(whole.names[int(key)])} has one image, which is a train image")
        val += [group[index] for index in sorted(order[:count])]
        train += [group[index] for index in order[count:]]
    if not val:
        few = (
            "no class has two images, of which one" if whole.task == "classes" else "has one image, and none"
        )
        raise DataError(f"{source}: {few} could be held out for val; give more images")
    shuffled = np.random.default_rng(seed).permutation(len(train))
    return replace(whole, train=tuple(train[index] for index in shuffled), val=tuple(val), notes=tuple(notes))
