"""HTML pages from templates: what is filled in is escaped, and a name that is missing is an error."""

from __future__ import annotations

from importlib import resources

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from ilgnet_repro.pages import environment, fill_template
from ilgnet_repro.reading.sheet import Sheet
from ilgnet_repro.reading.sheet_page import html_page

FILLED = {
    "text": ("<b>&\"'", "&lt;b&gt;&amp;&#34;&#39;"),
    "a control sequence": ("\x1b[31mx", r"\x1b[31mx"),
    "a name that is no UTF-8": ("caf\udce9", r"caf\udce9"),
    "right to left": ("x\u202ey", r"x\u202ey"),
    "a part of the page": (Markup("<b>é</b>"), "<b>é</b>"),
    "a number": (3, "3"),
}


@pytest.mark.parametrize(("value", "shown"), FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("template", ["{{ x }}", "{% macro m(y) %}{{ y }}{% endmacro %}{{ m(x) }}"])
def test_filled_in(template: str, value: object, shown: str) -> None:
    assert environment("ilgnet_repro").from_string(template).render(x=value) == shown


def test_a_missing_name_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'sheet' is undefined"):
        fill_template("ilgnet_repro.reading", "sheet_page.html.j2")


def test_every_template_belongs_to_a_module_and_escapes() -> None:
    root = resources.files("ilgnet_repro")
    found = sorted(
        (folder.name, file.name)
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".j2")
    )
    assert ("reading", "sheet_page.html.j2") in found
    for folder, name in found:
        text = root.joinpath(folder, name).read_text(encoding="utf-8")
        assert root.joinpath(folder, name.partition(".")[0] + ".py").is_file()
        assert "autoescape" not in text and text.count("| safe") == (name == "report_page.html.j2")


def test_a_sheet_without_a_readable_image_has_a_page() -> None:
    page = html_page(Sheet("<list>", 2, {0: 1, 7: 1}, (), ("<a>: cannot be read",), {0: (), 7: ()}))
    assert "<title>&lt;list&gt;</title>" in page and "<li>&lt;a&gt;: cannot be read</li>" in page
    assert (
        "Sizes of 0 images" in page and "<svg" not in page and "<td>7</td><td>1</td><td>50.00%</td>" in page
    )
