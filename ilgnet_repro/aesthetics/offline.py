"""Taking released files from a folder: a browser's downloads, a USB stick, a clone of the repository."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DownloadError
from ..files import atomic_path
from .download import CHUNK, Progress, check_room
from .releases import Release, fault


def copy_release(
    release: Release,
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress = lambda held: None,
) -> Path:
    """Copy a release out of ``folder`` to ``target``, checked; a good copy already there is left alone.

    Looked for under the repository's own path, under its bare name, and then among the files of the
    folder that have the right size, whatever they are called (browsers rename downloads).
    Raises DownloadError with what was found instead.
    """
    folder, target = Path(folder), Path(target)
    try:
        if fault(release, target) is None:
            return target
        if not folder.is_dir():
            raise DownloadError(f"{folder}: is no folder; give --from the one that holds {release.path}")
        source = _find(release, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_room(release, target)
        with atomic_path(target) as temporary:
            _copy(source, temporary, release.size, progress)
            # The copy is checked, not the source: what was written is what counts.
            if found := fault(release, temporary):
                raise DownloadError(f"{source}: changed while it was copied ({found}); run again")
    except OSError as error:
        raise DownloadError(f"{target}: cannot be copied ({error.strerror or error})") from error
    return target


def _find(release: Release, folder: Path) -> Path:
    named = [folder / release.path, folder / Path(release.path).name]
    others = sorted(
        path for path in folder.iterdir() if path.is_file() and path.stat().st_size == release.size
    )
    faults = []
    for path in dict.fromkeys([*named, *others]):
        found = fault(release, path)
        if found is None:
            return path
        if found != "missing":
            faults.append(f"{path} is {found}" if found[0] == "a" else f"{path} has {found}")
    told = "; ".join(faults) or f"neither {release.path} nor any file of {release.size} bytes is there"
    raise DownloadError(f"{release.name}: not in {folder}: {told}; fetch it again")


def _copy(source: Path, target: Path, size: int, progress: Progress) -> None:
    held = 0
    with open(source, "rb") as reader, open(target, "wb") as writer:
        while held < size and (piece := reader.read(min(CHUNK, size - held))):
            writer.write(piece)
            held += len(piece)
            progress(held)
