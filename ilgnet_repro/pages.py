"""HTML pages from jinja2 templates, ``*.html.j2`` files next to the module that renders them."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .errors import printable


@cache
def environment(package: str) -> Environment:
    """Return the environment for the templates in the folder of ``package``.

    Values are escaped, and unprintable characters become escapes (`printable`); an undefined name in a template
    is an error.
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
    """Render the template ``name`` in the folder of ``package`` with ``values``."""
    return environment(package).get_template(name).render(values)


def _printable(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
