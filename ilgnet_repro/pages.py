"""HTML pages: jinja2 templates, which lie as ``*.html.j2`` beside the module that fills them."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .errors import printable


@cache
def environment(package: str) -> Environment:
    """The templates in the folder of ``package``.

    A text that is filled in is escaped, and what no page can hold becomes an escape (`printable`); a name
    that the template uses and is not given is an error.
    """
    return Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def fill_template(package: str, name: str, **values: object) -> str:
    """The template of this name in the folder of ``package``, filled with ``values``."""
    return environment(package).get_template(name).render(values)


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
