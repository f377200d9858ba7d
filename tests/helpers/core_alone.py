"""The core without the study: a copy of the checkout that lacks it, and pytest there (``make core-alone``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from places import ROOT

STUDY_COMMANDS = ("test", "report", "partition", "data", "synthetic", "demo", "_figures")  # files of cli/
STUDY_TOOLS = ("demo", "make_synthetic", "test_ava")  # their scripts in tools/
# tests/compat runs the commands of both and compares them with what an earlier version wrote; the pages and the
# source distribution are of both.
STUDY = (
    Path("ilgnet_repro/aesthetics"),
    *(Path(f"ilgnet_repro/cli/{name}.py") for name in STUDY_COMMANDS),
    *(Path(f"tools/{name}.py") for name in STUDY_TOOLS),
    Path("tests/aesthetics"),
    Path("tests/compat"),
    Path("tests/test_docs.py"),
    Path("tests/test_packaging.py"),
)
# Fails where anything, such as the finder of an editable install, still supplies the study.
CHECK = """
import importlib.util, sys, ilgnet_repro
assert ilgnet_repro.__path__ == [sys.argv[1]], ilgnet_repro.__path__
assert importlib.util.find_spec("ilgnet_repro.aesthetics") is None
"""


def is_of_the_study(path: Path) -> bool:
    """Whether a path of the checkout, relative to its root, belongs to the study."""
    return any(part in STUDY for part in (path, *path.parents))


def copy_core(target: Path) -> None:
    """Copy the files that git tracks and new files that it does not ignore, without the study."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for path in map(Path, map(os.fsdecode, listed.split(b"\0")[:-1])):
        if not is_of_the_study(path) and (ROOT / path).is_file():  # a tracked file may have been deleted
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target / path)


def make_python(folder: Path, core: Path) -> Path:
    """Return the python of a new environment: the packages of this one, with ``core`` for the editable install."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    # A folder that a .pth file names is searched, but its own .pth files, such as that of the install, are not read.
    (site / "core.pth").write_text(f"{core}\n{sysconfig.get_path('purelib')}\n")
    return python


def main(options: list[str]) -> int:
    """Run pytest with ``options`` in a temporary copy and return its status."""
    with tempfile.TemporaryDirectory(prefix="core-alone-") as folder:
        core = Path(folder).resolve() / "core"
        copy_core(core)
        python = make_python(Path(folder) / "venv", core)
        subprocess.run([python, "-c", CHECK, core / "ilgnet_repro"], cwd=core, check=True)
        return subprocess.run([python, "-m", "pytest", *options], cwd=core, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
