"""`aesthetics.test` from Python: the README's lines, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_ava import TinySet

import ilgnet_repro as ir
from ilgnet_repro import aesthetics
from ilgnet_repro.aesthetics.releases import find_release

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.chdir(tmp_path)
    return TinySet(tmp_path, 30)


def test_the_lines_of_the_readme(tiny: TinySet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny images in the place of AVA's, and their list and mean where `ilgnet data get` puts the released ones."""
    monkeypatch.setenv("ILGNET_HOME", "home")
    for name, path in (("ava1-val", tiny.list()), ("ava1-mean", tiny.mean_file)):
        target = Path("home", find_release(name).path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    Path("tiny.caffemodel").rename("ILGnet-AVA1.caffemodel")
    Path("tiny.prototxt").rename("deploy.prototxt")
    (lines,) = re.findall(
        r"```python\n(from ilgnet_repro import aesthetics\n.*?)```", README.read_text("utf-8"), re.DOTALL
    )
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(lines, "README.md", "exec"), names)
    run = names["run"]
    right = (tiny.probability() > 0.5) == (tiny.labels == 1)
    repeats = 2500 // 30 * right.sum() + right[: 2500 % 30].sum()  # the list is read over and over again
    assert (run.correct, run.count) == (repeats, 2500)
    assert printed.getvalue() == f"{repeats / 2500} {repeats} 2500\n"
    assert sorted(path.name for path in Path("ava1_published").iterdir()) == ["pictures.csv", "run.json"]
    assert any("wrong partition" in warning for warning in run.warnings)


def test_own_images(tiny: TinySet) -> None:
    options = {"database": tiny.store(), "mean": tiny.mean_file, "prototxt": "tiny.prototxt", "out": "here"}
    run = aesthetics.test("own", "tiny.caffemodel", **options)
    right = (tiny.probability() > 0.5) == (tiny.labels == 1)
    assert isinstance(run, aesthetics.RunResult)
    assert run.accuracy == pytest.approx(right.mean())
    assert (run.images.correct == right).all()
    fast = aesthetics.test("own", "tiny.caffemodel", precision="float32", **options)
    assert fast.computed.startswith("fast path")


REFUSED = {
    "a dataset": (("ava3", "tiny.caffemodel"), {}, "dataset 'ava3' is unknown; use ava1, ava2, own"),
    "a protocol": (
        ("own", "tiny.caffemodel"), {"protocol": "half"},
        "protocol 'half' is unknown; use published, full, resize, tencrop",
    ),
    "no images": (
        ("own", "tiny.caffemodel"), {}, "no images: give images=FOLDER, list_file=LIST or database=DB",
    ),
    "no GPU": (
        ("own", "tiny.caffemodel"), {"list_file": "val.txt", "device": "cuda:99"}, "device='cuda:99': ",
    ),
    "no GPU for a fast net": (
        ("own", "tiny.caffemodel"), {"list_file": "val.txt", "device": "cuda:99", "precision": "float16"},
        "device='cuda:99': ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tiny: TinySet, name: str) -> None:
    tiny.list()
    given, options, message = REFUSED[name]
    with pytest.raises(ir.IlgnetError) as caught:
        aesthetics.test(*given, **options)
    assert str(caught.value).startswith(message)
    assert not [path for path in Path().iterdir() if path.name.startswith(("own", "ava"))]


def test_it_is_an_attribute_of_the_package_and_imports_no_torch() -> None:
    code = (
        "import sys, ilgnet_repro as ir; print(dir(ir.aesthetics), 'aesthetics' in dir(ir), 'torch' in sys.modules);"
        "print(ir.aesthetics.test.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['RunResult', 'test'] True False\ntest\n"
