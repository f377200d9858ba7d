"""Files that a command may overwrite: never its inputs, and never a file that it did not write."""

from __future__ import annotations

from pathlib import Path

import pytest
from output_cases import (
    MINE,
    NAMES,
    check_accepted,
    check_files_of_others_stay,
    check_input_is_no_output,
    enter_copy,
    make_inputs,
    refused,
)

from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.files import atomic_file
from ilgnet_repro.train.snapshot import Snapshots


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_inputs(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    return enter_copy(made, tmp_path, monkeypatch)


# A command whose last argument is its output, and the input that the output is.
ITSELF = {
    "mean": (["mean", "mean.npy"], "mean.npy"),
    "sheet-image": (["sheet", "list.txt", "--root", "images/", "--out"], "images/2.png"),
    "lmdb-make": (["lmdb", "make", "images/", "list.txt"], "list.txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("arguments", "source"), ITSELF.values(), ids=ITSELF)
def test_an_input_is_refused_as_output(folder, capsys, arguments, source, name) -> None:
    if source.endswith(".png") and name == "hard-link":
        pytest.skip("an image under another name stays what it is when that name is replaced")
    check_input_is_no_output(capsys, folder, arguments, NAMES[name](source))


REFUSED = {
    "mean into the database": (
        ["mean", "db", "db/data.mdb"],
        "db/data.mdb: is inside the input database db; give another place",
    ),
    "mean as the database": (["mean", "db", "db"], "db: is the input db itself; give another name"),
    "mean as a folder above": (["mean", "db", "."], ".: is a folder that contains the input db; give another name"),
    "mean as another folder": (["mean", "db", "elsewhere"], "elsewhere: is a folder; give the name of a file"),
    "mean to a device": (["mean", "db", "/dev/null"], "/dev/null: is a device or pipe; give the name of a file"),
    "export into the database": (
        ["lmdb", "export", "db", "db/out"],
        "db/out: is inside the input database db; give another place",
    ),
    "sheet into the database": (
        ["sheet", "db", "--out", "db/page.html"],
        "--out db/page.html: is inside the input database db; give another place",
    ),
    "sheet twice": (
        ["sheet", "db", "--out", "a.html", "--out", "./a.html"],
        "./a.html: is given twice as an output; give another name",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(folder, capsys, arguments, message) -> None:
    assert refused(capsys, folder, arguments) == message


ACCEPTED = {
    "mean again": ["mean", "db", "mean.npy"],
    "mean of a mean": ["mean", "mean.npy", "other.npy"],
    "sheet beside the images": ["sheet", "list.txt", "--root", "images/", "--out", "images/page.png"],
    "convert again": ["convert", "small.caffemodel"],
}


@pytest.mark.parametrize("arguments", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(folder, arguments) -> None:
    check_accepted(arguments, again=arguments)


# Files of the user's that have the names a command would choose, and the command.
UNRELATED = {
    "export": (["out.partial/mine.txt"], ["lmdb", "export", "db", "out"],
               "out.partial: was not left by a run of this command; remove it, or give another name"),
    "make": (["new.partial/mine.txt"], ["lmdb", "make", "images/", "list.txt", "new"],
             "new.partial: is not an unfinished build by this program; remove it"),
    "make's bad list": (["new.bad.txt"], ["lmdb", "make", "images/", "list.txt", "new"],
                        "new.bad.txt: exists and was not written by `ilgnet lmdb make`; "
                        "remove it or give another name for the database"),
    "convert's source": (["small.py"], ["convert", "small.caffemodel", "--to", "python"],
                         "small.py: exists and was not written by `ilgnet convert`; "
                         "give another folder as --out or remove it"),
    "convert's caffemodel": (["elsewhere/small.caffemodel"],
                             ["convert", "small.caffemodel", "--to", "caffemodel", "--out", "elsewhere"],
                             "elsewhere/small.caffemodel: exists and was not written by `ilgnet convert`; "
                             "give another folder as --out or remove it"),
    "convert's prototxt": (["elsewhere/small.prototxt"],
                           ["convert", "small.caffemodel", "--fold", "--to", "caffemodel", "--out", "elsewhere"],
                           "elsewhere/small.prototxt: exists and was not written by `ilgnet convert`; "
                           "give another folder as --out or remove it"),
    "convert's pt2": (["small.pt2"], ["convert", "small.caffemodel", "--to", "pt2"],
                      "small.pt2: exists and was not written by `ilgnet convert`; "
                      "give another folder as --out or remove it"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "arguments", "message"), UNRELATED.values(), ids=UNRELATED)
def test_unrelated_files_are_not_replaced(folder, capsys, files, arguments, message) -> None:
    check_files_of_others_stay(capsys, folder, files, arguments, message)
    if message is not None:
        assert main(arguments) == 0
        assert not list(Path().glob("*.partial"))


def test_keep_removes_only_the_runs_own_snapshots(tmp_path) -> None:
    for number in (1, 2, 3):
        for ending in ("caffemodel", "solverstate"):
            (tmp_path / f"net_iter_{number}.{ending}").write_bytes(MINE)
    fresh = Snapshots("net", tmp_path, keep=1)
    fresh.written.add(3)
    fresh.prune(3)
    assert fresh.iterations() == [1, 2, 3]  # 1 and 2 are of another run
    resumed = Snapshots("net", tmp_path, keep=1)
    resumed.resume(2)
    resumed.written.add(3)
    resumed.prune(3)
    assert resumed.iterations() == [3]


def test_a_snapshot_does_not_replace_the_weights_it_starts_from(tmp_path) -> None:
    weights = tmp_path / "net_iter_20.caffemodel"
    weights.write_bytes(MINE)
    snapshots = Snapshots("net", tmp_path)
    with pytest.raises(IlgnetError, match=r"snapshot .*net_iter_20.caffemodel: is the input .* itself"):
        snapshots.check_inputs([weights], lambda iteration: iteration % 10 == 0)
    snapshots.check_inputs([weights], lambda iteration: iteration % 15 == 0)


def test_a_link_stays_and_its_file_is_replaced(tmp_path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(b"before")
    (tmp_path / "link").symlink_to("far/file")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "file").read_bytes() == b"after"
