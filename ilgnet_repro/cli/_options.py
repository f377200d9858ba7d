"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError
from ..fast.precisions import PRECISIONS
from ._console import say

if TYPE_CHECKING:
    from ..data.preprocess import Preprocessing


def add_net_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses and shapes a net."""
    parser.add_argument("--phase", choices=("TRAIN", "TEST"), default="TEST", help="default TEST")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=N,C,H,W",
        help="shape of an input; may be repeated",
    )
    add_ignore_field(parser, "--ignore-field")
    add_crop_option(parser)


def add_ignore_field(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add what lets fields of forks pass."""
    parser.add_argument(
        *flags, action="append", default=[], metavar="PATH",
        help="a field unknown to Caffe that does not change the result, such as convolution_param.foo",
    )  # fmt: skip


def add_crop_option(parser: argparse.ArgumentParser) -> None:
    """Add the rule for Crop layers without an offset."""
    parser.add_argument(
        "--crop", choices=("bvlc", "geometry"),
        help="offset of Crop layers that state none: 0 (bvlc), or found from the layers, as forks do (geometry)",
    )  # fmt: skip


def add_preprocessing_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how pictures are prepared."""
    group = parser.add_argument_group("preprocessing", "where the weights are not a known release")
    group.add_argument("--path", choices=("whole", "crop"), help="whole picture resized, or a centre crop")
    group.add_argument(
        "--size", type=int, metavar="N", help="side of the net's input (default: from the net)"
    )
    group.add_argument(
        "--resize", type=int, metavar="N", help="side that pictures are resized to before the crop"
    )
    group.add_argument(
        "--order", choices=("BGR", "RGB"), help="channel order of the net's input (default BGR)"
    )
    group.add_argument(
        "--mean-value", metavar="B,G,R", help="one number, or one a channel, on a scale of 0 to 255"
    )
    group.add_argument(
        "--mean-file", metavar="FILE", help="a mean image (.binaryproto or .npy); implies --path crop"
    )
    group.add_argument("--scale", type=float, help="factor after the mean is taken off (default 1)")


def add_fast_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes a net fast."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--fast",
        action="store_true",
        help="lay the net out for this processor; the numbers stay, but for rounding",
    )
    group.add_argument(
        "--precision", choices=PRECISIONS,
        help="of the large dense weights, with --fast (default float32)",
    )  # fmt: skip
    group.add_argument(
        "--compile",
        action="store_true",
        help="with --fast: torch.compile what lies between; slow the first time, then kept (docs/speed.md)",
    )


def make_fast(net: Any, args: argparse.Namespace) -> Any:
    """Return ``net``, or its fast form where the options ask for it."""
    if args.fast:
        return net.fast(
            args.precision or "float32", compile=args.compile, tell=lambda text: say(text, file=sys.stderr)
        )
    for name, given in ((f"--precision {args.precision}", args.precision), ("--compile", args.compile)):
        if given:
            raise IlgnetError(f"{name} goes with --fast; add it")
    return net


def read_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read ``data=1,3,227,227`` pairs.  Raises IlgnetError on anything else."""
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        if name in shapes:
            raise IlgnetError(f"--shape {text}: the shape of {name} is given twice; give it once")
        try:
            shapes[name] = tuple(int(part) for part in dims.replace("x", ",").split(","))
        except ValueError:
            shapes[name] = (0,)
        if not name or min(shapes[name]) < 1:
            raise IlgnetError(f"--shape {text}: write INPUT=N,C,H,W with numbers over 0, as data=1,3,227,227")
    return shapes


def read_preprocessing(args: argparse.Namespace, input_shape: tuple[int, ...] | None) -> Preprocessing | None:
    """Return what the options say, or None where they say nothing."""
    stated: dict[str, Any] = {
        key: getattr(args, key) for key in ("path", "order", "scale") if getattr(args, key) is not None
    }
    if not stated and args.mean_value is None and args.mean_file is None:
        return None
    from ..data.preprocess import Preprocessing

    if args.size:
        stated["size"] = (args.size, args.size)
    elif input_shape is not None and len(input_shape) == 4:
        stated["size"] = tuple(input_shape[2:])
    else:
        raise IlgnetError("--size is missing: the net does not say the size of its pictures")
    if args.resize:
        stated["resize"] = (args.resize, args.resize)
    if args.mean_value is not None:
        try:
            stated["mean_value"] = tuple(float(part) for part in args.mean_value.split(","))
        except ValueError:
            raise IlgnetError(
                f"--mean-value {args.mean_value}: write one number, or three as 104,117,123"
            ) from None
    made = Preprocessing(**stated)
    return made.with_mean_file(args.mean_file) if args.mean_file else made
