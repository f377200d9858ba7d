"""The progress bar: drawn on a terminal, where a title shows as text; elsewhere nothing is written."""

from __future__ import annotations

import io

import pytest

from ilgnet_repro.cli._console import progress_bar


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def drawn(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, title: str, unit: str = "") -> str:
    stream = Stream(is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar(title, 7, unit) as progress:
        for done in range(8):
            progress(done)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("unit", "amount"),
    [("", "7/7"), ("images", "7/7"), ("bytes", "7/7 bytes")],
    ids=["rows", "images", "bytes"],
)
def test_a_bar_is_drawn_on_a_terminal(unit: str, amount: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, True, "reading [b]a[/b]\x1b[31m", unit)
    assert "reading [b]a[/b]\\x1b[31m" in text
    assert amount in text


def test_nothing_is_written_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert drawn(monkeypatch, False, "reading") == ""
