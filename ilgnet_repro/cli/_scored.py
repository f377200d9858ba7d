"""How `ilgnet score` writes its records: lines, CSV, JSON, and drawn boxes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import opencv as cv2
from ..errors import IlgnetError, printable
from ..files import atomic_path, csv_text, json_text
from ..reading.images import encode_image
from ..reading.photos import decode_photo, read_file
from ..scored import Score

Write = Callable[[str], Any]
_MOST_VALUES = 10  # of an output, in a line
_MOST_COLUMNS = 16_384  # of spreadsheets


def json_lines(labels: Sequence[str], top: int, write: Write) -> Callable[[Score], None]:
    """Write one JSON object per image: the score also under the name of its meaning, the best classes by output."""

    def add(row: Score) -> None:
        named = {row.meaning.replace(" ", "_"): row.value} if row.meaning else {"high_quality": None}
        best = {name: [vars(one) for one in found] for name, found in row.best_of(labels, top).items()}
        shown: dict[str, Any] = {"picture": row.path}
        if row.error:
            write(json_text({**shown, "error": row.error}) + "\n")
            return
        shown.update(named, value=row.value)
        if row.deviation is not None:
            shown["deviation"] = row.deviation
        shown["outputs"] = row.outputs
        if best:
            shown["top"] = best
        if row.boxes is not None:
            shown["boxes"] = [vars(box) for box in row.boxes]
        if row.notes:
            shown["notes"] = list(row.notes)
        write(json_text(shown) + "\n")

    return add


def lines(labels: Sequence[str], top: int, write: Write, *, classes: bool) -> Callable[[Score], None]:
    """Write one line per image, or per box; ``classes`` shows the best classes instead of the score."""

    def add(row: Score) -> None:
        if row.error:
            return
        if row.boxes is not None:
            if not row.boxes:
                write(f"{printable(row.path)}\tno boxes\n")
            for box in row.boxes:
                corners = " ".join(f"{value:.1f}" for value in (box.xmin, box.ymin, box.xmax, box.ymax))
                write(f"{printable(row.path)}\t{printable(box.label)} {box.score:.6f}\t{corners}\n")
        elif row.value is not None and not classes:
            spread = "" if row.deviation is None else f" ± {row.deviation:.6f}"
            write(f"{row.value:.6f}{spread}  {printable(row.path)}\n")
        else:
            best = row.best_of(labels, top)
            shown = [
                f"{name} "
                + (
                    "; ".join(f"{one.label} {one.value:.6g}" for one in best[name])
                    if name in best
                    else _shown(values)
                )
                for name, values in row.outputs.items()
            ]
            write("\t".join(map(printable, (row.path, *shown))) + "\n")

    return add


def _shown(values: Sequence[float]) -> str:
    more = " …" if len(values) > _MOST_VALUES else ""
    return " ".join(f"{value:.6g}" for value in values[:_MOST_VALUES]) + more


class CsvRows:
    """Writes CSV: its columns are those of the first image that has a score; errors before it wait for them."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._columns: list[str] = []
        self._early: list[Score] = []

    def add(self, row: Score) -> None:
        """Write one row, or one for each box."""
        if not self._columns:
            if row.error:
                self._early.append(row)
                return
            self._begin(row)
        for cells in self._cells(row):
            self._row([*cells, *[""] * (len(self._columns) - 1 - len(cells)), csv_text(row.error)])

    def end(self) -> None:
        """Write the header where no image has a score."""
        if not self._columns:
            self._begin(Score("", {}))

    def _begin(self, row: Score) -> None:
        if row.boxes is not None:
            shown = ["label", "score", "xmin", "ymin", "xmax", "ymax"]
        elif row.classes:
            shown = [f"{what}_{k}" for k in range(1, len(row.classes) + 1) for what in ("label", "value")]
        elif row.deviation is not None:
            shown = ["mean" if row.meaning == "mean" else "score", "deviation"]
        elif row.value is not None:
            shown = ["score"]
        else:
            shown = [
                name if len(values) == 1 else f"{name}_{k}"
                for name, values in row.outputs.items()
                for k in range(len(values))
            ]
            if len(shown) > _MOST_COLUMNS:
                raise IlgnetError(
                    f"--csv: the net gives {len(shown):,} values per image, more than {_MOST_COLUMNS:,} columns; use "
                    "--json, or `ilgnet features`"
                )
        self._columns = ["path", *map(csv_text, shown), "error"]
        self._row(self._columns)
        early, self._early = self._early, []
        for one in early:
            self.add(one)

    def _cells(self, row: Score) -> list[list[str]]:
        path = csv_text(row.path)
        if row.error:
            return [[path]]
        if row.boxes is not None:
            return [
                [path, csv_text(box.label), *map(repr, (box.score, box.xmin, box.ymin, box.xmax, box.ymax))]
                for box in row.boxes
            ] or [[path]]
        if row.classes:
            return [[path, *(cell for one in row.classes for cell in (csv_text(one.label), repr(one.value)))]]
        if row.deviation is not None:
            return [[path, repr(row.value), repr(row.deviation)]]
        if row.value is not None:
            return [[path, repr(row.value)]]
        return [[path, *(repr(value) for values in row.outputs.values() for value in values)]]

    def _row(self, cells: Sequence[str]) -> None:
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerow([printable(cell) for cell in cells])
        self._write(file.getvalue())


class BoxDrawer:
    """Draws the boxes of each image into a folder, as JPEGs of the images' names."""

    def __init__(self, folder: str, raw_pixels: bool) -> None:
        self._folder, self._raw = Path(folder), raw_pixels
        self._used: set[str] = set()

    def add(self, row: Score) -> None:
        """Draw the boxes of one image."""
        if row.error:
            return
        if row.boxes is None:
            raise IlgnetError(f"--draw {self._folder}: the net does not end in DetectionOutput; leave it out")
        pixels = decode_photo(read_file(row.path), None, row.path, raw_pixels=self._raw, is_path=True).pixels
        pixels = pixels.copy()
        height, width = pixels.shape[:2]
        thick = max(1, round(min(height, width) / 200))
        for box in row.boxes:
            corners = [
                int(min(max(0, value), side - 1))  # NaN is 0
                for value, side in zip(
                    (box.xmin, box.ymin, box.xmax, box.ymax), (width, height) * 2, strict=True
                )
            ]
            colour = tuple((53 * box.index + 97 * k) % 206 + 50 for k in range(3))
            cv2.rectangle(pixels, corners[:2], corners[2:], colour, thick)
            name = f"{box.label} {box.score:.2f}".encode("ascii", "replace").decode()
            at = (corners[0], max(corners[1] - 2 * thick, 10 * thick))
            cv2.putText(pixels, printable(name), at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thick, colour, thick)
        self._folder.mkdir(parents=True, exist_ok=True)
        data = encode_image(pixels, "jpg")
        with atomic_path(self._folder / self._name(row.path)) as path:
            path.write_bytes(data)

    def _name(self, path: str) -> str:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, number = f"{stem}.jpg", 1
        while name in self._used:
            number += 1
            name = f"{stem}_{number}.jpg"
        self._used.add(name)
        return name
