"""How an error's option is spelled on the command line: the library says ``precision="int8"``, a command its flag."""

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
    "table": "--table",
}
_SHAPE = r"""\{(['"])(?P<name>.*?)\1: \((?P<dims>[^)]*)\)\}"""
_VALUE = r"""True\b|"(?P<text>[^"]*)"|'(?P<other>[^']*)'|\[(?P<list>[^\]]*)\]|(?P<word>[\w./*-]+)"""


def for_command(error: IlgnetError) -> str:
    """The message of an error, its option as the flag that a user of the command types."""
    if not error.option:
        return str(error)
    flag = _FLAGS.get(error.option, f"--{error.option.replace('_', '-')}")

    def spelled(found: re.Match[str]) -> str:
        parts = found.groupdict()
        if parts["name"] is not None:
            return f"{flag} {parts['name']}={parts['dims'].replace(' ', '')}"
        value = next((parts[key] for key in ("text", "other", "list", "word") if parts[key] is not None), "")
        value = value.replace("'", "").replace('"', "")
        return f"{flag} {value}".rstrip()

    return re.sub(rf"\b{error.option}=(?:{_SHAPE}|{_VALUE})?", spelled, str(error))
