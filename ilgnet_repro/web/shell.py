"""What the pages share: their frame (``shell.html.j2``), and the policy under which a browser runs one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ..pages import fill_template
from ..version import __version__

Links = Sequence[tuple[str, str]]
"""The pages of a server, by path, and their names in the navigation."""
SVG_POLICY = "drawings"
"""The one Trusted Types policy that a page may create, for drawings that this server made."""


def render_page(template: str, here: str, links: Links, **values: object) -> tuple[str, dict[str, str]]:
    """Return the page at the path ``here`` of ``links``, whose template extends ``shell.html.j2``, and its headers.

    Only the scripts and styles in it that carry its ``nonce`` run, it loads nothing from elsewhere, and text cannot
    become markup in it.
    """
    nonce = secrets.token_urlsafe(16)
    text = fill_template(
        __package__, template, nonce=nonce, version=__version__, here=here, links=links, **values
    )
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"require-trusted-types-for 'script'; trusted-types {SVG_POLICY}"
    )
    return text, {"content-security-policy": policy}
