"""``ilgnet data``: fetch, verify and find the files the authors released."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..files import json_text
from ._console import say
from ._options import Real, Whole

_EPILOG = """NAME is a released file (ava1-train, ava2-weights, deploy, ...) or a kind of them
(partition, mean, weights, net, solver, log); `ilgnet data where` lists them all.

examples:
  ilgnet data get partition mean                 the four lists and two mean files
  ilgnet data get ava1-weights --from ~/Downloads
  ilgnet data get deploy --mirror https://mirror.example/ILGnet --proxy http://proxy:3128
  ilgnet data verify                             all that is there
  ilgnet data where ava2-weights

Files go to --dest DIR, else $ILGNET_HOME, else ~/.cache/ilgnet_repro, under the paths of the
authors' repository. http_proxy, https_proxy and no_proxy of the environment are honoured.
verify ends with 1 if a file is wrong, a named one is missing, or there is none at all."""


def add_parser(subparsers: Any) -> None:
    """Add ``data`` with its three actions."""
    parser = subparsers.add_parser(
        "data",
        description="Fetch, verify and find the lists, mean files, weights and nets the authors released.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="fetch released files, checked and resumed")
    get.add_argument("names", nargs="+", metavar="NAME")
    get.add_argument("--from", dest="folder", metavar="FOLDER", help="copy from here instead of the network")
    get.add_argument("--mirror", metavar="URL", help="fetch URL/path instead of the manifest's address")
    get.add_argument("--proxy", metavar="URL", help="instead of the environment's")
    get.add_argument(
        "--timeout", type=Real(0.001, 86400), default=30.0, metavar="S", help="read timeout (default 30)"
    )
    get.add_argument(
        "--tries", type=Whole(1, 1000), default=5, metavar="N", help="for each address (default 5)"
    )
    verify = actions.add_parser("verify", help="compare size and SHA-256 with the manifest")
    verify.add_argument("names", nargs="*", metavar="NAME")
    where = actions.add_parser("where", help="where each file is, here and at its source")
    where.add_argument("names", nargs="*", metavar="NAME")
    for action in (get, verify, where):
        action.add_argument("--dest", metavar="DIR", help="folder of the files")
        action.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Fetch, verify or locate; 0, or 1 where verify found a fault."""
    from ..aesthetics import releases as manifest

    chosen = manifest.select(args.names)
    folder = Path(args.dest).expanduser() if args.dest else manifest.default_folder()
    action = {"get": _get, "verify": _verify, "where": _where}[args.action]
    return action(chosen, folder, args)


def _get(chosen: tuple[Any, ...], folder: Path, args: argparse.Namespace) -> int:
    from ..aesthetics.download import get
    from ._console import progress_bar

    options = {name: getattr(args, name) for name in ("mirror", "proxy", "timeout", "tries")}
    source = Path(args.folder).expanduser() if args.folder else None
    got = []
    for release in chosen:
        target = folder / release.path
        with progress_bar(release.name, release.size, "bytes") as progress:
            get(release, target, folder=source, progress=progress, **options)
        got.append(
            {"name": release.name, "file": str(target), "size": release.size, "sha256": release.sha256}
        )
        if not args.json:
            say(f"{release.name}: {target}", flush=True)
    if args.json:
        print(json_text(got))
    return 0


def _verify(chosen: tuple[Any, ...], folder: Path, args: argparse.Namespace) -> int:
    from ..aesthetics.releases import fault

    found = [(release, folder / release.path, fault(release, folder / release.path)) for release in chosen]
    wrong = [state for _, _, state in found if state and (args.names or state != "missing")]
    whole = sum(state is None for _, _, state in found)
    if args.json:
        rows = [
            {"name": release.name, "file": str(path), "ok": state is None, "fault": state}
            for release, path, state in found
        ]
        print(json_text(rows))
    else:
        for release, path, state in found:
            say(f"{release.name}: {state or 'ok'} ({path})")
    if not whole and not wrong:
        say(f"note: no released file is under {folder}", file=sys.stderr)
    return 1 if wrong or not whole else 0


def _where(chosen: tuple[Any, ...], folder: Path, args: argparse.Namespace) -> int:
    rows = [
        {
            "name": release.name,
            "kind": release.kind,
            "file": str(folder / release.path),
            "present": (folder / release.path).is_file(),
            "size": release.size,
            "sha256": release.sha256,
            "addresses": list(release.addresses),
            "drives": list(release.drives),
        }
        for release in chosen
    ]
    if args.json:
        print(json_text(rows))
        return 0
    for row, release in zip(rows, chosen, strict=True):
        say(f"{row['name']} ({row['kind']}, {row['size']:,} bytes{_counts(release)})")
        say(f"  here    {row['file']}{'' if row['present'] else ' (not there)'}")
        for address in row["addresses"]:
            say(f"  source  {address}")
        if release.drives:
            _print_drive_help(release, folder)
    return 0


def _counts(release: Any) -> str:
    if release.rows is None:
        return ""
    return f", {release.rows:,} rows: {release.classes[0]:,} low, {release.classes[1]:,} high"


def _print_drive_help(release: Any, folder: Path) -> None:
    print("  source  no direct address is known: the authors put it on cloud drives, which need a browser:")
    for drive in release.drives:
        say(f"          {drive}")
    say(f"  then    ilgnet data get {release.name} --from FOLDER   (FOLDER: where the browser put it)")
    say(f"          or move it to {folder / release.path} and run: ilgnet data verify {release.name}")
    say(f"  SHA-256 {release.sha256}")
