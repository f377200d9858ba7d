"""``ilgnet test``: measure accuracy on AVA1, AVA2 or own images, or a model of image scores."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError
from ..files import json_text
from ._console import say
from ._model_runs import add_testing_options, check_not_given, run_testing
from ._options import (
    COUNT,
    WORKERS,
    add_allow_missing,
    add_cluster_option,
    add_crop_option,
    add_fast_options,
    add_text_options,
    check_exist,
    make_fast,
    read_mean_values,
    read_shapes,
    read_stages,
    say_notes,
    text_path,
)

if TYPE_CHECKING:
    from ..aesthetics.labelled_images import LabelledImages
    from ..aesthetics.protocol_run import Cluster
    from ..aesthetics.protocols import Preparation

_NOT_REPEATED = (
    "command",
    "dataset",
    "resume",
    "check",
    "json",
    "cluster",
)  # in the command that a report shows
_OF_MODELS = ("split", "val_share")  # have defaults, and are of no protocol
_SHOWN = 10  # faults listed by --check
_EPILOG = """examples:
  ilgnet test ava1 --pictures images --check
  ilgnet test ava1 --weights ilgnet_ava1.caffemodel --pictures images --protocol published
  ilgnet test ava2 --weights ilgnet.safetensors --lmdb val_lmdb --protocol full --resume
  ilgnet test ava2 --weights ilgnet.safetensors --lmdb val_lmdb --fast --precision float16
  ilgnet test own --weights mine.caffemodel --list val.txt --pictures images --mean mean.binaryproto
  ilgnet test --model tanet --weights tanet_tad66k/tanet.safetensors --data tad66k --folder labels --pictures images

protocols:
  published  the first 50 batches of 50 (AVA1) or 48 (AVA2), in the list's order, as was published
  full       every image once: the one to quote
  resize     every image once, the whole image resized as the authors' test.py does
  tencrop    every image once, mean of ten crops

run.json, pictures.csv and (for images that cannot be read) bad.txt are written to --out; `ilgnet report`
makes a page of run.json. An interrupted run resumes with --resume."""


def add_parser(subparsers: Any) -> None:
    """Add ``test``."""
    parser = subparsers.add_parser(
        "test", description="Test a two-class net by a named protocol, and print the result with its context.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "dataset", nargs="?", choices=("ava1", "ava2", "own"), help="own: any other two-class images"
    )
    parser.add_argument(
        "--weights",
        metavar="W",
        help="a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file; only --check does without",
    )
    parser.add_argument("--prototxt", metavar="P", help="the deploy net of a caffemodel")
    parser.add_argument("--protocol", default="full", choices=("published", "full", "resize", "tencrop"))
    where = parser.add_argument_group("images")
    where.add_argument("--pictures", metavar="DIR", help="folder that the list's paths start from")
    where.add_argument("--list", metavar="LIST", help="rows of `path label` (default: the released val list)")
    where.add_argument("--lmdb", metavar="DB", help="a Caffe LMDB instead of both")
    where.add_argument("--scores", metavar="FILE", help="mean scores, from `ilgnet partition --scores`")
    where.add_argument(
        "--order", type=_order, metavar="caffe:SEED",
        help="read the rows as `convert_imageset --shuffle` with this seed writes them (default: as listed)",
    )  # fmt: skip
    where.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")
    prepared = parser.add_argument_group("preparation")
    prepared.add_argument("--mean", metavar="FILE", help="mean image (default: the released one)")
    prepared.add_argument(
        "--mean-value", metavar="B,G,R", help="one mean per channel instead, or one number for all"
    )
    prepared.add_argument(
        "--resize", type=int, default=256, metavar="N", help="side before the crop (default 256)"
    )
    run_ = parser.add_argument_group("run")
    run_.add_argument("--batch-size", type=COUNT, metavar="N", help="default 50, for ava2 48")
    run_.add_argument("--batches", type=COUNT, metavar="N", help="of the protocol published (default 50)")
    run_.add_argument("--out", metavar="DIR", help="folder of the results (default DATASET_PROTOCOL)")
    run_.add_argument(
        "--check", action="store_true",
        help="run no net: report the rows, the images that are missing or broken, disk and time",
    )  # fmt: skip
    run_.add_argument("--resume", action="store_true", help="resume an interrupted run")
    run_.add_argument(
        "--table", choices=("csv", "parquet"), default="csv", help="of the images (default csv)"
    )
    run_.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default cpu)")
    run_.add_argument("--workers", type=WORKERS, metavar="N", help="decoding threads (default: one per core)")
    add_cluster_option(run_, "read and score", "docs/scoring.md")
    run_.add_argument("--json", action="store_true", help="print all figures as JSON")
    add_text_options(parser)
    add_crop_option(parser)
    add_allow_missing(parser)
    add_fast_options(parser)
    add_testing_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the test, write its files and print its figures."""
    if args.model is not None:
        return run_testing(args)
    check_not_given(args, of="tested model")
    if args.dataset is None:
        raise IlgnetError("DATASET is missing: give ava1, ava2 or own, or a model of scores with --model")
    check_exist(args.weights, text_path(args.prototxt), args.list, args.lmdb, args.mean, args.scores)
    if args.check:
        if args.cluster is not None:
            raise IlgnetError("--cluster: --check reads the images here; leave it out")
        return _check(args)
    if args.weights is None:
        raise IlgnetError("--weights is missing: give the weights to test")
    if args.cluster is not None:
        from ..reading.cluster import check_cluster

        check_cluster(args.cluster)
        if args.device != "cpu":
            raise IlgnetError(f"--device {args.device}: the workers of --cluster use the CPU; leave it out")
    from ..aesthetics.evaluation import Test, run_test
    from ..aesthetics.protocols import find_protocol
    from ..aesthetics.report_data import build_report, report_values
    from ..files import check_outputs
    from ..process import tune_process
    from ._console import progress_bar
    from ._figures import print_report

    tune_process()
    images = _images(args)
    test = Test(
        dataset=args.dataset, protocol=find_protocol(args.protocol), images=images, mean=args.mean,
        mean_values=_mean_values(args.mean_value), resize=args.resize, batch_size=args.batch_size,
        batches=args.batches, scores=args.scores, strict=args.strict, workers=args.workers, table=args.table,
        command=_command(args),
    )  # fmt: skip
    out = args.out or f"{args.dataset}_{args.protocol}"
    check_outputs([os.path.join(out, name) for name in ("run.json", "bad.txt")], [args.prototxt])
    exact = _load(args)
    say_notes(exact.about.filled)
    test = dataclasses.replace(test, notes=exact.about.filled)
    net = make_fast(exact, args)
    try:
        with progress_bar(f"testing {args.protocol}", test.reads, unit="images") as progress:
            result = run_test(
                test, net, args.weights, out, resume=args.resume, device=args.device,
                cluster=partial(_on_cluster, args, net, test.size) if args.cluster else None, progress=progress,
                log=lambda text: say(f"note: {text}", file=sys.stderr),
            )  # fmt: skip
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say(f"progress is kept in {out}; the same command with --resume continues", file=sys.stderr)
        raise
    report = build_report(result)
    if args.json:
        print(json_text(report_values(report)))
        return 0
    print_report(report)
    say(
        f"{out}/run.json and {out}/pictures.{args.table} written; `ilgnet report {out}/run.json` makes a page"
    )
    return 0


def _on_cluster(args: argparse.Namespace, net: Any, batch: int, preparation: Preparation) -> Cluster:
    from ..aesthetics.protocol_cluster import ProtocolCluster
    from ..engines.fast import FastNet

    args = argparse.Namespace(**vars(args))
    if isinstance(net, FastNet):  # every worker takes the engine that was the fastest here
        args.fast, args.engine = False, net.engine
    return ProtocolCluster(
        partial(_images, args), partial(_load_fast, args), preparation, batch, args.cluster
    )


def _load_fast(args: argparse.Namespace) -> Any:
    return make_fast(_load(args), args)


def _images(args: argparse.Namespace) -> LabelledImages:
    from ..aesthetics.labelled_images import ShuffledImages, open_images

    images = open_images(args.dataset, images=args.pictures, list_file=args.list, database=args.lmdb)
    return images if args.order is None else ShuffledImages(images, int(args.order.partition(":")[2]))


def _order(text: str) -> str:
    """Check that an order is ``caffe:SEED``."""
    name, _, number = text.partition(":")
    if name != "caffe" or not number.isdecimal() or int(number) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r}: write caffe:SEED, a seed from 0 to 2**32 - 1")
    return text


def _check(args: argparse.Namespace) -> int:
    """Report what a run would read and need; return 1 if an image is missing or broken."""
    from pathlib import Path

    from ..aesthetics.run_check import check_run, free_space
    from ..process import tune_process
    from ._console import progress_bar

    tune_process()
    images = _images(args)
    with progress_bar("checking", len(images)) as progress:
        found = check_run(
            args.dataset, images, batch_size=args.batch_size, workers=args.workers, progress=progress
        )
    free = free_space(Path(args.out or f"{args.dataset}_{args.protocol}"))
    if args.json:
        faulty = {"faulty_batches": found.faulty_batches, "disk_free": free}
        print(json_text({**dataclasses.asdict(found), **faulty}))
        return int(bool(found.faults))
    sizes = ", ".join(f"{count:,} of label {label}" for label, count in found.labels.items())
    say(f"{images.title}: {found.rows:,} rows, {sizes}, {images.order}")
    say(f"images: {found.found:,} found, {found.missing:,} missing, {found.broken:,} broken")
    for fault in found.faults[:_SHOWN]:
        where = f"published batch {fault.batch}" if fault.batch is not None else "after the published batches"
        say(f"  row {fault.row} ({where}): {fault.reason}")
    if len(found.faults) > _SHOWN:
        say(f"  and {len(found.faults) - _SHOWN:,} more; --json lists all")
    batches = ", ".join(map(str, found.faulty_batches)) or "none"
    say(
        f"published batches of {found.batch_size} with a missing or broken image: {batches} (of {found.batches})"
    )
    say(f"disk: {found.disk:,} bytes for the results, {free:,} free")
    say(f"time: {found.seconds:.1f} s to read the images; the net's own time is added (docs/speed.md)")
    return int(bool(found.faults))


def _load(args: argparse.Namespace) -> Any:
    from ..aesthetics.testing import check_device, on_device
    from ..runtime.load import load

    check_device(args.device)
    net = load(
        args.weights, args.prototxt, crop=args.crop, allow_missing=args.allow_missing, level=args.level,
        stages=read_stages(args.stage), input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field,
    )  # fmt: skip
    # A fast net is made of one on the CPU, and computes on its device.
    return net if args.fast or args.engine else on_device(net, args.device)


def _mean_values(text: str | None) -> tuple[float, ...]:
    values = () if text is None else read_mean_values(text)
    return values * 3 if len(values) == 1 else values


def _command(args: argparse.Namespace) -> str:
    """The command as it could be typed again; whether it was resumed does not matter to the result."""
    parts = ["ilgnet", "test", args.dataset]
    for name, value in vars(args).items():
        if name in (*_NOT_REPEATED, *_OF_MODELS) or value in (None, False, []):
            continue
        if isinstance(value, list):
            parts += [part for each in value for part in (f"--{name.replace('_', '-')}", str(each))]
            continue
        parts += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(parts)
