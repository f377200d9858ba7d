"""Options shared by several commands: parsing of their values, and how an error names them."""

from __future__ import annotations

import argparse
import errno
import math
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import precisions
from ..errors import FormatError, IlgnetError, SolverError, excerpt
from ._console import say

if TYPE_CHECKING:
    from ..about import About
    from ..reading.preprocessing import Preprocessing
    from ..runtime.model import Model
    from ..runtime.net import CaffeNet
    from ..runtime.runnable import FileNet


MOST = 2**31 - 1  # of Caffe's own counts
MOST_WORKERS = 1024
MOST_IMAGES = 65_536  # of a batch, as in `runtime.calls`


@dataclass(frozen=True)
class Whole:
    """An integer in a range, as a type of argparse."""

    least: int = 0
    most: int = MOST

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self.least - 1
        if not self.least <= value <= self.most:
            raise argparse.ArgumentTypeError(
                f"{excerpt(text)!r}: give an integer from {self.least} to {self.most}"
            )
        return value


@dataclass(frozen=True)
class Real:
    """A finite number in a range, as a type of argparse."""

    least: float = 0.0
    most: float = 3.4e38

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most:
            raise argparse.ArgumentTypeError(
                f"{excerpt(text)!r}: give a number from {self.least:g} to {self.most:g}"
            )
        return value


LEVEL = Whole(-MOST - 1)
SEED = Whole(most=2**32 - 1)
COUNT = Whole(1)
BATCH = Whole(1, MOST_IMAGES)
WORKERS = Whole(most=MOST_WORKERS)


def check_exist(*given: str | Iterable[str] | None) -> None:
    """Raise FormatError for the first path that does not exist, in the words of the reader that would open it.

    Called before a command imports torch, which takes seconds. None and "" are options that were not given.
    """
    for paths in given:
        for path in (paths,) if isinstance(paths, str) else paths or ():
            if path and not os.path.lexists(path):
                reason = os.strerror(errno.ENOENT)
                raise FormatError(f"{path}: cannot be read ({reason}); check the path")


def text_path(prototxt: str | None) -> str | None:
    """Return the path that `--prototxt` gives; None for `inside`, the net in the weights file (`find_net`)."""
    return None if prototxt == "inside" and not os.path.lexists(prototxt) else prototxt


def check_state(path: str | None) -> None:
    """Raise SolverError for a solver state that does not exist, as `check_exist`."""
    if path and not os.path.lexists(path):
        raise SolverError(f"{path}: no such snapshot; give a .solverstate file")


def add_net_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a net and its input shapes."""
    parser.add_argument("--phase", choices=("TRAIN", "TEST"), help="default TEST, or the phase in the file")
    add_text_options(parser)
    add_crop_option(parser)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the text of a net: what it leaves open, and what may be ignored in it."""
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=N,C,H,W",
        help="shape of an input; may be repeated",
    )
    add_state_options(parser)
    add_ignore_field(parser, "--ignore-field")


def add_state_options(parser: argparse.ArgumentParser) -> None:
    """Add level and stages, which include and exclude rules are matched against besides the phase."""
    parser.add_argument("--level", type=LEVEL, default=0, metavar="N", help="the net's level (default 0)")
    parser.add_argument(
        "--stage", action="append", default=[], metavar="NAME",
        help="a stage of the net, such as `deploy`, or several separated by commas; may be repeated",
    )  # fmt: skip


def read_stages(texts: Iterable[str]) -> tuple[str, ...]:
    """The stages that `--stage` names."""
    return tuple(stage for text in texts for stage in text.split(",") if stage)


def add_ignore_field(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add the option to ignore fields of forks."""
    parser.add_argument(
        *flags, action="append", default=[], metavar="PATH",
        help="a field unknown to Caffe that does not change the result, such as convolution_param.foo",
    )  # fmt: skip


def add_allow_missing(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add the option for layers missing from the weights file whose fillers are random."""
    parser.add_argument(
        *(flags or ("--allow-missing",)), action="append", default=[], metavar="LAYER", dest="allow_missing",
        help="a layer that may be missing from the weights file and is drawn by its fillers; may be repeated",
    )  # fmt: skip


def say_notes(notes: Iterable[str]) -> None:
    """Report on stderr what is known of a net or its weights."""
    for note in notes:
        say(f"note: {note}", file=sys.stderr)


def add_crop_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for Crop layers without an offset."""
    parser.add_argument(
        "--crop", choices=("bvlc", "geometry"),
        help="offset of Crop layers that state none: 0 (bvlc), or computed from the layers, as forks do (geometry)",
    )  # fmt: skip


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how images are decoded and what ten values mean."""
    parser.add_argument("--raw-pixels", action="store_true", help="do not apply EXIF orientation")
    parser.add_argument(
        "--no-distribution", action="store_true",
        help="ten values that sum to 1 are classes, not a distribution over the scores 1 to 10",
    )  # fmt: skip


def reads_distributions(args: argparse.Namespace) -> bool:
    """Whether ten values that sum to 1 are a distribution of votes: not where the options say, or name, classes."""
    return not (args.no_distribution or args.labels)


def add_preprocessing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for preprocessing."""
    group = parser.add_argument_group("preprocessing", "if the weights are not a known release")
    group.add_argument("--path", choices=("whole", "crop"), help="whole image resized, or a centre crop")
    group.add_argument(
        "--size", type=int, metavar="N", help="side of the net's input (default: from the net)"
    )
    group.add_argument(
        "--resize", type=int, metavar="N", help="side that images are resized to before the crop"
    )
    group.add_argument(
        "--order",
        choices=("BGR", "RGB", "GRAY"),
        help="channel order of the net's input (default BGR; GRAY if it has one channel)",
    )
    group.add_argument(
        "--mean-value", metavar="B,G,R", help="one number, or one per channel, on a scale of 0 to 255"
    )
    group.add_argument(
        "--mean-file", metavar="FILE", help="a mean image (.binaryproto or .npy); implies --path crop"
    )
    group.add_argument(
        "--scale", type=Real(-3.4e38), help="factor applied after the mean is subtracted (default 1)"
    )


def add_fast_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for speed."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--fast",
        action="store_true",
        help="compute the net by the fastest engine that is installed; results change by rounding only",
    )
    add_engine_option(group)
    group.add_argument(
        "--precision", choices=precisions.WEIGHTS,
        help="of large dense weights, with --fast or --engine (default float32)",
    )  # fmt: skip
    group.add_argument(
        "--compile",
        action="store_true",
        help="in torch: also torch.compile elementwise layers and LRN; slow the first time, then cached (docs/speed.md)",
    )


def add_engine_option(parser: Any, *flags: str) -> None:
    """Add the option for the engine of a fast net."""
    parser.add_argument(
        *(flags or ("--engine",)), choices=precisions.ENGINES, dest="engine",
        help="compute the net by this engine: auto, the fastest installed, measured once (as --fast); "
        "torch; onnxruntime or openvino (docs/speed.md)",
    )  # fmt: skip


def add_device_option(parser: Any, *flags: str) -> None:
    """Add the option for the device of a fast net."""
    parser.add_argument(
        *(flags or ("--device",)), default="cpu", metavar="D", dest="device",
        help="where the engine computes: cpu, cuda or cuda:N (default cpu)",
    )  # fmt: skip


def refuse_unused_device(device: str, engine: str | bool | None, flags: str) -> None:
    """Raise IlgnetError for a device without an engine."""
    if device != "cpu" and not engine:
        raise IlgnetError(f"device={device!r}: goes with {flags}; add it", option="device")


def add_cluster_option(parser: Any, doing: str, page: str) -> None:
    """Add the option for a cluster that does something."""
    parser.add_argument(
        "--cluster", metavar="ray",
        help=f"{doing} on a cluster: ray (that of $RAY_ADDRESS, else one of this machine) "
        f"(needs ilgnet_repro[ray]; {page})",
    )  # fmt: skip


def make_fast(net: Any, args: argparse.Namespace, batch: int | None = None) -> Any:
    """Return ``net``, or its fast form, for ``batch`` images at a time, if the options ask for it."""
    if args.fast or args.engine:
        from ..engines.fast import fast
        from ..runtime.model import Model
        from ..runtime.runnable import FileNet

        if isinstance(net, Model):
            raise IlgnetError(
                f"{'--fast' if args.fast else '--engine'}: model {net.name} is not a Caffe net, and torch computes it; "
                "omit it"
            )
        if isinstance(net, FileNet):
            flag = "--fast" if args.fast else f"--engine {args.engine}"
            raise IlgnetError(f"{flag}: {net.name} is run by {net.form}, which optimizes it itself; omit it")

        return fast(
            net,
            args.precision or "float32",
            engine=args.engine or "auto",
            batch=batch,
            compile=args.compile,
            device=getattr(args, "device", "cpu"),
            log=lambda text: say(text, file=sys.stderr),
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


def load_for_images(
    args: argparse.Namespace,
) -> tuple[CaffeNet | FileNet | Model, Preprocessing | None, About]:
    """Load the net of the options; return it, the preprocessing that they state, and what is known of the net with it."""
    from ..runtime.load import load

    net = load(
        args.weights, args.prototxt, level=args.level, stages=read_stages(args.stage), crop=args.crop,
        allow_missing=args.allow_missing, input_shapes=read_shapes(args.shape), ignore_fields=args.ignore_field,
    )  # fmt: skip
    preprocessing = read_preprocessing(args, net.shapes[net.image_input()])
    return net, preprocessing, net.about if preprocessing is None else net.about.stating(preprocessing)


def read_preprocessing(
    args: argparse.Namespace, input_shape: tuple[int | None, ...] | None
) -> Preprocessing | None:
    """Return the preprocessing that the options state, or None if they state none."""
    stated: dict[str, Any] = {
        key: getattr(args, key) for key in ("path", "order", "scale") if getattr(args, key) is not None
    }
    check_sides(args, "size", "resize")
    if not stated and args.mean_value is None and args.mean_file is None:
        for name in ("size", "resize"):
            if getattr(args, name) is not None:
                raise IlgnetError(f"--{name}: goes with --mean-value, --scale, --order or --path; add one")
        return None
    from ..reading.preprocessing import Preprocessing

    if args.mean_value is not None:
        stated["mean_value"] = read_mean_values(args.mean_value)
    if args.mean_file and args.mean_value is not None:
        raise IlgnetError("--mean-file and --mean-value: give one of them")
    if args.mean_file and args.path == "whole":
        raise IlgnetError("--mean-file goes with --path crop; omit --path whole")
    if args.resize is not None and args.path != "crop" and not args.mean_file:
        raise IlgnetError(f"--resize {args.resize}: goes with --path crop; add it")
    if args.scale is not None and not (math.isfinite(args.scale) and args.scale):
        raise IlgnetError(f"--scale {args.scale:g}: give a finite number other than 0")
    if args.size is not None:
        stated["size"] = (args.size, args.size)
    elif input_shape is not None and len(input_shape) == 4 and None not in input_shape[2:]:
        stated["size"] = tuple(input_shape[2:])
    else:
        raise IlgnetError("--size is missing: the net does not say the size of its images")
    channels = input_shape[1] if input_shape is not None and len(input_shape) == 4 else None
    if channels == 1:
        stated.setdefault("order", "GRAY")
    if channels in (1, 3) and (stated.get("order") == "GRAY") is (channels == 3):
        count = "1 channel" if channels == 1 else "3 channels"
        raise IlgnetError(f"--order {stated['order']}: the net takes images of {count}; leave it out")
    if args.resize is not None:
        stated["resize"] = (args.resize, args.resize)
    if args.mean_file and len(set(stated["size"])) == 1:
        stated["path"] = "crop"
    preprocessing = Preprocessing(**stated)
    return preprocessing.with_mean_file(args.mean_file) if args.mean_file else preprocessing


def read_mean_values(text: str) -> tuple[float, ...]:
    """Read one number, or one per channel separated by commas.  Raises IlgnetError on anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise IlgnetError(f"--mean-value {text}: write one number, or three as 104,117,123")
    return values


def check_sides(args: argparse.Namespace, *names: str) -> None:
    """Raise IlgnetError if an option is not a valid image side."""
    from ..reading.images import LARGEST_SIDE

    for name in names:
        side = getattr(args, name)
        if side is not None and not 1 <= side <= LARGEST_SIDE:
            raise IlgnetError(f"--{name} {side}: give a number of pixels from 1 to {LARGEST_SIDE}")


# ---------------------------------------------------------------------- in messages

# Keywords whose flag is not the keyword with dashes.
_FLAGS = {
    "input_shapes": "--shape",
    "ignore_fields": "--ignore-field",
    "preprocessing": "--mean-value, --scale and --order",
    "stages": "--stage",
    "images": "--pictures",
    "list_file": "--list",
    "database": "--lmdb",
    "mean_values": "--mean-value",
    "folder": "--from",
    "target": "--dest",
    "val_sizes": "--val-sizes LOW HIGH",
}
_SHAPE = r"""\{(['"])(?P<name>.*?)\1: \((?P<dims>[^)]*)\)\}"""
_VALUE = r"""True\b|"(?P<text>[^"]*)"|'(?P<other>[^']*)'|\[(?P<list>[^\]]*)\]|(?P<word>[\w./*-]+)"""


def for_command(error: IlgnetError) -> str:
    """The message of an error, its option as the flag that a user of the command types."""
    text = str(error)
    for option in error.option.split():
        text = in_flags(text, option)
    return text


def line_for_command(line: str) -> str:
    """Return a note or a finding about a net with the keywords of Python that its remedy names as flags."""
    for option in ("input_shapes", "prototxt", "stages", "ignore_fields", "crop"):
        line = in_flags(line, option)
    return line


def in_flags(text: str, option: str) -> str:
    """Return a message with a keyword of Python, and its value, as the flag of the commands."""
    flag = _FLAGS.get(option, f"--{option.replace('_', '-')}")

    def spelled(found: re.Match[str]) -> str:
        parts = found.groupdict()
        if parts["name"] is not None:
            return f"{flag} {parts['name']}={parts['dims'].replace(' ', '')}"
        value = next((parts[key] for key in ("text", "other", "list", "word") if parts[key] is not None), "")
        value = value.replace("'", "").replace('"', "")
        return f"{flag} {value}".rstrip()

    return re.sub(rf"\b{option}=(?:{_SHAPE}|{_VALUE})?", spelled, text)
