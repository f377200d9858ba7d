"""Fetches released files from the network or a folder: checked, and complete or absent under their name."""

from __future__ import annotations

import os
import shutil
import time
import urllib.request as web
from collections.abc import Callable
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError

from ..errors import DownloadError
from ..files import atomic_path, file_sha256
from .releases import LFS_START, Release, addresses_of, fault, find_in_folder


def get(
    release: Release, target: Path, *, folder: Path | None = None, mirror: str | None = None, proxy: str | None = None,
    timeout: float = 30, tries: int = 5, pause: float = 1, progress: Callable[[int], None] = lambda held: None,
) -> None:  # fmt: skip
    """Fetch a release into ``target``, or copy it from ``folder``; a good copy that exists is kept.

    ``mirror`` replaces the manifest's addresses (MIRROR/path), ``proxy`` that of the environment; ``target.part`` is
    resumed. ``pause`` seconds pass between two tries, twice as many each time. Raises DownloadError with each failure.
    """
    failures, part = [], target.with_name(target.name + ".part")
    try:
        if fault(release, target) is None:
            return
        sources = [str(find_in_folder(release, folder))] if folder else addresses_of(release, mirror)
        target.parent.mkdir(parents=True, exist_ok=True)
        needed = release.size - (part.stat().st_size if part.exists() else 0)
        if needed > (free := shutil.disk_usage(target.parent).free):
            raise DownloadError(
                f"{target}: needs {needed} bytes, the disk has {free}; give another target=", option="target"
            )
        if folder:
            with atomic_path(target) as temporary:
                shutil.copyfile(sources[0], temporary)
                if found := fault(release, temporary):  # the copy is checked, not its source
                    raise DownloadError(f"{sources[0]}: changed while it was copied ({found}); run again")
            return progress(release.size)
        opener = web.build_opener(web.ProxyHandler({"http": proxy, "https": proxy} if proxy else None))
        for address in sources:
            reason = "was not tried"
            for attempt in range(tries):
                if attempt:
                    time.sleep(min(pause * 2 ** (attempt - 1), 30))
                try:
                    _fetch(release, part, address, opener, timeout, progress)
                    return os.replace(part, target)
                except ConnectionError as error:
                    reason = f"{error} ({tries} tries)"
                except DownloadError as error:
                    reason = str(error)
                    break
            failures.append(f"{address} {reason}")
        if not (kept := part.stat().st_size if part.exists() else 0):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{target}: cannot be written ({error.strerror or error}); try another target=", option="target"
        ) from error
    remedy = f"{kept} bytes are kept, run again to resume" if kept else "try mirror=URL or folder=FOLDER"
    raise DownloadError(f"{release.name}: {'; '.join(failures)}; {remedy}", option="mirror folder")


def _fetch(
    release: Release, part: Path, address: str, opener: web.OpenerDirector, timeout: float,
    progress: Callable[[int], None],
) -> None:  # fmt: skip
    """Fill ``part`` by one request. Raises ConnectionError where another one may succeed, else DownloadError."""
    with open(part, "ab") as file:
        resumed = held = file.tell() if file.tell() <= release.size else file.truncate(0)
        progress(held)
        if held < release.size:
            headers = {"User-Agent": "ilgnet_repro"} | ({"Range": f"bytes={held}-"} if held else {})
            request = web.Request(address, headers=headers)
            with _ask(file, timeout, opener.open, request, None, timeout) as response:
                text = response.headers.get("Content-Range", "")
                if response.status != 206:  # also where the server ignores Range
                    resumed = held = file.truncate(0)
                elif not text.startswith(f"bytes {held}-"):
                    file.truncate(0)
                    raise ConnectionError(f"answers a request from byte {held} with range {text!r}")
                total = text.rpartition("/")[2] or response.headers.get("Content-Length", "*")
                while piece := _ask(file, timeout, response.read1, min(1 << 18, release.size - held)):
                    if not held and piece.startswith(LFS_START):
                        raise DownloadError("serves a Git-LFS pointer instead of the file it stands for")
                    if total.isdecimal() and total.lstrip("0") != str(release.size):
                        raise DownloadError(f"offers {total} bytes where the manifest says {release.size}")
                    file.write(piece)
                    held += len(piece)
                    progress(held)
    if held < release.size:
        raise ConnectionError(f"stopped after {held} of {release.size} bytes")
    if (digest := file_sha256(part)) != release.sha256:
        part.unlink()
        kind = ConnectionError if resumed else DownloadError  # the bytes of an earlier run may be the cause
        raise kind(f"serves SHA-256 {digest} where the manifest says {release.sha256}")


def _ask(file: IO[bytes], timeout: float, request: Callable[..., Any], *words: Any) -> Any:
    """The server's response, with its failures as messages; see `_fetch`."""
    try:
        return request(*words)
    except HTTPError as error:
        error.close()
        code, reason = error.code, f"answers HTTP {error.code}"
        if code == 416:
            file.truncate(0)  # the bytes so far are not those of the file
        if code < 400:
            reason = f"redirects in a circle or out of http (HTTP {code})"
        raise (ConnectionError if code >= 500 or code in (408, 416, 429) else DownloadError)(reason) from None
    except (InvalidURL, ValueError) as error:
        raise DownloadError(f"cannot be asked for ({error})") from None
    except (HTTPException, OSError) as error:
        cause = error.reason if isinstance(error, URLError) else None
        reason = f"cannot be reached ({cause})" if cause else f"broke off ({type(error).__name__})"
        reason = f"was silent for {timeout:g} s" if isinstance(cause or error, TimeoutError) else reason
        raise ConnectionError(reason) from None
