"""Fetching released files: resumed, checked while they stream, and whole or absent under their name."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .releases import LFS_START, Release, fault

CHUNK = 1 << 18
_LONGEST_PAUSE = 30.0
Progress = Callable[[int], None]  # told the number of bytes held so far


@dataclass(frozen=True)
class Options:
    """How to fetch. ``mirror`` takes the place of the manifest's addresses (MIRROR/path), ``proxy`` that
    of the environment's. ``timeout`` is the longest silence in seconds; a fault that may pass is tried
    ``tries`` times an address, ``pause`` seconds apart at first and twice as long each time."""

    mirror: str | None = None
    proxy: str | None = None
    timeout: float = 30.0
    tries: int = 5
    pause: float = 1.0


class _Passing(Exception):
    """This try failed; another at the same address may not."""


class _Restart(_Passing):
    """The same, and the bytes held are of no use to the next try."""


class _Final(Exception):
    """This address does not give the file."""


@dataclass(frozen=True)
class _Job:
    """What stays the same from try to try."""

    release: Release
    part: Path
    opener: urllib.request.OpenerDirector
    options: Options
    progress: Progress


def download(
    release: Release,
    target: str | os.PathLike[str],
    options: Options | None = None,
    progress: Progress = lambda held: None,
) -> Path:
    """Fetch a release into ``target`` and return its path; a good copy already there is left alone.

    What has come so far is kept as ``target.part`` and the next call goes on from there. Nothing beyond
    the manifest's size is read, and nothing appears under ``target`` before its SHA-256 is right.
    Raises DownloadError with what each address did, or if the disk cannot take the file.
    """
    options = options or Options()
    target = Path(target)
    part = target.with_name(target.name + ".part")
    try:
        if fault(release, target) is None:
            return target
        addresses = _addresses(release, options.mirror)
        job = _Job(release, part, _opener(options.proxy), options, progress)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_room(release, target, held=part.stat().st_size if part.exists() else 0)
        failures = []
        for address in addresses:
            failure = _exhaust(job, address)
            if failure is None:
                os.replace(part, target)
                return target
            failures.append(failure)
        kept = part.stat().st_size if part.exists() else 0
        if not kept:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"{target}: cannot be written ({error.strerror or error}); try --dest") from error
    remedy = f"{kept} bytes are kept, run again to resume" if kept else "try --mirror URL or --from FOLDER"
    raise DownloadError(f"{release.name}: {'; '.join(failures)}; {remedy}")


def check_room(release: Release, target: Path, held: int = 0) -> None:
    """Raise DownloadError if the disk of ``target`` lacks room for what is not held yet."""
    needed, free = release.size - held, shutil.disk_usage(target.parent).free
    if needed > free:
        raise DownloadError(f"{target}: needs {needed} bytes, the disk has {free}; give another --dest")


def _addresses(release: Release, mirror: str | None) -> tuple[str, ...]:
    found = (f"{mirror.rstrip('/')}/{release.path}",) if mirror else release.addresses
    if not found:
        raise DownloadError(
            f"{release.name}: is at cloud drives only; `ilgnet data where {release.name}` tells how to get it"
        )
    for address in found:
        if not address.lower().startswith(("http://", "https://")):
            raise DownloadError(f"{address}: not an http or https address; for a folder use --from FOLDER")
    return found


def _opener(proxy: str | None) -> urllib.request.OpenerDirector:
    """An opener for http and https alone: a redirect must not lead to file: or ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else None),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _exhaust(job: _Job, address: str) -> str | None:
    """Try one address as often as allowed; what went wrong at last, or None once the part is whole."""
    reason = "was not tried"
    for attempt in range(job.options.tries):
        if attempt:
            time.sleep(min(job.options.pause * 2 ** (attempt - 1), _LONGEST_PAUSE))
        try:
            _fetch(job, address)
            return None
        except _Final as error:
            return f"{address} {error}"
        except _Passing as error:
            reason = str(error)
            if isinstance(error, _Restart):
                job.part.unlink(missing_ok=True)
    return f"{address} {reason} ({job.options.tries} tries)"


def _fetch(job: _Job, address: str) -> None:
    """One request: fill the part up to the manifest's size and check its digest."""
    release, part, timeout = job.release, job.part, job.options.timeout
    digest, held = _held(part, release.size)
    resumed = held > 0
    job.progress(held)
    if held < release.size:
        with _open(job.opener, address, held, timeout) as response:
            if _start(response, held, release.size, timeout) == 0:  # also where the server ignores Range
                digest, held, resumed = hashlib.sha256(), 0, False
            with open(part, "ab" if held else "wb") as file:
                for piece in _pieces(response, release.size - held, timeout):
                    if not held:
                        _refuse_pointer(piece)
                    file.write(piece)
                    digest.update(piece)
                    held += len(piece)
                    job.progress(held)
    if held < release.size:
        raise _Passing(f"stopped after {held} of {release.size} bytes")
    if digest.hexdigest() != release.sha256:
        part.unlink()
        # Bytes of an earlier run may be to blame, so only a download from the start is final.
        kind = _Restart if resumed else _Final
        raise kind(f"serves SHA-256 {digest.hexdigest()} where the manifest says {release.sha256}")


def _held(part: Path, size: int) -> tuple[Any, int]:
    """The digest of the bytes an earlier run left, and their number (0 if they are too many)."""
    digest, held = hashlib.sha256(), 0
    if part.exists() and part.stat().st_size <= size:
        with open(part, "rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
                held += len(piece)
    return digest, held


def _open(opener: urllib.request.OpenerDirector, address: str, held: int, timeout: float) -> Any:
    """The response to a request for the bytes from ``held`` on; every failure as _Passing or _Final."""
    headers = {"User-Agent": "ilgnet_repro", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    try:
        return opener.open(urllib.request.Request(address, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _Restart("refuses to resume (HTTP 416)") from None
        if error.code < 400:
            raise _Final(f"redirects in a circle or out of http (HTTP {error.code})") from None
        kind = _Passing if error.code >= 500 or error.code in (408, 429) else _Final
        raise kind(f"answers HTTP {error.code}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise _Final(f"cannot be asked for ({error})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _network_fault(error, timeout) from None


def _network_fault(error: Exception, timeout: float) -> _Passing:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return _Passing(f"was silent for {timeout:g} s")
    if isinstance(error, urllib.error.URLError):
        return _Passing(f"cannot be reached ({cause})")
    return _Passing(f"broke off ({type(error).__name__})")


def _start(response: Any, held: int, size: int, timeout: float) -> int:
    """Where the body starts in the file, with what the server says of its length checked."""
    start, total = 0, response.headers.get("Content-Length", "*")
    if response.status == 206:
        text = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", text.strip())
        if not match or int(match[1]) != held:
            raise _Restart(f"answers a request from byte {held} with range {text!r}")
        start, total = held, match[2]
    if total.isdecimal() and int(total) != size:
        if start == 0:
            _refuse_pointer(next(_pieces(response, len(LFS_START), timeout), b""))
        raise _Final(f"offers {int(total)} bytes where the manifest says {size}")
    return start


def _refuse_pointer(start: bytes) -> None:
    if start.startswith(LFS_START):
        raise _Final("serves a Git-LFS pointer instead of the file it stands for")


def _pieces(response: Any, wanted: int, timeout: float) -> Iterator[bytes]:
    """The body, up to the bytes wanted and not one more."""
    try:
        while wanted and (piece := response.read1(min(CHUNK, wanted))):
            wanted -= len(piece)
            yield piece
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise _network_fault(error, timeout) from None
