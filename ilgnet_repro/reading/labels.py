"""Files of class names: one per line, as synset_words.txt, or a labelmap of SSD."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..caffe.expected_kind import expect
from ..caffe.kinds import Kind
from ..errors import DataError
from ..files import open_input

_ITEM = re.compile(r"\bitem\s*\{([^{}]*)\}")
_FIELD = re.compile(r"""(\w+)\s*:\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[-+]?\d+)""")
LARGEST_LABEL = 1_000_000


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of classes by their index.  Raises FormatError for a file of another kind."""
    text = Path(path)
    if _ITEM.search(_beginning(text)):
        return _labelmap(path, text.read_text(encoding="utf-8-sig", errors="replace"))
    expect(path, Kind.TEXT, what="a list of labels")
    return tuple(text.read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines())


def _beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    with open_input(path, "r", encoding="utf-8-sig", errors="replace") as file:
        beginning: str = file.read(1 << 16)
    return beginning


def _labelmap(path: str | os.PathLike[str], text: str) -> tuple[str, ...]:
    """The display name of each label of SSD's LabelMap, or its name; a label without an item is named by its number."""
    names: dict[int, str] = {}
    for item in _ITEM.findall(re.sub(r"(?m)#.*$", "", text)):
        fields = {key: value.strip("\"'") for key, value in _FIELD.findall(item)}
        label = fields.get("label", "")
        if not label.isdecimal() or not 0 <= int(label[:9]) < LARGEST_LABEL or len(label) > 9:
            raise DataError(f"{path}: an item has the label {label[:20]!r}; give integers from 0")
        if int(label) in names:
            raise DataError(f"{path}: label {label} is given twice; give each once")
        names[int(label)] = fields.get("display_name") or fields.get("name") or label
    return tuple(names.get(label, str(label)) for label in range(max(names) + 1))
