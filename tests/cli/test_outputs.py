"""What a command may write over: never its inputs, and never a file that it did not make."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_nets import SMALL_TEXT, write_weights

from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.files import atomic_file
from ilgnet_repro.train.snapshot import Snapshots

TWO_CLASSES = SMALL_TEXT.replace("dim: 9 dim: 7", "dim: 9 dim: 9").replace("num_output: 5", "num_output: 2")


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, with what it holds."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder"
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with images, their list, a database, a mean, a net, a run and lists, all small."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (14, 11, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(4)))
    votes = " ".join(["1"] * 10)
    (folder / "AVA.txt").write_text("".join(f"{n} {n} {votes} 1 2 3\n" for n in range(1, 21)))
    (folder / "log.txt").write_text("no log\n")
    write_weights(folder / "small.caffemodel")
    (folder / "small.prototxt").write_text(SMALL_TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ["lmdb", "make", "images/", "list.txt", "db"],
            ["mean", "db", "mean.npy"],
            ["convert", "small.caffemodel", "--out", "."],
        ):
            assert main(arguments) == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    Path("elsewhere").mkdir()
    return tmp_path / "w"


def refused(capsys, folder: Path, arguments: list[str]) -> str:
    """Run a command that must be refused in one line and leave every byte as it was; the line."""
    before = contents(folder)
    capsys.readouterr()
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("ilgnet: ") and err.count("\n") == 1, err
    assert contents(folder) == before
    return err.removeprefix("ilgnet: ").rstrip()


def linked(link: Callable[[str, str], None], path: str) -> str:
    """A second name of a file, with the same suffix."""
    name = f"elsewhere/linked{Path(path).suffix}"
    link(os.path.abspath(path), name)
    return name


# The ways to name a file that is an input already: how a second name is made of it.
NAMES = {
    "same": str,
    "absolute": lambda path: str(Path(path).resolve()),
    "roundabout": lambda path: os.path.join("elsewhere", "..", path),
    "symlink": lambda path: linked(os.symlink, path),
    "hard-link": lambda path: linked(os.link, path),
}

# A command whose last argument is its output, and the input that the output is.
ITSELF = {
    "mean": (["mean", "mean.npy"], "mean.npy"),
    "partition-check": (["partition", "check", "list.txt", "--pictures", "images", "--bad"], "list.txt"),
    "partition-check-second": (["partition", "check", "AVA.txt", "list.txt", "--pictures", "images", "--bad"], "list.txt"),
    "partition-scores": (["partition", "ava2", "AVA.txt", "--seed", "1", "--out", "new", "--scores"], "AVA.txt"),
    "partition-exclude": (
        ["partition", "ava2", "AVA.txt", "--seed", "1", "--out", "new", "--exclude", "list.txt", "--scores"], "list.txt",
    ),
    "sheet-image": (["sheet", "list.txt", "--root", "images/", "--out"], "images/2.png"),
    "lmdb-make": (["lmdb", "make", "images/", "list.txt"], "list.txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("arguments", "source"), ITSELF.values(), ids=ITSELF)
def test_an_input_is_no_output(folder, capsys, arguments, source, name) -> None:
    if arguments[:3] == ["partition", "check", "AVA.txt"]:
        shutil.copy("list.txt", "AVA.txt")  # two lists
    if source.endswith(".png") and name == "hard-link":
        pytest.skip("an image under another name stays what it is when that name is replaced")
    output = NAMES[name](source)
    message = refused(capsys, folder, [*arguments, output])
    assert "is the input" in message and message.endswith("itself; give another name")


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
    "bad list as an image": (
        ["partition", "check", "list.txt", "--pictures", "images", "--bad", "images/1.png"],
        "--bad images/1.png: is the input images/1.png itself; give another name",
    ),
    "list made from itself": (
        ["partition", "ava2", "elsewhere/../AVA.txt", "--seed", "1", "--out", ".", "--scores", "train.txt"],
        "train.txt: is given twice as an output; give another name",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(folder, capsys, arguments, message) -> None:
    assert refused(capsys, folder, arguments) == message


ACCEPTED = {
    "mean again": ["mean", "db", "mean.npy"],
    "mean of a mean": ["mean", "mean.npy", "other.npy"],
    "sheet beside the images": ["sheet", "list.txt", "--root", "images/", "--out", "images/page.png"],
    "bad list beside the list": [
        "partition",
        "check",
        "list.txt",
        "--pictures",
        "images",
        "--bad",
        "bad.txt",
    ],
    "scores beside the list": [
        "partition",
        "ava2",
        "AVA.txt",
        "--seed",
        "1",
        "--out",
        ".",
        "--scores",
        "s.csv",
    ],
    "convert again": ["convert", "small.caffemodel"],
}


@pytest.mark.parametrize("arguments", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(folder, arguments) -> None:
    before = contents(folder)
    assert main(arguments) == 0
    assert main([*arguments, "--force"] if "ava2" in arguments else arguments) == 0  # over its own output
    after = contents(folder)
    assert {name: after[name] for name in before if name not in arguments} == {
        name: before[name] for name in before if name not in arguments
    }


# Files of the user's that have the names a command would choose, and the command.
MINE = b"mine, and nowhere else\n"
STRANGERS = {
    "export": (["out.partial/mine.txt"], ["lmdb", "export", "db", "out"], None),
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
    "synthetic": (["task/solver.prototxt"], ["synthetic", "task"],
                  "task/solver.prototxt: is already there; remove it or give another folder"),
    "demo": (["mine/list.txt"], ["demo", "--small", "--out", "mine"],
             "mine: holds other files, such as list.txt, which the demo could replace; give another --out"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "arguments", "message"), STRANGERS.values(), ids=STRANGERS)
def test_files_of_others_stay(folder, capsys, files, arguments, message) -> None:
    for name in files:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(MINE)
    if message is None:
        assert main(arguments) == 0
    else:
        assert refused(capsys, folder, arguments) == message
    assert all(Path(name).read_bytes() == MINE for name in files)
    for name in files:
        Path(name).unlink()
    if message is not None and arguments[0] not in ("demo", "synthetic"):  # those take seconds
        assert main(arguments) == 0
        assert not list(Path().glob("*.partial"))


TEST = ["test", "own", "--weights", "two.caffemodel", "--list", "list.txt", "--pictures", "images",
        "--mean-value", "1", "--resize", "11"]  # fmt: skip


@pytest.fixture
def tested(folder) -> Path:
    """`folder` with a net of two classes and a run of `ilgnet test` in ``run``."""
    write_weights(folder / "two.caffemodel", TWO_CLASSES)
    Path("two.prototxt").write_text(TWO_CLASSES)
    assert main([*TEST, "--out", "run"]) == 0
    return folder


@pytest.mark.parametrize("name", ["run.json", "pictures.csv", "bad.txt", "journal.csv"])
def test_a_test_replaces_only_a_run(tested, capsys, name) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_bytes(MINE)
    message = f"mine/{name}: exists and was not written by `ilgnet test`; give another --out"
    assert refused(capsys, tested, [*TEST, "--out", "mine"]) == message
    assert main([*TEST, "--out", "run"]) == 0  # over its own


def test_a_test_does_not_replace_its_list(tested, capsys) -> None:
    shutil.copy("list.txt", "run/bad.txt")
    arguments = [part if part != "list.txt" else "run/bad.txt" for part in TEST]
    assert "run/bad.txt: is the input run/bad.txt itself" in refused(
        capsys, tested, [*arguments, "--out", "run"]
    )


def test_a_report_does_not_replace_its_run(tested, capsys) -> None:
    report = ["report", "run/run.json", "--out"]
    for page in ("run/run.html", "run/../run/run.html"):
        assert "run.json: is the input run/run.json itself" in refused(capsys, tested, [*report, page])
    assert "is the input run/run.json itself" in refused(capsys, tested, [*report, "run/run.json"])
    shutil.copytree("run", "second")
    other = ["report", "run/run.json", "--other", "second/run.json", "--out", "second/run.html"]
    assert "second/run.json: is the input second/run.json itself" in refused(capsys, tested, other)
    Path("mine.json").write_text(json.dumps({"run": 1}))
    assert "mine.json: exists and was not written by `ilgnet report`" in refused(
        capsys, tested, [*report, "mine.html"]
    )
    image = ["report", "run/run.json", "--pictures", "images", "--out", "images/1.png"]
    assert "--out images/1.png: is the input images/1.png itself" in refused(capsys, tested, image)
    for _ in range(2):  # over its own
        assert main(["report", "run/run.json"]) == 0 and main([*report, "page.html"]) == 0
    Path("run/report.html").write_bytes(MINE)
    assert "run/report.html: exists" in refused(capsys, tested, ["report", "run/run.json"])


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
