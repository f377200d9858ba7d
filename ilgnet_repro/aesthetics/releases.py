"""The manifest of what the authors released: names, addresses, sizes and SHA-256 sums."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import DataError, DownloadError
from ..files import file_sha256
from ..manifest import model_rows

LFS_START = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Release:
    """One released file. ``path`` is relative to the authors' repository and to the local folder alike;
    ``addresses`` is empty for a file that only cloud ``drives`` hold; ``classes`` counts labels 0 and 1."""

    name: str
    kind: str  # partition, mean, weights, net, solver, log
    path: str
    size: int
    sha256: str
    addresses: tuple[str, ...] = ()
    drives: tuple[str, ...] = ()
    rows: int | None = None
    classes: tuple[int, int] | None = None
    trained_on: str | None = None
    note: str = ""


@cache
def _manifest() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("manifest.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def releases() -> tuple[Release, ...]:
    """Every released file, in the order of the manifest."""
    repository = _manifest()["repository"]
    models = {row["name"]: row for row in model_rows()}
    found = []
    for table in _manifest()["release"]:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        if "model" in fields:  # the size and digest are with the model's other data
            model = models[fields.pop("model")]
            fields |= {"size": model["size"], "sha256": model["digests"][0].removeprefix("sha256:")}
        seen_at = fields.pop("seen_at", None)
        commits = (repository["commit"], seen_at) if seen_at else ()
        addresses = tuple(f"{repository['address']}/{commit}/{table['path']}" for commit in commits)
        found.append(Release(**fields, addresses=addresses))
    return tuple(found)


def find_release(name: str) -> Release:
    """The release of that name. Raises DataError listing the names otherwise."""
    return select([name])[0]


def select(names: Sequence[str]) -> tuple[Release, ...]:
    """The releases of these names or kinds (``partition`` is all four lists), each once; all for none.

    Raises DataError for a name that is neither.
    """
    chosen: dict[str, Release] = {}
    for name in names:
        found = [release for release in releases() if name in (release.name, release.kind)]
        if not found:
            known = ", ".join(release.name for release in releases())
            raise DataError(f"{name}: no such released file; use one of {known}, or a kind such as partition")
        chosen.update((release.name, release) for release in found)
    return tuple(chosen.values()) if names else releases()


def known_release(sha256: str) -> Release | None:
    """The released file with this SHA-256 (hexadecimal, any case), or None."""
    wanted = sha256.lower()
    return next((release for release in releases() if release.sha256 == wanted), None)


def shared_rows(train: str, partition: str) -> int:
    """How many images of one released list are in a released training list (both by name).

    Raises DataError for a pair the manifest does not count.
    """
    for table in _manifest()["overlap"]:
        if (table["train"], table["partition"]) == (train, partition):
            rows: int = table["rows"]
            return rows
    raise DataError(f"{train} and {partition}: the manifest does not count their overlap")


def default_folder() -> Path:
    """Where released files are kept: $ILGNET_HOME, or ~/.cache/ilgnet_repro."""
    return Path(os.environ.get("ILGNET_HOME") or Path.home() / ".cache" / "ilgnet_repro")


def fault(release: Release, path: str | os.PathLike[str]) -> str | None:
    """What is wrong with a local copy of a release, in a few words; None if it is the released file."""
    path = Path(path)
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != release.size:
        with open(path, "rb") as file:
            if file.read(len(LFS_START)) == LFS_START:
                return "a Git-LFS pointer, not the file it stands for"
        return f"{size} bytes instead of {release.size}"
    digest = file_sha256(path)
    return None if digest == release.sha256 else f"SHA-256 {digest} instead of {release.sha256}"


def addresses_of(release: Release, mirror: str | None = None) -> list[str]:
    """Where to fetch a release: MIRROR/path, or the manifest's addresses.

    Raises DownloadError where there is no address, or one that is neither http nor https.
    """
    found = [f"{mirror.rstrip('/')}/{release.path}"] if mirror else list(release.addresses)
    if not found:
        raise DownloadError(
            f"{release.name}: is at cloud drives only; `ilgnet data where {release.name}` explains how to get it"
        )
    for address in found:
        if not address.lower().startswith(("http://", "https://")):
            raise DownloadError(
                f"{address}: not an http or https address; for a folder use folder=FOLDER", option="folder"
            )
    return found


def find_in_folder(release: Release, folder: Path) -> Path:
    """A good copy of a release in ``folder``: a browser's downloads, a USB stick, a clone of the repository.

    Looked up under the repository's own path, under its bare name, and then among the files of the right size,
    whatever their names (browsers rename downloads). Raises DownloadError with what was found instead.
    """
    if not folder.is_dir():
        raise DownloadError(
            f"{folder}: is not a folder; give folder= the one that holds {release.path}", option="folder"
        )
    named = [folder / release.path, folder / Path(release.path).name]
    same_size = [path for path in folder.iterdir() if path.is_file() and path.stat().st_size == release.size]
    faults = []
    for path in dict.fromkeys([*named, *sorted(same_size)]):
        found = fault(release, path)
        if found is None:
            return path
        if found != "missing":
            faults.append(f"{path} {'is' if found.startswith('a ') else 'has'} {found}")
    reason = "; ".join(faults) or f"neither {release.path} nor any file of {release.size} bytes is there"
    raise DownloadError(f"{release.name}: not in {folder}: {reason}; fetch it again")
