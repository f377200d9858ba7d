"""``ilgnet caffe test``: Caffe's `test`, flag for flag and line for line."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..files import json_text
from ._console import say
from ._options import (
    COUNT,
    LEVEL,
    add_allow_missing,
    add_device_option,
    add_engine_option,
    add_ignore_field,
    check_exist,
    refuse_unused_device,
    say_notes,
)
from ._parser import CommandParser

if TYPE_CHECKING:
    from ..caffe_tool.batches import TestFeed
    from ..runtime.net import CaffeNet

_EPILOG = """examples:
  ilgnet caffe test -model val.prototxt -weights net.caffemodel
  ilgnet caffe test -model val.prototxt -weights net.caffemodel -iterations 400 2> test.log
  ilgnet caffe test -model net.prototxt -weights w.caffemodel -arrays rows.npz -json

Paths in the prototxt are relative to the current folder, as in Caffe; a file that is missing there is looked up
beside the prototxt. Caffe's log goes to stderr, word for word; -json prints all values on stdout."""


def add_parser(actions: Any) -> None:
    """Add ``test`` to the actions of ``ilgnet caffe``."""
    parser = actions.add_parser(
        "test", help="score a net: each output of each batch, and the means",
        description="Score a net as Caffe does.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_net_flags(parser, "TEST")
    add_engine_option(parser, "-engine", "--engine")
    add_device_option(parser, "-device", "--device")


def add_net_flags(parser: CommandParser, phase: str) -> None:
    """Add the flags that `test` and `time` share, each with one dash or two, as gflags takes them."""
    parser.switches = ("json",)

    def flag(name: str, help_: str, **options: Any) -> None:
        parser.add_argument(f"-{name}", f"--{name}", help=help_, **options)

    flag("model", "the net", metavar="PROTOTXT", required=True)
    flag(
        "weights",
        "trained weights (.caffemodel, .caffemodel.h5, .safetensors)",
        metavar="CAFFEMODEL",
        default="",
    )
    flag("iterations", "batches (default 50)", type=COUNT, default=50, metavar="N")
    flag("gpu", "a GPU's number (default: the CPU)", default="", metavar="N")
    flag("phase", f"TRAIN or TEST (default {phase})", choices=("TRAIN", "TEST", ""), default="")
    flag("level", "the net's level", type=LEVEL, default=0, metavar="N")
    flag("stage", "the net's stages, separated by commas", default="", metavar="NAMES")
    flag("arrays", "rows for MemoryData and Input, named as their tops", metavar="NPZ", default="")
    flag(
        "shape",
        "shape of an input, as data=1,3,227,227; may be repeated",
        metavar="S",
        action="append",
        default=[],
    )
    add_ignore_field(parser, "-ignore-field", "--ignore-field")
    add_allow_missing(parser, "-allow-missing", "--allow-missing")
    flag(
        "crop", "offset of Crop layers that state none: 0 (bvlc), or from the layers, as forks do (geometry)",
        choices=("bvlc", "geometry"),
    )  # fmt: skip
    flag("json", "print the result as JSON on stdout", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Test, logging as Caffe does."""
    from ..errors import IlgnetError

    if not args.weights:
        raise IlgnetError("-weights is missing: need model weights to score")
    refuse_unused_device(args.device, args.engine, "-engine (the exact net with -gpu)")
    net, feed = build(args, "TEST")
    from ..caffe_tool.test import caffe_test

    fast = None
    if args.engine:
        from ..engines import fast as engines

        fast = engines.fast(
            net, engine=args.engine, device=args.device, log=lambda text: say(text, file=sys.stderr)
        )
    result = caffe_test(net, feed, args.iterations, log, fast=fast)
    if args.json:
        print(json_text(result.to_dict()))
    return 0


def log(location: str, message: str) -> None:
    """Log a line on stderr, as glog does."""
    from ..caffe_tool.log import glog
    from ..errors import printable_lines

    print(printable_lines(glog(location, message)), file=sys.stderr, flush=True)


def build(args: argparse.Namespace, phase: str) -> tuple[CaffeNet, TestFeed]:
    """Build the net that the flags describe, on its device, and its feed."""
    check_exist(args.model, args.weights, args.arrays)
    from ..caffe.named_files import READ_INSTEAD, NamedFiles
    from ..caffe_tool.batches import TestFeed, read_arrays
    from ..caffe_tool.log import log_built, log_net
    from ..runtime.load import load_graph, load_net
    from ._options import read_shapes

    device = _device(args.gpu)
    stages = tuple(stage for stage in args.stage.split(",") if stage)
    state = {
        "phase": args.phase or phase,
        "level": args.level,
        "stages": stages,
        "ignore_fields": args.ignore_field,
    }
    shapes = read_shapes(args.shape)
    graph = load_graph(args.model, input_shapes=shapes, crop=args.crop, **state)
    log_net(log, graph, args.level, stages)
    arrays = read_arrays(args.arrays) if args.arrays else None
    files = NamedFiles().beside(args.model)
    feed = TestFeed(graph, files, arrays, shapes=shapes)
    net = load_net(
        args.model,
        args.weights or None,
        input_shapes=feed.shapes(),
        carry_state=True,
        crop=args.crop,
        allow_missing=args.allow_missing,
        **state,
    )
    # The mean is among the files of the feed.
    matrices = [note for note in net.about.notes if note.endswith(READ_INSTEAD) and "mean_file " not in note]
    say_notes([*net.about.filled, *files.notes, *matrices])
    net = net.to(device)
    log_built(log, graph)
    return net, feed


def _device(gpu: str) -> str:
    from ..errors import IlgnetError

    if not gpu:
        log("caffe.cpp:275", "Use CPU.")
        return "cpu"
    import torch

    number = "0" if gpu == "all" else gpu.split(",", maxsplit=1)[0]
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise IlgnetError(f"-gpu {gpu}: there are {torch.cuda.device_count()} GPUs here; omit it for the CPU")
    log("caffe.cpp:270", f"Use GPU with device ID {number}")
    return f"cuda:{number}"
