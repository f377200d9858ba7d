"""Every net of the zoo by name, and the text files under ``prototxt/`` that they are written to.

``python -m ilgnet_repro.zoo.catalogue`` lists the names; with ``--write`` it rewrites the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.files import atomic_file, check_replaced, starts_with
from ilgnet_repro.schema import caffe_pb2

from ..aesthetics import ablations, ilgnet, resnet_inception, solvers
from . import alexnet, fcn, googlenet, mobilenet, resnet, squeezenet, ssd, vgg

COMMAND = "python -m ilgnet_repro.zoo.catalogue --write"

Builder = Callable[[], caffe_pb2.NetParameter]

BUILDERS: dict[str, Builder] = {
    "ilgnet": ilgnet.deploy,
    "ilgnet_train": ilgnet.train,
    "ilgnet_val": ilgnet.val,
    "ilgnet_train_ava1": ilgnet.train_ava1,
    "ilgnet_val_ava1": ilgnet.val_ava1,
    "ilgnet_without_local": ablations.ilgnet_without_local,
    "ilgnet_without_local_train_val": ablations.ilgnet_without_local_train_val,
    "ilgnet_without_inception": ablations.ilgnet_without_inception,
    "ilgnet_without_inception_train_val": ablations.ilgnet_without_inception_train_val,
    "googlenet_third": ablations.googlenet_third,
    "googlenet_third_train_val": ablations.googlenet_third_train_val,
    "googlenet_two_thirds": ablations.googlenet_two_thirds,
    "googlenet_two_thirds_train_val": ablations.googlenet_two_thirds_train_val,
    "googlenet_whole": ablations.googlenet_whole,
    "googlenet_whole_train_val": ablations.googlenet_whole_train_val,
    "resnet_inception": resnet_inception.deploy,
    "resnet_inception_train_val": resnet_inception.train_val,
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
    "ilgnet/deploy.prototxt": "ilgnet",
    "ilgnet/train.prototxt": "ilgnet_train",
    "ilgnet/val.prototxt": "ilgnet_val",
    "ilgnet/ava1_train.prototxt": "ilgnet_train_ava1",
    "ilgnet/ava1_val.prototxt": "ilgnet_val_ava1",
    "googlenet/deploy.prototxt": "googlenet",
    "googlenet/train_val.prototxt": "googlenet_train_val",
    "resnet_inception/deploy.prototxt": "resnet_inception",
    "resnet_inception/train_val.prototxt": "resnet_inception_train_val",
    **{
        f"ablations/{name}{part}.prototxt": f"{name}{part}"
        for name in (
            "googlenet_third",
            "googlenet_two_thirds",
            "googlenet_whole",
            "ilgnet_without_local",
            "ilgnet_without_inception",
        )
        for part in ("", "_train_val")
    },
    "alexnet/deploy.prototxt": "alexnet",
    "squeezenet/deploy.prototxt": "squeezenet",
}


def build(name: str) -> caffe_pb2.NetParameter:
    """The net of that name, built anew.  Raises IlgnetError, which lists the names, on another one."""
    if name not in BUILDERS:
        raise IlgnetError(f"{name!r} is no net of the zoo; choose one of {', '.join(BUILDERS)}")
    return BUILDERS[name]()


def texts() -> dict[str, str]:
    """The files under ``prototxt/``: path to text."""
    messages: dict[str, tuple[str, caffe_pb2.NetParameter | caffe_pb2.SolverParameter]] = {}
    for path, name in NET_FILES.items():
        builder = BUILDERS[name]
        messages[path] = f"{builder.__module__}.{builder.__qualname__}", build(name)
    # AVA1 has its own databases and batch size, so its solver names its own nets.
    ava1 = solvers.ava1("ava1_train.prototxt", "ava1_val.prototxt")
    messages["ilgnet/ava1_solver.prototxt"] = f"{solvers.__name__}.ava1", ava1
    messages["ilgnet/ava2_solver.prototxt"] = f"{solvers.__name__}.ava2", solvers.ava2()
    return {
        path: f"# Written by {builder}; to write it again: {COMMAND}\n{format_message(message)}"
        for path, (builder, message) in messages.items()
    }


def write(folder: Path) -> list[Path]:
    """Write every file of ``texts`` under ``folder``, making its subfolders; return the paths."""
    written = []
    for name, text in texts().items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise IlgnetError(f"{path.parent}: cannot be made ({reason}); give another folder") from error
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
        print(*(write(options.out) if options.write else BUILDERS), sep="\n")
    except IlgnetError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
