"""The GPU's part of bench_zoo.py: the columns of a net at a batch, timed in turns, and their table.

Times are those of calls in a row on inputs that are on the GPU, waited for at the end of each row: what a stream of batches
takes.  Nothing is started after ``--until`` seconds, so that a lent machine's time suffices; what is left out is printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import ilgnet_repro as ir
from ilgnet_repro.engines.device_runner import DeviceOptions, DeviceRunner
from ilgnet_repro.engines.onnx_engines import bound, engine_version, has_cuda, open_onnxruntime
from ilgnet_repro.runtime.float32_products import float32_products

GPU_BATCHES = (1, 8, 64)
PAGE_MARKS = ("<!-- GPU begin -->", "<!-- GPU end -->")
COMPARED = 8  # images of a batch whose probabilities the CPU computes too
ROWS, ROW_SECONDS = 7, 0.02
Run = Callable[[Tensor], Tensor]
# What `fast` does on a GPU, and one of its choices changed at a time.
VARIANTS: dict[str, tuple[str, DeviceOptions]] = {
    "fast, launched": ("float32", DeviceOptions(graphs=False)),
    "fast": ("float32", DeviceOptions()),
    "fast float16": ("float16", DeviceOptions()),
    "fast bfloat16": ("bfloat16", DeviceOptions()),
}
OTHER_VARIANTS: dict[str, tuple[str, DeviceOptions]] = {
    "fast, channels last": ("float32", DeviceOptions(channels_last=True)),
    "fast, ReLU apart": ("float32", DeviceOptions(fused=False)),
    "fast, untuned": ("float32", DeviceOptions(tuned=False)),
    "fast float16, N x C x H x W": ("float16", DeviceOptions(channels_last=False)),
    "fast float16, ReLU apart": ("float16", DeviceOptions(fused=False)),
    "fast float16, untuned": ("float16", DeviceOptions(tuned=False)),
}
COMPILED = {"torch.compile": {}, "torch.compile, graphs": {"mode": "reduce-overhead"}}


class Clock:
    """What is left of a lent machine's time, and where it went."""

    def __init__(self, until: float) -> None:
        self.start, self.until, self.spent = time.perf_counter(), until, {}

    def is_over(self) -> bool:
        return time.perf_counter() - self.start > self.until

    @contextmanager
    def counted(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - start


def synchronize(device: str) -> None:
    if device != "cpu":  # where the script is tried without a GPU
        torch.cuda.synchronize()


def exact_runs(net: ir.CaffeNet, output: str, device: str) -> Iterator[tuple[str, Run]]:
    """The net itself, moved: as it is, and with weights and inputs in channels-last order."""
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    for key, order in (("exact", torch.contiguous_format), ("exact, channels last", torch.channels_last)):
        moved = ir.CaffeNet(net.plan, arrays).to(device).eval()
        for blob in moved.parameters():
            if blob.dim() == 4:
                blob.data = blob.data.contiguous(memory_format=order)

        def run(batch: Tensor, moved: Any = moved, order: Any = order) -> Tensor:
            with torch.inference_mode():
                given = batch.contiguous(memory_format=order) if batch.dim() == 4 else batch
                found: Tensor = moved(given)[output]
                return found

        yield key, run


def fast_run(net: ir.CaffeNet, output: str, device: str, precision: str, options: DeviceOptions) -> Run:
    name = net.image_input()
    if device == "cpu":
        options = replace(options, graphs=False)
    made = DeviceRunner(net, (output,), device, precision, say, options)
    return lambda batch: made({name: batch})[output]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def compiled_run(net: ir.CaffeNet, output: str, device: str, options: dict[str, Any]) -> Run:
    """torch.compile of the exact net, TF32 off as in all columns."""
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    moved = ir.CaffeNet(net.plan, arrays).to(device).eval()
    torch._dynamo.reset()
    made = torch.compile(moved.as_tensor(output), dynamic=False, **options)

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode(), float32_products():
            found: Tensor = made(batch)
            return found

    return run


def onnx_run(path: Path, net: ir.CaffeNet, output: str, device: str) -> Run:
    session = open_onnxruntime(str(path), 1, device, is_whole=True)
    made = bound(session, (output,), device)
    name = net.image_input()
    return lambda batch: made({name: batch})[0]


def measure(
    name: str, net: ir.CaffeNet, images: Callable[[int], Tensor], args: argparse.Namespace, clock: Clock
) -> list[dict[str, Any]]:
    """One net at all batches: the columns are made once and timed at each batch."""
    device, output = args.device, net.outputs[-1]
    runs: dict[str, Run] = dict(exact_runs(net, output, device))
    variants = {**VARIANTS, **(OTHER_VARIANTS if args.variants else {})}
    with clock.counted("made"):
        for key, (precision, options) in variants.items():
            if not clock.is_over():
                runs[key] = fast_run(net, output, device, precision, options)
    with TemporaryDirectory() as folder, clock.counted("ONNX Runtime opened"):
        if has_cuda("onnxruntime") or device == "cpu":
            for key, options in (("ONNX Runtime", {}), ("ONNX Runtime float16", {"arithmetic": "float16"})):
                if clock.is_over() or (options and name not in args.half_onnx):
                    continue
                path = Path(folder) / f"{key.replace(' ', '_')}.onnx"
                try:
                    ir.save(net, path, **options)
                    runs[key] = onnx_run(path, net, output, device)
                except Exception as error:
                    say(f"{name}: {key} is left out: {error}")
    compiled: dict[str, Run] = {}
    if name in args.compiled:
        compiled = {key: compiled_run(net, output, device, options) for key, options in COMPILED.items()}
    rows = []
    for count in args.batches:
        if clock.is_over():
            say(f"{name}, {count}: left out, the time is over")
            continue
        batch = images(count).to(device)
        able = {**runs, **(compiled if count in args.compiled_batches else {})}
        with torch.inference_mode(), clock.counted("exact on the CPU"):
            wanted = net(batch[:COMPARED].cpu())[output]
        apart: dict[str, float] = {}
        first: dict[str, float] = {}
        for key, run in list(able.items()):
            start = time.perf_counter()
            try:
                with clock.counted(f"first calls: {key}"):
                    for _ in range(4):  # launched, recorded, replayed
                        found = run(batch)
                    synchronize(device)
            except Exception as error:
                say(f"{name}, {count}: {key} is left out: {str(error)[:300]}")
                del able[key]
                continue
            first[key] = time.perf_counter() - start
            apart[key] = float((found[:COMPARED].float().cpu() - wanted).abs().max())
        with clock.counted("timed"):
            seconds = take_turns(able, batch, device)
        rows.append({"net": name, "batch": count, "seconds": seconds, "deviation": apart, "first": first})
        shown = ", ".join(f"{key} {seconds['exact'] / value:.2f}" for key, value in seconds.items())
        say(f"{name}, {count}: {count / seconds['exact']:.0f}/s; {shown}")
    del runs, compiled
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    return rows


def take_turns(runs: dict[str, Run], batch: Tensor, device: str) -> dict[str, float]:
    """The median seconds of a call of each, by rows of calls, in turns."""
    taken: dict[str, list[float]] = {key: [] for key in runs}
    repeats = dict.fromkeys(runs, 1)
    for turn in range(ROWS + 1):
        for key, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats[key]):
                run(batch)
            synchronize(device)
            seconds = (time.perf_counter() - start) / repeats[key]
            if turn:
                taken[key].append(seconds)
            else:
                repeats[key] = max(1, min(200, int(ROW_SECONDS / seconds)))
    return {key: statistics.median(values) for key, values in taken.items()}


def report(rows: list[dict[str, Any]], price: float) -> Iterator[str]:
    """The parts of the page: the table, what it says, and the costs."""
    columns = list(dict.fromkeys(key for row in rows for key in row["seconds"]))
    lines = [
        f"| net, batch | exact: images/s | {' | '.join(columns[1:])} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        base = row["seconds"]["exact"]
        cells = (f"{base / row['seconds'][key]:.2f}" if key in row["seconds"] else "" for key in columns[1:])
        lines.append(f"| {row['net']}, {row['batch']} | {row['batch'] / base:.0f} | {' | '.join(cells)} |")
    for count in sorted({row["batch"] for row in rows}):
        own = [row for row in rows if row["batch"] == count]
        means = []
        for key in columns[1:]:
            ratios = [row["seconds"]["exact"] / row["seconds"][key] for row in own if key in row["seconds"]]
            is_all = len(ratios) == len(own)
            means.append(f"**{exp(sum(map(log, ratios)) / len(ratios)):.2f}**" if is_all else "")
        lines.append(f"| geometric mean, batch {count} | | {' | '.join(means)} |")
    worst = (max(row["deviation"].get(key, 0.0) for row in rows) for key in columns)
    first, *others = (f"{value:.1g}" for value in worst)
    lines.append(f"| largest difference of a probability | {first} | {' | '.join(others)} |")
    yield "\n".join(lines)
    largest = max(row["batch"] for row in rows)
    yield (
        f"One million images at {price:g} an hour for this GPU (another price: `python benchmarks/bench_zoo.py "
        f"--from-json FILE --gpu-price 4`), batch {largest}:"
    )
    shown = [key for key in columns if all(key in row["seconds"] for row in rows)]
    lines = [f"| net | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        if row["batch"] == largest:
            costs = (price / 3600 * row["seconds"][key] / row["batch"] * 1e6 for key in shown)
            lines.append(f"| {row['net']} | {' | '.join(f'{cost:.3f}' for cost in costs)} |")
    yield "\n".join(lines)


def machine(device: str) -> str:
    name = "a CPU in its place" if device == "cpu" else torch.cuda.get_device_name(device)
    version = next(filter(None, map(engine_version, ("onnxruntime-gpu", "onnxruntime"))), "none")
    libraries = "" if device == "cpu" else f", cuDNN {torch.backends.cudnn.version()}"
    return f"one {name}; torch {torch.__version__}{libraries}, onnxruntime {version}"


def run_all(
    args: argparse.Namespace, load: Callable[[str], ir.CaffeNet], images: Callable[..., Tensor]
) -> dict[str, Any]:
    """Measure all nets, writing what there is after each; return the figures."""
    clock = Clock(args.until)
    figures: dict[str, Any] = {"device": args.device, "machine": machine(args.device), "rows": []}
    for name in args.nets:
        if clock.is_over():
            say(f"{name}: left out, the time is over")
            continue
        with clock.counted("loaded"):
            net = load(name)
        figures["rows"] += measure(name, net, partial(images, name, net), args, clock)
        figures["spent"] = dict(clock.spent)
        if args.json:
            Path(args.json).write_text(json.dumps(figures, indent=2))
    for what, seconds in sorted(clock.spent.items(), key=lambda item: -item[1]):
        say(f"{seconds:7.1f} s {what}")
    return figures


def fill_page(page: Path, figures: dict[str, Any], price: float) -> None:
    """Replace what stands between the marks of a page's GPU tables."""
    begin, end = PAGE_MARKS
    text = page.read_text()
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{page}: has no {begin} and {end}; add them where the GPU's tables belong")
    table, sentence, costs = report(figures["rows"], price)
    parts = (
        f"Measured on {figures['machine']}.",
        f"<!-- measured -->\n{table}",
        sentence,
        f"<!-- measured -->\n{costs}",
    )
    page.write_text(f"{before}{begin}\n" + "\n\n".join(parts) + f"\n\n{end}{after}")
