"""The tables of docs/pycaffe.md: up to date, complete, and true of each name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from ilgnet_repro.cli import names_page
from ilgnet_repro.cli.names_page import CV2_DNN, GROUPS, PYCAFFE, TABLES, Group, main, replaced, status, table
from ilgnet_repro.errors import IlgnetError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pycaffe.md"
NAMES = [(group, name) for groups in GROUPS.values() for group in groups for name in group.names.split()]


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for title in TABLES:
        assert table(title) in text, f"run: {names_page.COMMAND} docs/pycaffe.md"
    assert replaced(text, "docs/pycaffe.md") == text


def test_each_name_is_listed_once_and_each_note_is_of_one() -> None:
    for group in (*PYCAFFE, *CV2_DNN):
        listed = group.names.split()
        assert len(set(listed)) == len(listed), group.title
        assert set(group.notes) <= set(listed), group.title


@pytest.mark.parametrize(("group", "name"), NAMES, ids=[f"{group.title}.{name}" for group, name in NAMES])
def test_absent_names_raise_attribute_error_and_the_others_are_there(group: Group, name: str) -> None:
    kind, note = status(group, name)
    assert kind != "done" or not note
    if kind == "absent":
        assert not hasattr(group.object(), name)
    elif not name.endswith("*") and not note.startswith("the installed"):
        assert hasattr(group.object(), name)


OPENCV: dict[str, Callable[[], object]] = {
    "cv2.dnn": lambda: cv2.dnn,
    "cv2.dnn.Net": lambda: cv2.dnn.Net,
    "cv2.dnn.Layer": lambda: cv2.dnn.Layer,
    "cv2.dnn.Model": lambda: cv2.dnn.Model,
    "cv2.dnn.ClassificationModel": lambda: cv2.dnn.ClassificationModel,
    "cv2.dnn.DetectionModel": lambda: cv2.dnn.DetectionModel,
    "cv2.dnn.SegmentationModel": lambda: cv2.dnn.SegmentationModel,
    "cv2.dnn.KeypointsModel": lambda: cv2.dnn.KeypointsModel,
}
# Of cv2.Algorithm, which Layer derives from.
OF_ALGORITHM = {"clear", "empty", "getDefaultName", "read", "save", "write"}


@pytest.mark.skipif(not cv2.__version__.startswith("4.14"), reason="the tables list the names of OpenCV 4.14")
@pytest.mark.parametrize("title", OPENCV)
def test_every_public_name_of_opencv_is_listed(title: str) -> None:
    group = next(one for one in CV2_DNN if one.title == title)
    patterns = [name[:-1] for name in group.names.split() if name.endswith("*")]
    above = set(dir(cv2.dnn.Model)) if title.endswith("nModel") or title.endswith("sModel") else set()
    theirs = {name for name in dir(OPENCV[title]()) if not name.startswith("_")} - above
    theirs -= OF_ALGORITHM if title == "cv2.dnn.Layer" else set()
    missing = {
        name for name in theirs - set(group.names.split()) if not name.startswith(tuple(patterns) or "-")
    }
    assert missing == set()


def test_a_name_that_is_absent_without_a_reason_is_an_error() -> None:
    group = replace(PYCAFFE[0], names="Net nothing")
    with pytest.raises(IlgnetError, match=r"caffe\.nothing: is absent without a reason; give it a note"):
        status(group, "nothing")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    empty = "".join(f"<!-- {title}:start -->as it was<!-- {title}:end -->\n" for title in TABLES)
    page.write_text(f"before\n{empty}after\n", encoding="utf-8")
    assert main(["--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert all(table(title) in text for title in TABLES) and "as it was" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
    page.write_text("no markers", encoding="utf-8")
    assert main(["--write", str(page)]) == 1
    assert "holds no markers <!-- pycaffe:start --> and" in capsys.readouterr().err
    assert main([]) == 0
    assert capsys.readouterr().out == "\n\n".join(map(table, TABLES)) + "\n"
