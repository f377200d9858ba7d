"""Boxes of exported images: ``boxes.json`` for all, and an XML file of VOC's form beside each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from ..files import json_text
from .annotated import Box


class BoxFiles:
    """Writes the boxes of images of one folder; used with ``with``. Without a row no file is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def __enter__(self) -> BoxFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.write("\n]\n")
            self._file.close()

    def add(self, name: str, shape: Sequence[int], boxes: Sequence[Box]) -> None:
        """Write the boxes of the image ``name``, of ``shape`` (channels, height, width)."""
        channels, height, width = shape
        if self._file is None:
            path = _unused(self._folder / "boxes.json")
            self._file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        rows = [box._asdict() for box in boxes]
        entry = {"image": name, "width": width, "height": height, "boxes": rows}
        self._file.write(("," if self._file.tell() else "[") + "\n" + json_text(entry))
        root = ElementTree.Element("annotation")
        _add(root, filename=Path(name).name)
        _add(_add(root, size=None), width=width, height=height, depth=channels)
        for box in boxes:
            one = _add(root, object=None)
            _add(one, name=box.label, difficult=int(box.difficult))
            # VOC's corners are pixels from 1.
            corners = {"xmin": box.xmin * width, "ymin": box.ymin * height}
            far = {"xmax": box.xmax * width, "ymax": box.ymax * height}
            near = {side: f"{value + 1:g}" for side, value in corners.items()}
            _add(_add(one, bndbox=None), **near, **{side: f"{value:g}" for side, value in far.items()})
        ElementTree.indent(root)
        path = _unused((self._folder / name).with_suffix(".xml"))
        path.write_bytes(ElementTree.tostring(root))


def _add(parent: ElementTree.Element, **children: Any) -> ElementTree.Element:
    """Add child elements with these texts; return the last one."""
    for tag, value in children.items():
        child = ElementTree.SubElement(parent, tag)
        if value is not None:
            child.text = "".join(c if c.isprintable() else "?" for c in str(value))
    return child


def _unused(path: Path) -> Path:
    """The path, or one with a number where a row has that name."""
    number = 0
    stem = path.stem
    while path.exists():
        number += 1
        path = path.with_name(f"{stem}_{number}{path.suffix}")
    return path
