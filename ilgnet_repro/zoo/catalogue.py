"""Every net of the zoo by name, and the text files under ``prototxt/`` that they are written to.

``python -m ilgnet_repro.zoo.catalogue`` lists the names; with ``--write`` it rewrites the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.files import atomic_file, check_replaced, starts_with
from ilgnet_repro.schema import caffe_pb2

from ..manifest import listed, resolve
from . import alexnet, fcn, googlenet, mobilenet, resnet, squeezenet, ssd, vgg

COMMAND = "python -m ilgnet_repro.zoo.catalogue --write"

Builder = Callable[[], caffe_pb2.NetParameter]

BUILDERS: dict[str, Builder] = {
    "googlenet": googlenet.deploy,
    "googlenet_train_val": googlenet.train_val,
    "alexnet": alexnet.deploy,
    "vgg16": vgg.deploy_16,
    "vgg19": vgg.deploy_19,
    "resnet50": resnet.deploy_50,
    "squeezenet": squeezenet.deploy,
    "mobilenet": mobilenet.deploy_v1,
    "mobilenet_v2": mobilenet.deploy_v2,
    "ssd300": ssd.vgg_300,
    "mobilenet_ssd": ssd.mobilenet_300,
    "fcn8s": fcn.deploy_8s,
}

# Path under prototxt/ -> the net written there.
NET_FILES: Mapping[str, str] = {
    "googlenet/deploy.prototxt": "googlenet",
    "googlenet/train_val.prototxt": "googlenet_train_val",
    "alexnet/deploy.prototxt": "alexnet",
    "squeezenet/deploy.prototxt": "squeezenet",
}


@cache
def builders() -> dict[str, Builder]:
    """Return every net by name: the zoo's, and those of the manifests."""
    return {**{name: resolve(function) for name, function in listed("nets").items()}, **BUILDERS}


def build(name: str) -> caffe_pb2.NetParameter:
    """Build the net of that name. Raises IlgnetError, with the list of names, for an unknown name."""
    if name not in builders():
        raise IlgnetError(f"{name!r} is not in the zoo; choose one of {', '.join(builders())}")
    return builders()[name]()


def texts() -> dict[str, str]:
    """Return the files under ``prototxt/``: path to text."""
    functions = {path: BUILDERS[name] for path, name in NET_FILES.items()}
    functions |= {path: resolve(function) for path, function in listed("files").items()}
    return {
        path: f"# Written by {function.__module__}.{function.__qualname__}; to write it again: {COMMAND}\n"
        f"{format_message(function())}"
        for path, function in functions.items()
    }


def write(folder: Path) -> list[Path]:
    """Write every file of `texts` under ``folder``, creating subfolders; return the paths."""
    written = []
    for name, text in texts().items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise IlgnetError(f"{path.parent}: cannot be created ({reason}); give another folder") from error
        check_replaced(path, starts_with(b"# Written by "), COMMAND, "give another folder with --out")
        with atomic_file(path, "w") as file:
            file.write(text)
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    """List the nets, or write their text; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ilgnet_repro.zoo.catalogue", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the text files")
    parser.add_argument("--out", type=Path, default=Path("prototxt"), help="their folder (default: prototxt)")
    options = parser.parse_args(arguments)
    try:
        print(*(write(options.out) if options.write else builders()), sep="\n")
    except IlgnetError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
