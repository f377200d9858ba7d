"""``ilgnet train``: train or fine-tune a net from a solver prototxt, or a model of image scores."""

from __future__ import annotations

import argparse
from typing import Any

from .. import precisions
from ..files import json_text
from ._console import say
from ._model_runs import add_training_options, check_not_given, run_training
from ._options import COUNT, WORKERS, Whole, add_ignore_field, check_exist, check_state

_EPILOG = """examples:
  ilgnet train --solver solver.prototxt --weights bvlc_googlenet.caffemodel
  ilgnet train --solver solver.prototxt --resume latest --patience 5 --keep 3
  ilgnet train --solver solver.prototxt --weights w.caffemodel --freeze 'conv[1-3].*' --lr-mult 'fc8=10' --warm-up 500
  torchrun --nproc-per-node 2 tools/train.py --solver solver.prototxt --resume latest
  ilgnet train --model tanet --data tad66k --folder labels --pictures images --weights places=resnet18_places365.safetensors
  ilgnet train --model nima --option backbone=mobilenet_v2 --data ava --folder ava --pictures ava/images --resume latest
  ilgnet train --model attributes --data aadb --folder aadb --weights backbone=VGG_ILSVRC_16_layers.caffemodel

Paths in the solver are relative to the current folder, as in Caffe, or to the solver's own if its net is not
found there. With torchrun the batch of the prototxt is that of all processes together. See docs/training.md."""


def add_parser(subparsers: Any) -> None:
    """Add ``train``."""
    parser = subparsers.add_parser(
        "train", description="Train or fine-tune a net with Caffe's solvers, step for step, or a model of image scores.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--solver", required=True, metavar="PROTOTXT", help="the solver")
    add(
        "--weights",
        default="",
        metavar="W[,W]",
        help="weights to fine-tune from (.caffemodel, .caffemodel.h5, .safetensors), copied by layer name; with --model "
        "its own file, or PART=FILE, a backbone's (.safetensors; .caffemodel for vgg16, mobilenet_v1 and inception_v2)",
    )
    add(
        "--resume",
        metavar="STATE",
        help="a .solverstate to resume from, or `latest`: the newest, if there is one; the data are read on",
    )
    add(
        "--freeze", metavar="REGEX", action="append", default=[],
        help="layers, by whole name, that do not learn (repeatable): 'conv[1-3].*'",
    )  # fmt: skip
    add(
        "--lr-mult", metavar="REGEX=FACTOR", action="append", default=[],
        help="layers that learn FACTOR times as fast as the net says (repeatable): 'fc8.*=10'",
    )  # fmt: skip
    add(
        "--warm-up", metavar="N[:FACTOR]", default="",
        help="raise the rate from FACTOR (default 0.1) of base_lr to base_lr in the first N iterations",
    )  # fmt: skip
    add("--out", metavar="DIR", help="folder of tables and plot (default: SNAPSHOT_PREFIX_log)")
    add("--max-iter", type=Whole(), metavar="N", help="overrides the solver's max_iter")
    add(
        "--best-by",
        metavar="OUTPUT",
        help="test output that selects the best weights (default: the accuracy)",
    )
    add("--patience", type=Whole(), default=0, metavar="N", help="stop after N tests without improvement")
    add("--keep", type=Whole(), default=0, metavar="N", help="keep the newest N snapshots (default: all)")
    add(
        "--allow-nonfinite", action="store_true",
        help="continue if the loss is NaN or infinite, as Caffe does (default: stop, with status 1)",
    )  # fmt: skip
    add(
        "--precision", choices=precisions.TRAINING, default="float32",
        help="default float32, as Caffe; caffe: also sums in the order of its CPU code, slower",
    )  # fmt: skip
    add(
        "--accumulate",
        type=COUNT,
        default=1,
        metavar="N",
        help="split each batch into N passes, with the same result",
    )
    add("--workers", type=WORKERS, metavar="N", help="threads that read ahead (default 0, or 4 with a GPU)")
    add(
        "--device",
        metavar="D",
        help="cpu or cuda:N (default: the solver's choice; the CPU if there is no GPU)",
    )
    add(
        "--grad-norms", action="store_true",
        help="write the norms of the gradients to gradients.csv, and show that of all",
    )  # fmt: skip
    add("--tensorboard", action="store_true", help="write TensorBoard events too")
    add("--caffe-log", action="store_true", help="print Caffe's log on stderr instead of the progress view")
    add_ignore_field(parser, "--ignore-field")
    add("--json", action="store_true", help="print the result as JSON")
    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print the result."""
    if args.model is not None:
        return run_training(args)
    check_not_given(args, of="trained model")
    check_exist(args.solver, args.weights.split(","))
    check_state(None if args.resume == "latest" else args.resume)
    from ..process import tune_process
    from ..train.distributed import process_group
    from ..train.signals import Requests, catch_signals

    tune_process()
    with process_group(args.device) as group, catch_signals(Requests()) as requests:
        return _train(args, group, requests)


def _train(args: argparse.Namespace, group: Any, requests: Any) -> int:
    import sys
    from pathlib import Path

    import torch

    from ..caffe_tool.log import CaffeLog
    from ..errors import DivergedError
    from ..train.best_weights import BestWeights
    from ..train.curves import PLOT, CsvLog, TensorBoardLog, draw_curves
    from ..train.loop import Options, Trainer
    from ..train.observe import Observer
    from ..train.one_run import OneRun
    from ..train.recipes import Recipe, RecipeFiles, apply_recipe
    from ..train.solver import read_settings, solver_root
    from ._training_view import TrainingView

    weights = [name for name in args.weights.split(",") if name]
    settings = read_settings(
        args.solver, solver_root(args.solver), stages=(), weights=weights, ignore_fields=args.ignore_field
    )
    if args.max_iter is not None:
        settings = settings.with_(max_iter=args.max_iter)
    folder = Path(args.out) if args.out else Path(settings.root, f"{settings.snapshot_prefix}_log")
    recipe = Recipe(tuple(args.freeze), tuple(args.lr_mult), args.warm_up)
    changed = apply_recipe(settings, recipe, folder) if recipe else None
    settings = settings if changed is None else changed.settings
    view = CaffeLog() if args.caffe_log else TrainingView()
    observers: list[Observer] = [view, OneRun(folder, resumes=bool(args.resume))]
    if changed is not None:
        observers.append(RecipeFiles(changed, folder))
    observers.append(CsvLog(folder, norms=args.grad_norms))
    tests = bool(settings.test_nets) and settings.test_nets[0].test_iter > 0
    # Without tests, the options that need them are refused.
    wants_best = tests or args.best_by or args.patience
    best = BestWeights(args.best_by, args.patience) if wants_best else None
    if best is not None:
        observers.append(best)
    if args.tensorboard and group.is_first:
        observers.append(TensorBoardLog(folder))
    if group.is_first:
        for note in settings.notes:
            say(f"note: {note}", file=sys.stderr)
        for line in changed.lines(folder) if changed is not None else ():
            say(line, file=sys.stderr)
    workers = args.workers if args.workers is not None else 4 if torch.cuda.is_available() else 0
    options = Options(
        args.device, args.precision, args.accumulate, args.keep, workers, args.allow_nonfinite, args.grad_norms
    )  # fmt: skip
    trainer = Trainer(settings, options, observers, group, requests)
    state = group.broadcast_object(trainer.snapshots.latest()) if args.resume == "latest" else args.resume
    if state:
        trainer.restore(state)
    diverged: DivergedError | None = None
    try:
        trainer.solve()
    except DivergedError as error:  # the iterations before it are still reported
        diverged = error
    if group.is_first:
        plot = folder / PLOT
        draw_curves(folder, plot, Path(args.solver).stem)
        _report(args, trainer, best.best if best else None, plot)
    if diverged is not None:
        raise diverged
    return 0


def _report(args: argparse.Namespace, trainer: Any, best: Any, plot: Any) -> None:
    from pathlib import Path

    settings = trainer.settings
    latest = trainer.snapshots.latest(own=True)
    result = {
        "iterations": trainer.iteration,
        "stopped": trainer.reason or ("by request" if trainer.stopped else ""),
        "best": None if best is None else {"iteration": best.iteration, best.output: best.value},
        "best_weights": None
        if best is None
        else str(Path(settings.root, f"{settings.snapshot_prefix}_best.caffemodel")),
        "snapshot": str(latest) if latest else None,
        "plot": str(plot),
    }
    if args.json:
        print(json_text(result))
        return
    say(f"{trainer.iteration} iterations{'; stopped: ' + result['stopped'] if result['stopped'] else ''}")
    if best is not None:
        say(f"best {best.output} {best.value:.6g} at iteration {best.iteration}: {result['best_weights']}")
    if latest:
        say(f"snapshot: {latest}")
    say(f"curves: {plot}")
