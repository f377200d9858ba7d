"""``ilgnet finetune``: train a net on images of your own, from a folder per class or a CSV of scores."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from ..files import json_text
from ._console import say
from ._options import COUNT, SEED, Real, Whole, check_exist

if TYPE_CHECKING:
    from ..finetune.evaluation import Evaluation
    from ..finetune.plan import Plan, Step

_EPILOG = """examples:
  ilgnet finetune photos --out tuned
  ilgnet finetune photos --out tuned --weights bvlc_googlenet.caffemodel
  ilgnet finetune scores.csv --out tuned --weights bvlc_googlenet.caffemodel --trunk frozen --epochs 5
  ilgnet finetune photos --out tuned --prepare

DATA is a folder with a folder per class, or a CSV: `path,label`, `path,score`, or `path,votes,votes,...` with a column
per score. Each step is a command that is printed as it can be typed. Stopped at any moment, the same command resumes.
--prepare stops before the training: edit tuned/solver.prototxt or tuned/train_val.prototxt and run again without it.
The result is tuned/net_best.safetensors, which `ilgnet score` takes as it is, and tuned/report.html."""


def add_parser(subparsers: Any) -> None:
    """Add ``finetune``."""
    parser = subparsers.add_parser(
        "finetune", description="Train a net on your own images: databases, mean, nets, solver, training, report.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("source", metavar="DATA", help="a folder per class, or a CSV of path and label, score or votes")
    add("--out", required=True, metavar="DIR", help="a new folder for all that is made")
    add(
        "--weights",
        metavar="W",
        help="a trained net (.caffemodel, .caffemodel.h5, .safetensors); default: a small one, from scratch",
    )
    add("--prototxt", metavar="P", help="the deploy net of the weights, where it is not found by itself")
    add(
        "--task",
        choices=("classes", "score", "distribution"),
        help="what the CSV holds (default: from its labels)",
    )
    add("--layer", metavar="NAME", help="the layer to replace by a new one (default: the last with weights)")
    add(
        "--trunk", choices=("slow", "frozen", "full"), default="slow",
        help="how the layers before the new one learn: a tenth as fast (slow, the default), not at all, or as fast",
    )  # fmt: skip
    add(
        "--epochs", type=COUNT, metavar="N", help="passes over the train images (default 10; 20 from scratch)"
    )
    add("--batch", type=COUNT, default=32, metavar="N", help="images per iteration (default 32)")
    add("--lr", type=Real(1e-12), metavar="RATE", help="base_lr (default 0.001; 0.05 from scratch)")
    add(
        "--size",
        type=Whole(16, 1024),
        metavar="N",
        help="side of the small net's input (default: the images', up to 128)",
    )
    add(
        "--resize",
        type=Whole(16, 4096),
        metavar="N",
        help="side of the stored images; larger than the net's: random crops",
    )
    add("--no-mirror", action="store_true", help="do not mirror images at random in training")
    add(
        "--val",
        type=Real(0.001, 0.999),
        default=0.2,
        metavar="SHARE",
        help="share of val images (default 0.2)",
    )
    add("--seed", type=SEED, default=1, metavar="N", help="seed of the split and the training (default 1)")
    add("--device", metavar="D", help="cpu or cuda:N (default: a GPU if there is one)")
    add("--prepare", action="store_true", help="stop before the training")
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the steps that are not done yet, and report."""
    check_exist(args.source, args.weights, args.prototxt)
    from ..finetune.plan import Wish, make_plan
    from ..process import tune_process
    from ..train.distributed import named_device

    tune_process()
    if args.device:  # before the steps that take minutes
        named_device(args.device)
    wish = Wish(
        source=args.source, out=args.out, weights=args.weights, prototxt=args.prototxt, task=args.task,
        layer=args.layer, trunk=args.trunk, epochs=args.epochs, batch=args.batch, rate=args.lr, size=args.size,
        resize=args.resize, val=args.val, seed=args.seed, mirror=not args.no_mirror,
    )  # fmt: skip
    plan = make_plan(wish)
    for note in plan.notes:
        say(note, file=sys.stderr)
    split = plan.split
    kind = f"{len(split.names)} classes" if split.task == "classes" else f"{split.task}s"
    say(f"data: {len(split.train):,} train and {len(split.val):,} val images, {kind}", file=sys.stderr)
    plan.write_lists()
    for step in plan.data_steps():
        _run(step)
    for name, count in plan.bad_rows().items():
        say(f"{name}: {count:,} images could not be read and are left out", file=sys.stderr)
    written = plan.write_nets()
    if written:
        say(f"written: {', '.join(plan.path(name) for name in written)}", file=sys.stderr)
    training = plan.train_step(args.device)
    if args.prepare:
        say(
            f"prepared; edit the nets or the solver, then run again without --prepare, or: {_typed(training)}"
        )
        return 0
    if _run(training) and not training.product.exists():
        say(
            f"stopped before its last iteration; the same command resumes: {training.product} is missing",
            file=sys.stderr,
        )
        raise KeyboardInterrupt
    _run(plan.convert_step(), again=True)
    evaluation = _report(plan)
    _print(args, plan, evaluation)
    return 0


def _typed(step: Step) -> str:
    return f"ilgnet {shlex.join(step.arguments)}"


def _run(step: Step, *, again: bool = False) -> bool:
    """Run a command as a user would, unless its product is there; its results go to stderr. Return whether it ran."""
    if step.product.exists() and not again:
        return False
    from ..errors import IlgnetError
    from .main import run_command

    say(f"$ {_typed(step)}", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        status = run_command(step.arguments)
    if status >= 128:
        raise KeyboardInterrupt
    if status:
        raise IlgnetError(
            f"`ilgnet {step.arguments[0]}` ended with {status}; correct that and run the same command again"
        )
    return True


def _report(plan: Plan) -> Evaluation:
    """Run the result on every val image, and write the report."""
    from pathlib import Path

    from ..finetune.evaluation import evaluate
    from ..finetune.report import write_report
    from ..reading.lmdb_read import LmdbReader
    from ..train.curves import PLOT
    from ._console import progress_bar

    split, database = plan.split, plan.path("val_lmdb")
    labels = None if split.task == "classes" else plan.path("val_labels_lmdb")
    with progress_bar("testing", len(LmdbReader(database)), "images") as bar:
        evaluation = evaluate(plan.result, database, labels, split.task, split.names, split.values, bar)
    facts = [f"{plan.wish.source}: {len(split.train):,} train and {len(split.val):,} val images", *plan.notes]
    facts += [f"{name}: {count:,} images could not be read" for name, count in plan.bad_rows().items()]
    curves = Path(plan.path("log"), PLOT)
    write_report(
        evaluation,
        plan.folder,
        database,
        title=f"Fine-tuned on {plan.wish.source}",
        facts=facts,
        curves=curves,
    )
    return evaluation


def _print(args: argparse.Namespace, plan: Plan, evaluation: Evaluation) -> None:
    from ..finetune.report import PAGE, TABLE, figures_of

    if args.json:
        made = {"weights": str(plan.result), "report": plan.path(PAGE), "table": plan.path(TABLE)}
        print(json_text({**made, "unreadable": plan.bad_rows(), **figures_of(evaluation)}))
        return
    for one in evaluation.figures:
        ends = f" ({one.interval.low:.4g} to {one.interval.high:.4g})" if one.interval else ""
        say(f"{one.name}: {one.value:.4g}{ends}")
    for name, count in plan.bad_rows().items():
        say(f"{name}: {count:,} images could not be read")
    say(f"report: {plan.path(PAGE)}")
    say(
        f"result: {plan.result}; `ilgnet score IMAGES --weights {shlex.quote(str(plan.result))}` scores with it"
    )
