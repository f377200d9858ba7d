"""How an error's option is spelled on the command line: the library writes ``precision="int8"``, a command its flag."""

from __future__ import annotations

import re

from ..errors import IlgnetError

# Keywords whose flag is not the keyword with dashes.
_FLAGS = {
    "input_shapes": "--shape",
    "ignore_fields": "--ignore-field",
    "preprocessing": "--mean-value, --scale and --order",
    "stages": "--stage",
    "images": "--pictures",
    "list_file": "--list",
    "database": "--lmdb",
    "mean_values": "--mean-value",
    "folder": "--from",
    "target": "--dest",
    "val_sizes": "--val-sizes LOW HIGH",
}
_SHAPE = r"""\{(['"])(?P<name>.*?)\1: \((?P<dims>[^)]*)\)\}"""
_VALUE = r"""True\b|"(?P<text>[^"]*)"|'(?P<other>[^']*)'|\[(?P<list>[^\]]*)\]|(?P<word>[\w./*-]+)"""


def for_command(error: IlgnetError) -> str:
    """The message of an error, its option as the flag that a user of the command types."""
    text = str(error)
    for option in error.option.split():
        text = _with_flag(text, option)
    return text


def _with_flag(text: str, option: str) -> str:
    flag = _FLAGS.get(option, f"--{option.replace('_', '-')}")

    def spelled(found: re.Match[str]) -> str:
        parts = found.groupdict()
        if parts["name"] is not None:
            return f"{flag} {parts['name']}={parts['dims'].replace(' ', '')}"
        value = next((parts[key] for key in ("text", "other", "list", "word") if parts[key] is not None), "")
        value = value.replace("'", "").replace('"', "")
        return f"{flag} {value}".rstrip()

    return re.sub(rf"\b{option}=(?:{_SHAPE}|{_VALUE})?", spelled, text)
