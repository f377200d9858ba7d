"""The generated table: one row per type, and the pages that contain it are up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.layers_page import END, START, main, replaced, table
from ilgnet_repro.layers.support.registry import layer_types

ROOT = Path(__file__).resolve().parent.parent.parent


def test_one_row_per_type_in_order() -> None:
    lines = table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(layer_types())
    assert "| `Convolution` | ✓ | ✓ | ✓ | ✓ |" in lines
    assert "| `ArgMax` | ✓ | – | ✓ | ✓ |" in lines
    assert (
        "| `Dropout` | ✓ | ✓ | ✓, except: it draws random numbers in each pass in phase TRAIN | ✓ |" in lines
    )


def test_the_page_contains_the_current_table() -> None:
    held = (ROOT / "docs/layers.md").read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert table() in held, "run: python -m ilgnet_repro.export.layers_page --write docs/layers.md"


def test_text_around_the_markers_is_kept() -> None:
    text = replaced(f"before\n{START}\nformer table\n{END}\nafter", "page.md")
    assert text.startswith(f"before\n{START}\n")
    assert text.endswith(f"{END}\nafter")
    assert "former table" not in text
    assert replaced(text, "page.md") == text


def test_a_page_without_markers_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(IlgnetError, match=r"^p\.md: holds no markers <!-- layers:start -->"):
        replaced("nothing", "p.md")
    page = tmp_path / "p.md"
    page.write_text("nothing")
    assert main(["--write", str(page)]) == 1
    assert "holds no markers" in capsys.readouterr().err
    assert page.read_text() == "nothing"
