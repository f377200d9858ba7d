"""``ilgnet caffe train``: Caffe's `train`, flag for flag and line for line."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ._options import COUNT, LEVEL, add_ignore_field, check_exist, check_state

_EPILOG = """examples:
  ilgnet caffe train -solver solver.prototxt
  ilgnet caffe train -solver solver.prototxt -weights bvlc_googlenet.caffemodel,heads.caffemodel
  ilgnet caffe train -solver solver.prototxt -snapshot net_iter_1000.solverstate 2>&1 | tee train.log
  torchrun --nproc-per-node 2 tools/train.py --solver solver.prototxt   (more devices: see ilgnet train)

Paths in the solver are relative to the current folder, as in Caffe, or to the solver's own if its net is not
found there; a file that is missing there is looked up beside the solver or the net that names it. Caffe's log goes
to stderr. Ctrl-C stops with a snapshot, SIGHUP takes one and continues."""


def add_parser(actions: Any) -> None:
    """Add ``train`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "train", help="train or fine-tune a net", description="Train or fine-tune a net as Caffe does.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

    parser.switches = ("allow-nonfinite", "allow_nonfinite")

    def flag(name: str, help_: str, **options: Any) -> None:
        parser.add_argument(f"-{name}", f"--{name}", help=help_, **options)

    flag("solver", "the solver", metavar="PROTOTXT", required=True)
    flag(
        "weights",
        "trained weights to fine-tune (.caffemodel, .caffemodel.h5, .safetensors), separated by commas",
        metavar="CAFFEMODELS",
        default="",
    )
    flag(
        "snapshot",
        "the solver state to resume from; the data start at the first row again, unless the run that wrote it was killed",
        metavar="SOLVERSTATE",
        default="",
    )
    flag(
        "gpu",
        "a GPU's number (default: the solver's choice; the CPU if there is none)",
        default="",
        metavar="N",
    )
    flag("iterations", "ignored, as in Caffe: max_iter of the solver applies", type=COUNT, metavar="N")
    flag("phase", "TRAIN, the only phase there is to train in", choices=("TRAIN", ""), default="")
    flag("level", "the net's level", type=LEVEL, default=0, metavar="N")
    flag("stage", "the net's stages, separated by commas", default="", metavar="NAMES")
    add_ignore_field(parser, "-ignore-field", "--ignore-field")
    parser.add_argument(
        "-allow-nonfinite", "--allow-nonfinite", "-allow_nonfinite", "--allow_nonfinite", action="store_true",
        help="continue if the loss is NaN or infinite, as Caffe does (default: stop, with status 1)",
    )  # fmt: skip
    effects = ("stop", "snapshot", "none")
    flag("sigint_effect", "what Ctrl-C does (default stop)", choices=effects, default="stop")
    flag("sighup_effect", "what SIGHUP does (default snapshot)", choices=effects, default="snapshot")


def run(args: argparse.Namespace) -> int:
    """Train, logging as Caffe does."""
    from ..errors import IlgnetError

    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":  # torchrun's number of processes
        raise IlgnetError(
            f"caffe train: trains in one process, and torchrun started {count}; start tools/train.py by torchrun "
            "(docs/training.md)"
        )
    if args.weights and args.snapshot:
        raise IlgnetError(
            "-snapshot and -weights: give a snapshot to resume or weights to fine-tune, not both"
        )
    check_exist(args.solver, args.weights.split(","))
    check_state(args.snapshot)
    from ..caffe_tool.log import CaffeLog
    from ..train.loop import Options, Trainer
    from ..train.signals import Requests, catch_signals
    from ..train.solver import read_settings, solver_root

    log = CaffeLog()
    weights = [name for name in args.weights.split(",") if name]
    settings = read_settings(
        args.solver, solver_root(args.solver), level=args.level, stages=args.stage.split(","), weights=weights,
        ignore_fields=args.ignore_field,
    )  # fmt: skip
    if args.iterations is not None:
        log.log("mode", f"-iterations {args.iterations} is ignored by train; max_iter is {settings.max_iter}")
    for note in settings.notes:
        log.log("settings", note)
    with catch_signals(Requests(), args.sigint_effect, args.sighup_effect) as requests:
        options = Options(device=_device(args.gpu), allow_nonfinite=args.allow_nonfinite)
        trainer = Trainer(settings, options, [log], requests=requests)
        if args.snapshot:
            log.log("resume", f"Resuming from {args.snapshot}")
            trainer.restore(args.snapshot, from_first_row=True, unless_killed=True)
        log.log("start", "Starting Optimization")
        trainer.solve()
        log.log("end", "Optimization Done.")
    return 0


def _device(gpu: str) -> str | None:
    from ..errors import IlgnetError

    if not gpu:
        return None
    import torch

    found = torch.cuda.device_count()
    if gpu == "all" or "," in gpu:
        raise IlgnetError(f"-gpu {gpu}: several GPUs need one process each; use torchrun (docs/training.md)")
    if not gpu.isdecimal() or int(gpu) >= found:
        raise IlgnetError(f"-gpu {gpu}: there are {found} GPUs here; omit it for the CPU")
    return f"cuda:{gpu}"
