"""What an installation and the source distribution hold: metadata, extras, files."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from places import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = SETUP["options.extras_require"]
# Not part of a source distribution, whatever git knows.
LEFT_OUT = {".gitignore", "setup.py"}


@pytest.fixture(scope="module")
def egg_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metadata and the list of files that setuptools makes for `sdist`, outside the checkout."""
    folder = tmp_path_factory.mktemp("egg")
    code = "import setuptools, sys; setuptools.setup(script_args=sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", code, "-q", "egg_info", "--egg-base", str(folder)],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    return folder / "ilgnet_repro.egg-info"


@pytest.fixture(scope="module")
def metadata(egg_info: Path) -> Message:
    return Parser().parsestr((egg_info / "PKG-INFO").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(egg_info: Path) -> set[str]:
    return set((egg_info / "SOURCES.txt").read_text(encoding="utf-8").splitlines())


def test_the_source_distribution_is_a_whole_checkout(sources: set[str]) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert tracked - sources <= LEFT_OUT


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", "docs/migrating.md"),
        *("docs/img/training_synthetic.png", "tools/convert_caffe.py", "tools/test_ava.py"),
        *("prototxt/ilgnet/deploy.prototxt", "prototxt/ilgnet/ava1_solver.prototxt", "tests/conftest.py"),
        *("ilgnet_repro/py.typed", "ilgnet_repro/models.toml", "ilgnet_repro/schema/caffe.proto"),
        *("ilgnet_repro/aesthetics/manifest.toml", "ilgnet_repro/aesthetics/report_page.html.j2"),
    ],
)
def test_the_source_distribution_has(name: str, sources: set[str]) -> None:
    assert name in sources


@pytest.mark.parametrize("pattern", [r"\.pyc$", r"__pycache__", r"^\.venv/", r"^demo/", r"^shared"])
def test_the_source_distribution_has_none_of(pattern: str, sources: set[str]) -> None:
    assert [name for name in sources if re.search(pattern, name)] == []


def test_the_manifest_of_released_files_stands_once(sources: set[str]) -> None:
    assert [name for name in sources if name.endswith("manifest.toml")] == [
        "ilgnet_repro/aesthetics/manifest.toml"
    ]


def test_the_metadata_name_author_pages_and_pythons(metadata: Message) -> None:
    assert metadata["Author"] == "the ilgnet_repro authors"
    assert metadata["Requires-Python"] == ">=3.11"
    pages = [page.split(", ") for page in metadata.get_all("Project-URL", [])]
    assert ["ILGNet", "https://github.com/BestiVictory/ILGnet"] in pages
    # An index shows at most 32 characters of a label, and ends it at the first comma.
    assert all(len(page) == 2 and len(page[0]) <= 32 and page[1].startswith("https://") for page in pages)
    pythons = [
        line.rpartition(" ")[2] for line in metadata.get_all("Classifier", []) if "Python :: 3." in line
    ]
    assert pythons == ["3.11", "3.12", "3.13"]


def test_the_extra_all_has_every_extra_that_a_user_needs() -> None:
    (named,) = re.findall(r"ilgnet_repro\[(.*)\]", EXTRAS["all"])
    assert set(named.split(",")) == set(EXTRAS) - {
        "all",
        "coreml",
        "crosscheck",
        "ray",
        "tflite",
        "test",
        "lint",
    }


def test_every_requirement_has_the_version_that_the_tests_ran_with() -> None:
    pinned = {
        re.split("==", line)[0].replace("_", "-").lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    lists = [SETUP["options"]["install_requires"], *(EXTRAS[name] for name in EXTRAS if name != "all")]
    names = {
        re.split("[>=]", line.strip())[0].replace("_", "-").lower()
        for text in lists
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith("#")
    }
    assert names == pinned


def test_the_package_runs_as_a_module() -> None:
    code = [sys.executable, "-m", "ilgnet_repro", "--version"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ilgnet_repro ")
