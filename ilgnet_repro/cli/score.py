"""``ilgnet score``: score images."""

from __future__ import annotations

import argparse
import glob
import heapq
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..errors import IlgnetError
from ._console import say
from ._options import (
    BATCH,
    COUNT,
    Real,
    add_allow_missing,
    add_cluster_option,
    add_crop_option,
    add_device_option,
    add_fast_options,
    add_preprocessing_options,
    add_score_options,
    add_text_options,
    check_exist,
    load_for_images,
    make_fast,
    reads_distributions,
    refuse_unused_device,
    say_notes,
    text_path,
)

if TYPE_CHECKING:
    from ..image_paths import ImagePaths
    from ..score_cache import ScoreCache
    from ..scored import Score
    from ..scoring import Scorer

_HELD = 65_536  # paths
_WHERE = (
    "a .caffemodel, .safetensors, .onnx or .pt2 file; `ilgnet data where ava1-weights` says where the released ones "
    "can be had"
)
_EPILOG = """examples:
  ilgnet score a.jpg b.jpg --weights net.safetensors
  ilgnet score images/ --weights net.caffemodel --json
  ilgnet score images/ --weights net.caffemodel --csv --out scores.csv --cache scores.db
  ilgnet score "images/**/*.jpg" --weights net.onnx --top 20
  ilgnet score --list val.txt --root images/ --weights net.onnx
  find images -name "*.jpg" | ilgnet score - --weights net.onnx
  ilgnet score a.jpg --weights ssd.caffemodel --labels labelmap_voc.prototxt --draw drawn
  ilgnet score images/ --weights other_tools.onnx --mean-value 104,117,123 --size 224
  ilgnet score images/ --weights net.safetensors --mean-file mean.binaryproto
  ilgnet score images/ --weights net.safetensors --fast --precision int8
  ilgnet score images/ --weights net.safetensors --cluster ray --csv --out scores.csv

An image that cannot be used is named on stderr; the others are scored, and the exit status is 1."""


def add_parser(subparsers: Any) -> None:
    """Add ``score``."""
    parser = subparsers.add_parser(
        "score", description="Score images with any net that can be run.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.remedy = f"--weights is {_WHERE}"
    parser.add_argument(
        "pictures", nargs="*", metavar="IMAGE",
        help="files, folders with their subfolders, patterns such as '**/*.jpg', lists (.txt), or - for paths on stdin",
    )  # fmt: skip
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a .caffemodel, .caffemodel.h5, .safetensors, .onnx or .pt2 file",
    )
    parser.add_argument("--prototxt", metavar="P", help="the net of the weights")
    parser.add_argument(
        "--list", action="append", default=[], metavar="FILE",
        help="a list of images, a path per line, which may be followed by a label; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--root", default="", metavar="DIR", help="where the paths of lists and of stdin begin"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="the classes, one per line, such as synset_words.txt, or a labelmap prototxt: shows the five best",
    )
    parser.add_argument(
        "--top", type=COUNT, metavar="N",
        help="the N best: classes or boxes per image (default 5 classes), or images where the net has one score",
    )  # fmt: skip
    parser.add_argument("--sort", action="store_true", help="best first; bad images last")
    parser.add_argument(
        "--threshold", type=Real(-3.4e38), metavar="S", help="leave out boxes with a lower score"
    )
    parser.add_argument("--batch", type=BATCH, default=16, metavar="N", help="images per batch (default 16)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object per image")
    form.add_argument("--jsonl", action="store_true", help="the same as --json")
    form.add_argument("--csv", action="store_true", help="print CSV: a row per image, or per box")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the result there when it is complete; .csv, .json and .jsonl choose its form",
    )
    parser.add_argument("--draw", metavar="DIR", help="draw the boxes into copies of the images there")
    parser.add_argument(
        "--cache", metavar="FILE",
        help="keep scores in this file, by the content of image and model: a run that was stopped resumes",
    )  # fmt: skip
    add_score_options(parser)
    add_cluster_option(parser, "score", "docs/scoring.md")
    add_text_options(parser)
    add_crop_option(parser)
    add_allow_missing(parser)
    add_fast_options(parser)
    add_device_option(parser)
    add_preprocessing_options(parser)


class _Net:
    """The net of the options, loaded when it is first needed, and what is known of it."""

    def __init__(self, args: argparse.Namespace, cache: ScoreCache | None, most: int | None) -> None:
        self._args, self._cache = args, cache
        self._batch: int = args.batch if most is None else max(1, min(args.batch, most))
        self.model = self._key(cache) if cache is not None else ""
        self.facts: dict[str, list[str]] | None = cache.facts(self.model) if cache is not None else None
        self._scorer: Scorer | None = None
        if self.facts is not None:
            say_notes(self.facts["notes"])

    def _key(self, cache: ScoreCache) -> str:
        from ..score_cache import model_key
        from ..version import __version__

        args = self._args
        beside = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(args.weights)), "*.prototxt")))
        names = (
            "level", "stage", "crop", "allow_missing", "shape", "ignore_field", "fast", "engine", "precision", "compile",
            "device",
            "path", "size", "resize", "order", "mean_value", "scale", "raw_pixels", "no_distribution",
        )  # fmt: skip
        options = {name: getattr(args, name) for name in names}
        facts = {**options, "inside": args.prototxt == "inside", "version": __version__, "batch": self._batch,
                 "labels": bool(args.labels)}  # fmt: skip
        return model_key(cache, [args.weights, text_path(args.prototxt), args.mean_file, *beside], facts)

    def scorer(self) -> Scorer:
        """Load the net, once."""
        if self._scorer is not None:
            return self._scorer
        from ..process import tune_process

        tune_process()
        self._scorer = _make_scorer(self._args, self._batch, pad=self._cache is not None)
        about = self._scorer.about
        notes = [*about.notes, *about.random_notes]
        if self.facts is None:
            say_notes(notes)
        self.facts = {"notes": notes, "labels": list(about.labels)}
        if self._cache is not None:
            self._cache.keep_facts(self.model, self.facts)
        return self._scorer

    def on_cluster(self, paths: Iterable[str]) -> Iterator[Score]:
        """Score on the cluster of the options.  The net is loaded here too, which says in a line what is wrong with it."""
        from ..engines.fast import FastNet
        from ..score_cluster import Spread, score_cached_on_cluster, score_on_cluster

        local = self.scorer()
        args = argparse.Namespace(**vars(self._args))
        if isinstance(local.net, FastNet):  # every worker takes the engine that was the fastest here
            args.fast, args.engine = False, local.net.engine
        make = partial(_make_scorer, args, self._batch, pad=local.pad)
        spread = Spread(make, local.batch, args.cluster)
        if self._cache is None:
            return score_on_cluster(list(paths), spread)
        return score_cached_on_cluster(paths, self._cache, self.model, spread)


def _make_scorer(args: argparse.Namespace, batch: int, *, pad: bool) -> Scorer:
    from ..scoring import Scorer

    net, preprocessing, about = load_for_images(args)
    net = make_fast(net, args, 1 if about.image_order else batch)
    return Scorer(
        net, preprocessing=preprocessing, batch=batch, raw_pixels=args.raw_pixels,
        distributions=reads_distributions(args), pad=pad,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Score the images and print a line for each."""
    from ..files import atomic_file, check_output
    from ..image_paths import ImagePaths, is_list_name
    from ..reading.labels import read_labels
    from ._console import progress_bar

    named = [path for path in args.pictures if path != "-" and not glob.has_magic(path)]
    if len(named) == len(args.pictures) and not args.list and not any(map(os.path.lexists, named)):
        check_exist(named)
    check_exist(args.weights, text_path(args.prototxt), args.mean_file, args.labels, args.list)
    if not (args.csv or args.json or args.jsonl):
        suffix = os.path.splitext(args.out or "")[1].lower()
        args.csv, args.json = suffix == ".csv", suffix in (".json", ".jsonl")
    refuse_unused_device(args.device, args.engine or args.fast, "--fast or --engine")
    if args.cluster is not None:
        from ..reading.cluster import check_cluster

        check_cluster(args.cluster)
        if args.device != "cpu":
            raise IlgnetError(f"--device {args.device}: the workers of --cluster use the CPU; leave it out")
    if args.root and not (args.list or "-" in args.pictures or any(map(is_list_name, args.pictures))):
        raise IlgnetError(
            f"--root {args.root}: goes with a list (--list FILE, or - for stdin); give one, or leave it out"
        )
    if not args.pictures and not args.list:
        raise IlgnetError("IMAGE is missing; give files, folders, - for stdin, or --list FILE")
    inputs = [*named, *args.list, args.weights, text_path(args.prototxt), args.mean_file, args.labels]
    for option, output in (("--out", args.out), ("--cache", args.cache)):
        if output:
            check_output(output, [path for path in inputs if path and not os.path.isdir(path)], option)
    labels = read_labels(args.labels) if args.labels else ()
    paths = ImagePaths(tuple(path for path in args.pictures if path != "-"), tuple(args.list), args.root)
    total, walked = None, iter(paths)
    if "-" in args.pictures:
        walked = chain(walked, paths.of_lines(sys.stdin))
    else:
        walked, total = _counted_paths(paths)
        say_notes(paths.notes())
        if not total:
            raise IlgnetError(f"{(*args.pictures, *args.list)[0]}: contains no images")
    with ExitStack() as stack:
        cache = None
        if args.cache:
            from ..score_cache import ScoreCache

            cache = stack.enter_context(ScoreCache(args.cache))
        net = _Net(args, cache, total)
        rows = net.on_cluster(walked) if args.cluster else _rows(net, walked, cache)
        progress = stack.enter_context(progress_bar("scoring", total, "images"))
        write: Callable[[str], Any] = sys.stdout.write
        if args.out:
            write = stack.enter_context(atomic_file(args.out, "w")).write
        bad = _Bad(total)
        _write(args, net, bad.reported(_counted(rows, progress)), tuple(labels), write)
    bad.end()
    return 0


def _counted_paths(paths: ImagePaths) -> tuple[Iterator[str], int]:
    """Paths and how many they are.  So many that memory would grow with them are found again, not held."""
    found = iter(paths)
    held = list(islice(found, _HELD))
    others = sum(1 for _ in found)
    return iter(paths if others else held), len(held) + others


def _rows(net: _Net, paths: Iterable[str], cache: ScoreCache | None) -> Iterator[Score]:
    if cache is None:
        return net.scorer().score(paths)
    from ..score_cache import score_cached

    return score_cached(paths, cache, net.model, net.scorer)


def _counted(rows: Iterable[Score], progress: Callable[[int], None]) -> Iterator[Score]:
    for done, row in enumerate(rows, 1):
        yield row
        progress(done)


class _Bad:
    """Names the images that could not be scored on stderr; a single one is named by the last line."""

    def __init__(self, total: int | None) -> None:
        self._first, self._count, self._done = "", 0, 0

    def reported(self, rows: Iterable[Score]) -> Iterator[Score]:
        """Pass records on, and name those that have an error."""
        for row in rows:
            self._done += 1
            if row.error:
                self._count += 1
                if self._count == 1:
                    self._first = row.error
                else:
                    for error in (self._first, row.error) if self._count == 2 else (row.error,):
                        say(f"not scored: {error}", file=sys.stderr)
            else:
                say_notes(f"{row.path}: {note}" for note in row.notes)
            yield row

    def end(self) -> None:
        """Raise IlgnetError where there was a bad image."""
        if self._count == 1:
            many = self._done - 1
            others = (
                f" (the other {f'{many:,} images are' if many > 1 else 'image is'} scored)" if many else ""
            )
            raise IlgnetError(f"{self._first}{others}")
        if self._count:
            raise IlgnetError(
                f"{self._count:,} of {self._done:,} images were not scored; they are named above"
            )


def _write(
    args: argparse.Namespace,
    net: _Net,
    rows: Iterator[Score],
    labels: tuple[str, ...],
    write: Callable[[str], Any],
) -> None:
    """Write the records in the form of the options."""
    from ..scored import TOP, best_value
    from ._scored import BoxDrawer, CsvRows, json_lines, lines

    first = next(rows, None)
    labels = labels or tuple((net.facts or {}).get("labels", ()))
    classes = bool(args.labels)
    count = args.top or TOP
    fewest = -math.inf if args.threshold is None else args.threshold

    def shown(row: Score) -> Score:
        if args.threshold is not None and row.boxes is None and not row.error:
            raise IlgnetError(
                f"--threshold {args.threshold:g}: the net does not end in DetectionOutput; leave it out"
            )
        row = row.labelled(labels, count, fewest) if labels or args.threshold is not None else row
        if args.top and not row.error and not row.classes and row.value is None and row.boxes is None:
            raise IlgnetError(
                f"--top {args.top}: the net gives no score, and its classes have no names; give --labels FILE"
            )
        return row.with_best(args.top, keep_classes=classes or row.value is None)

    every = map(shown, chain([] if first is None else [first], rows))
    drawer = BoxDrawer(args.draw, args.raw_pixels) if args.draw else None
    table = CsvRows(write) if args.csv else None
    add: Callable[[Score], None]
    if table is not None:
        add = table.add
    elif args.json or args.jsonl:
        add = json_lines(labels, count, write)
    else:
        add = lines(labels, count, write, classes=classes)

    def value_of(row: Score) -> float:
        value = best_value(row)
        return -math.inf if value is None or math.isnan(value) else value

    def taken() -> Iterator[Score]:
        for row in every:
            if drawer is not None:
                drawer.add(row)
            yield row

    ordered: Iterable[Score] = taken()
    if args.top and not classes:
        ordered = _best(ordered, args.top, value_of, args.sort)
    elif args.sort:
        ordered = sorted(ordered, key=value_of, reverse=True)
    for row in ordered:
        add(row)
    if table is not None:
        table.end()


def _best(
    rows: Iterable[Score], top: int, value_of: Callable[[Score], float], is_sorted: bool
) -> Iterator[Score]:
    """The ``top`` images of the highest score, best first, of a net that has one; all of another, and bad ones last."""
    held: list[tuple[float, int, Score]] = []
    others: list[Score] = []
    for number, row in enumerate(rows):
        if row.error:
            others.append(row)
        elif row.value is None and not is_sorted:
            yield row
        else:
            entry = (value_of(row), -number, row)
            if row.value is None or len(held) < top:
                heapq.heappush(held, entry)
            else:
                heapq.heappushpop(held, entry)
    yield from (row for _, _, row in sorted(held, key=lambda entry: entry[:2], reverse=True))
    yield from others
