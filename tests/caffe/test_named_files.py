"""Where files are that a prototxt, a solver or a state names: as written, then beside the text, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilgnet_repro.caffe.named_files import NamedFiles, file_name

PLACES = {  # what is there, the name, where it is found, whether that is said
    "as written": (["here/a/m", "net/a/m"], "a/m", "here/a/m", False),
    "beside the net": (["net/a/m", "solver/a/m", "net/m"], "a/m", "net/a/m", True),
    "beside the solver": (["solver/a/m", "net/m"], "a/m", "solver/a/m", True),
    "bare name": (["net/m", "solver/m"], "a/m", "net/m", True),
    "bare name of an absolute path": (["net/m"], "/no/such/folder/m", "net/m", True),
    "Windows": (["here/a/m"], "a\\m", "here/a/m", True),
    "Windows beside": (["net/a/m"], "a\\m", "net/a/m", True),
    "Windows with a drive": (["solver/m"], "D:\\a\\m", "solver/m", True),
    "a backslash in a name": (["here/a\\m", "here/a/m"], "a\\m", "here/a\\m", False),
    "nowhere": ([], "a/m", "here/a/m", False),
    "no name": (["net/m"], "", "here", False),
    "the parent": (["net/m"], "..", "here/..", False),
    "a zero byte": (["net/m"], "m\0", "here/m\0", False),
}


@pytest.mark.parametrize(("there", "name", "found", "is_said"), PLACES.values(), ids=PLACES)
def test_places(there: list[str], name: str, found: str, is_said: bool, tmp_path: Path) -> None:
    for path in ["here/x", *there]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    files = NamedFiles(tmp_path / "here").beside(tmp_path / "solver" / "s.prototxt")
    net = files.beside(tmp_path / "net" / "n.prototxt")
    assert [net.find(name), net.find(name)] == [tmp_path / found] * 2
    note = f"{name} does not exist; {tmp_path / found} is read instead"
    assert files.notes == ([note] if is_said else [])


def test_without_texts_only_the_working_directory_counts(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    assert NamedFiles().beside("").find("m") == Path("m")
    assert NamedFiles.of(tmp_path).find("m") == tmp_path / "m"


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.c", "b.c"), ("a\\b.c", "b.c"), ("C:\\a/b.c", "b.c"), ("b.c", "b.c"), ("", "")],
    ids=["slash", "backslash", "both", "bare", "none"],
)
def test_last_part_of_a_path_of_any_system(path: str, name: str) -> None:
    assert file_name(path) == name
