#!/usr/bin/env python3
"""Images per second of eight public nets beside OpenCV 4, ONNX Runtime and OpenVINO, at batches 1 and 8.

    python benchmarks/bench_zoo.py [--seconds 6] [--threads N] [--nets alexnet ilgnet] [--json FILE] [--price 0.08]
    python benchmarks/bench_zoo.py --exact                                # only the exact nets beside OpenCV 4
    python benchmarks/bench_zoo.py --from-json FILE --write docs/speed.md  # measures nothing: fills the page's tables
    python benchmarks/bench_zoo.py --device cuda [--json FILE] [--until 240]  # on a GPU: zoo_on_gpu.py

For each net and batch all engines run in turns in one process, on the same drawn weights and images, and the
best run of each counts: other programs on the machine only ever slow a run down.  OpenCV reads Caffe's files, ONNX
Runtime and OpenVINO the ONNX file that `ilgnet convert` writes, with the batch fixed for OpenVINO; `fast` is `ir.fast`
with engine="auto", measured again.  Deviations are the largest difference of a probability from the exact net, for
ILGNet on the hundred recorded images where the authors' mean file is there (../shared).
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from math import exp, log, prod, sqrt
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ilgnet_repro as ir
from ilgnet_repro.aesthetics import ilgnet
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.onnx_engines import engine_version, is_installed
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import read_mean
from ilgnet_repro.reading.transforms import Transform
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.zoo.catalogue import build
from ilgnet_repro.zoo.seeded import seeded_blobs

sys.path.insert(0, str(Path(__file__).resolve().parent))
import zoo_on_gpu

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "ilgnet"
MEAN = ROOT.parent / "shared" / "ilgnet" / "mean" / "AVA2_mean.binaryproto"
NETS = ("alexnet", "googlenet", "squeezenet", "resnet50", "mobilenet", "mobilenet_v2", "lenet", "ilgnet")
BATCHES = (1, 8)
MORE_BATCHES = {"ilgnet": (1, 8, 16)}
OPENCV = "OpenCV 4"
MARK = re.compile(
    "(<!-- (?:measured|figures) -->)"
)  # before each table and sentence of docs/speed.md that is filled in
FAST = ("float32", "float16", "int8")
LENET = """
name: "LeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 20 kernel_size: 5 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 50 kernel_size: 5 } }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1" inner_product_param { num_output: 500 } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }
"""


def load(name: str) -> ir.CaffeNet:
    """A net with drawn weights that keep the values of all layers at similar magnitudes."""
    from ilgnet_repro.caffe.graph_build import build_graph

    text = parse_net(LENET) if name == "lenet" else ilgnet.deploy() if name == "ilgnet" else build(name)
    graph = build_graph(text)
    blobs = plan_net(graph).blobs
    if name == "ilgnet":  # the weights that tests/golden was recorded with
        shapes = {layer: [spec.shape for spec in specs] for layer, specs in blobs.items()}
        biases = {"loss1/classifier_cjy": np.loadtxt(GOLDEN / "classifier_bias.txt")}
        return ir.CaffeNet(graph, dict(seeded_blobs(text, shapes, biases=biases)))
    random = np.random.default_rng(11)
    return ir.CaffeNet(
        graph, {layer: [draw(spec, random) for spec in specs] for layer, specs in blobs.items()}
    )


def draw(spec: Any, random: np.random.Generator) -> np.ndarray:
    shape = spec.shape
    if spec.name == "weight" and len(shape) > 1:
        return random.standard_normal(shape, np.float32) * np.float32(sqrt(2 / prod(shape[1:])))
    low, high = {
        "weight": (0.8, 1.2), "variance": (0.5, 1.5), "scale_factor": (1, 1), "scale": (0.9, 1.1),
    }.get(spec.name, (-0.1, 0.1))  # fmt: skip
    return random.uniform(low, high, shape).astype(np.float32)


def images(name: str, net: ir.CaffeNet, count: int) -> torch.Tensor:
    if name == "ilgnet":
        with np.load(GOLDEN / "blobs.npz") as recorded:
            two = [recorded[f"in/{number}"].reshape(3, 227, 227) for number in (0, 1)]
        return torch.from_numpy(np.stack([two[index % 2] for index in range(count)]))
    random = np.random.default_rng(7)
    shape = (count, *net.shapes[net.image_input()][1:])
    return torch.from_numpy(random.uniform(-120, 135, shape).astype(np.float32))


def others(net: ir.CaffeNet, folder: Path, threads: int) -> dict[str, Callable[[int], Callable]]:
    """OpenCV, ONNX Runtime and OpenVINO: for a batch size the function from images to outputs."""
    ir.save(net, folder / "net.caffemodel")
    ir.save(net, folder / "net.onnx")
    name = net.image_input()
    shape = net.shapes[name]
    loaded = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))

    def opencv(batch: torch.Tensor) -> np.ndarray:
        loaded.setInput(batch.numpy())
        return loaded.forward()

    found: dict[str, Callable[[int], Callable]] = {OPENCV: lambda count: opencv}
    if is_installed("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(
            str(folder / "net.onnx"), options, providers=["CPUExecutionProvider"]
        )
        found["ONNX Runtime"] = lambda count: lambda batch: session.run(None, {name: batch.numpy()})[0]
    if is_installed("openvino"):
        import openvino

        core = openvino.Core()

        def openvino_at(count: int) -> Callable:
            model = core.read_model(folder / "net.onnx")
            model.reshape({name: [count, *shape[1:]]})
            settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            return lambda batch: request.infer({name: batch.numpy()}, share_inputs=True)[0]

        found["OpenVINO"] = openvino_at
    return found


def through(net: ir.CaffeNet, output: str) -> Callable:
    def run(batch: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return net(batch)[output].numpy()

    return run


def take_turns(
    runners: dict[str, Callable], batch: torch.Tensor, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """The shortest run of each, in seconds."""
    best = dict.fromkeys(runners, float("inf"))
    repeats = 4 if len(batch) == 1 else 1
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 4:
        rounds += 1
        for name, run in runners.items():
            time.sleep(0.01)  # until the threads of the one before it no longer wait in a loop
            run(batch)  # brings its weights back into the caches
            # Of a small net a few milliseconds: the first runs after another engine's are slower by a tenth.
            for _ in range(max(repeats, min(50, int(0.005 / best[name])))):
                start = clock()
                run(batch)
                best[name] = min(best[name], clock() - start)
    return best


def hundred() -> torch.Tensor | None:
    if not MEAN.is_file():
        return None
    transform = Transform(crop_size=227, mean=read_mean(MEAN))
    rows = LmdbReader(GOLDEN / "val_lmdb")
    return torch.from_numpy(transform.batch(np.stack([row.image()[0] for row in rows])))


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One net at all its batches."""
    net = load(name)
    output = net.outputs[-1]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        engines = others(net, Path(folder), args.threads)
        if args.exact:
            engines = {OPENCV: engines[OPENCV]}
        for count in MORE_BATCHES.get(name, BATCHES):
            batch = images(name, net, count)
            runners = {engine: make(count) for engine, make in engines.items()}
            runners["exact"] = through(net, output)
            chosen: dict[str, str] = {}
            makers: dict[str, Any] = {}
            made = None
            checked = hundred() if name == "ilgnet" else None  # which int8 must keep
            checked = None if checked is None else checked[:32]
            for precision in () if args.exact else ("torch", *FAST):
                engine = "torch" if precision == "torch" else "auto"
                weights = "float32" if precision == "torch" else precision
                made = ir.fast(
                    net, weights, engine=engine, batch=count, threads=args.threads,
                    inputs=batch if checked is None else checked,
                )  # fmt: skip
                key = "fast, torch only" if precision == "torch" else f"fast {precision}"
                makers[key] = made
                runners[key] = lambda batch, made=made: made(batch)[output].numpy()
                chosen[key] = made.engine if made.precision == weights else f"{made.engine} {made.precision}"
            exact = runners["exact"](batch)
            compared = hundred() if name == "ilgnet" and count != 8 else None
            if compared is not None:  # whole batches, as engines with a fixed one take
                compared = torch.cat([compared, compared[: -len(compared) % count]])
            sets = [batch] if compared is None else [*compared.split(count)]
            wanted = [runners["exact"](part) for part in sets]
            apart = {
                key: max(float(np.abs(run(part) - one).max()) for part, one in zip(sets, wanted, strict=True))
                for key, run in runners.items()
            }
            assert np.isfinite(exact).all()
            logits = logit_differences(net, output, makers, sets)
            seconds = take_turns(runners, batch, args.seconds, args.clock)
            rows.append({
                "net": name, "batch": count, "seconds": seconds, "chosen": chosen, "deviation": apart,
                "logits": logits, "hundred": compared is not None,
                "relative": {key: seconds[OPENCV] / value for key, value in seconds.items()},
            })  # fmt: skip
            print(line(rows[-1]), file=sys.stderr, flush=True)
            del runners, makers
            made = None
            gc.collect()
    return rows


def logit_differences(
    net: ir.CaffeNet, output: str, makers: dict[str, Any], sets: list[torch.Tensor]
) -> dict[str, float]:
    """The largest difference of a value before the softmax, over the largest such value: saturated probabilities hide it."""
    softmax = next((node for node in net.graph if node.type == "Softmax" and output in node.top_names), None)
    if softmax is None:
        return {}
    name = net.graph.names[softmax.bottoms[0]]
    with torch.inference_mode():
        wanted = [net(part, blobs=[name])[name] for part in sets]
    scale = max(float(one.abs().max()) for one in wanted)
    return {
        key: max(
            float((made(part, blobs=[name])[name] - one).abs().max())
            for part, one in zip(sets, wanted, strict=True)
        ) / scale
        for key, made in makers.items()
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    shown = ", ".join(f"{key} {value:.2f}" for key, value in row["relative"].items())
    return f"{row['net']} {row['batch']}: {shown}; {row['chosen']}"


def geometric_mean(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def report(rows: list[dict[str, Any]], price: float) -> None:
    columns = list(rows[0]["seconds"])
    print(f"| net, batch | {OPENCV}: images/s | {' | '.join(columns[1:])} | chosen |")
    print("|---" * (len(columns) + 2) + "|")
    for row in rows:
        rate = row["batch"] / row["seconds"][OPENCV]
        shown = " | ".join(f"{row['relative'][key]:.2f}" for key in columns[1:])
        chosen = ", ".join(dict.fromkeys(row["chosen"].get(f"fast {one}", "") for one in FAST))
        print(f"| {row['net']}, {row['batch']} | {rate:.1f} | {shown} | {chosen} |")
    table = [row for row in rows if row["batch"] in BATCHES]
    means = (geometric_mean([row["relative"][key] for row in table]) for key in columns[1:])
    print(f"| geometric mean, batches 1 and 8 | | {' | '.join(f'**{mean:.2f}**' for mean in means)} | |")
    worst = (max(row["deviation"][key] for row in rows if key in row["deviation"]) for key in columns[1:])
    print(f"| largest difference of a probability | | {' | '.join(f'{value:.1g}' for value in worst)} | |")
    worst = {
        key: max((row.get("logits", {}).get(key, -1.0) for row in rows), default=-1.0) for key in columns[1:]
    }
    if max(worst.values()) >= 0:
        shown = " | ".join("" if value < 0 else f"{value:.1g}" for value in worst.values())
        print(f"| largest difference of a logit, over the largest logit | | {shown} | |")
    print(f"\n{findings(rows)}\n")
    another = "another price: `python benchmarks/bench_zoo.py --price 0.16`"
    print(f"One million images at {price:g} an hour for this machine ({another}), batch 8:\n")
    print(f"| net | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for row in rows:
        if row["batch"] == 8:
            costs = (price / 3600 * row["seconds"][key] / row["batch"] * 1e6 for key in columns)
            print(f"| {row['net']} | {' | '.join(f'{cost:.2f}' for cost in costs)} |")


def findings(rows: list[dict[str, Any]]) -> str:
    """What the table says, in sentences: where `fast` is below the best engine, and ILGNet's rates and differences."""
    said = []
    engines = [name for name in ("ONNX Runtime", "OpenVINO") if name in rows[0]["relative"]]
    table = [row for row in rows if row["batch"] in BATCHES and "fast float32" in row["relative"]]
    if engines and table:
        over = {
            f"{row['net']} at {row['batch']}": row["relative"]["fast float32"]
            / max(row["relative"][one] for one in engines)
            for row in table
        }
        least = min(over, key=lambda name: over[name])
        said.append(
            f"`fast` float32 over the better of {' and '.join(engines)}: at least {over[least]:.2f} ({least})."
        )
        below = [f"{name} ({ratio:.2f})" for name, ratio in over.items() if ratio < 0.95]
        said.append(f"Below 0.95 of it: {', '.join(below) or 'none'}.")
    for row in rows:
        if row["net"] == "ilgnet" and row.get("hundred"):
            shown = (
                f"{key} {row['relative'][key]:.2f} ({row['deviation'][key]:.1g})"
                for key in ("exact", *(f"fast {one}" for one in FAST))
                if key in row["relative"]
            )
            said.append(
                f"ILGNet at batch {row['batch']} over OpenCV 4, and in brackets the largest difference of a probability "
                f"on the hundred recorded images: {', '.join(shown)}."
            )
    return "\n".join(said) or "No engine but OpenCV 4 was measured."


def fill_page(page: Path, rows: list[dict[str, Any]], price: float, stated: str) -> None:
    """Replace what follows each mark of a page, up to a blank line: machine, table, findings, price and costs."""
    held = io.StringIO()
    with redirect_stdout(held):
        report(rows, price)
    parts = [f"Measured on {stated}.", *held.getvalue().strip().split("\n\n")]
    text = page.read_text()
    begin, end = zoo_on_gpu.PAGE_MARKS
    of_gpu = text[text.find(begin) : text.find(end)] if begin in text and end in text else ""
    text = text.replace(of_gpu, begin, 1) if of_gpu else text  # its marks are not those of this table
    pieces = MARK.split(text)  # text, then each mark and what follows it
    if len(pieces) // 2 < len(parts):
        raise SystemExit(f"{page}: has {len(pieces) // 2} marks for {len(parts)} parts; add the others")
    for index, part in enumerate(parts):
        _, _, after = pieces[2 * index + 2].lstrip("\n").partition("\n\n")
        pieces[2 * index + 2] = f"\n{part.strip()}\n\n{after}"
    text = "".join(pieces)
    page.write_text(text.replace(begin, of_gpu, 1) if of_gpu else text)


def machine() -> str:
    model = platform.processor()
    with suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                model = text.partition(":")[2].strip()
    engines = ", ".join(f"{name} {engine_version(name)}" for name in ("onnxruntime", "openvino"))
    return f"{os.cpu_count()} cores, {model}; torch {torch.__version__}, OpenCV {cv2.__version__}, {engines}"


def conditions(machine: str, threads: int, cpu_time: bool) -> str:
    """The machine, the versions and the clock of some figures."""
    return f"{machine}, " + ("CPU time of one thread" if cpu_time else f"threads: {threads}")


def show_gpu(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables of a GPU, or fill them into a page."""
    if args.write:
        zoo_on_gpu.fill_page(args.write, figures, args.gpu_price)
    else:
        parts = zoo_on_gpu.report(figures["rows"], args.gpu_price)
        print("\n\n".join([figures["machine"], *parts]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6, help="for each net and batch (default 6)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument(
        "--price", type=float, default=0.08, help="of an hour of this machine, for the cost (default 0.08)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--exact", action="store_true", help="only the exact nets and OpenCV 4")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing: figures that --json wrote")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="fill the tables of docs/speed.md")
    parser.add_argument(
        "--cpu-time", action="store_true",
        help="count the CPU time of one thread, which other programs on the machine change little",
    )  # fmt: skip
    on_gpu = parser.add_argument_group("with --device")
    on_gpu.add_argument(
        "--device", help="measure on a GPU: cuda or cuda:N (cpu tries the script without one)"
    )
    on_gpu.add_argument(
        "--gpu-price", type=float, default=2.5, help="of an hour of the GPU, for the cost (default 2.5)"
    )
    on_gpu.add_argument("--batches", nargs="+", type=int, default=zoo_on_gpu.GPU_BATCHES)
    on_gpu.add_argument("--until", type=float, default=240, help="start nothing after that many seconds")
    on_gpu.add_argument("--variants", action="store_true", help="also time what `fast` does not choose")
    on_gpu.add_argument("--compiled", nargs="*", choices=NETS, default=[], help="nets for torch.compile")
    on_gpu.add_argument("--compiled-batches", nargs="+", type=int, default=(1, 64))
    on_gpu.add_argument(
        "--half-onnx", nargs="*", choices=NETS, default=[], help="nets for float16 in ONNX Runtime"
    )
    args = parser.parse_args()
    if args.from_json:
        held = json.loads(Path(args.from_json).read_text())
        if "device" in held:
            show_gpu(held, args)
            return
        stated = conditions(held["machine"], held["threads"], held.get("cpu_time", False))
        if args.write:
            fill_page(args.write, held["rows"], args.price, stated)
        else:
            print(stated, end="\n\n")
            report(held["rows"], args.price)
        return
    if args.device:
        show_gpu(zoo_on_gpu.run_all(args, load, images), args)
        return
    args.clock = time.process_time if args.cpu_time else time.perf_counter
    args.threads = 1 if args.cpu_time else args.threads
    ir.tune_process()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ILGNET_HOME"] = folder  # engines are chosen again
        for name in args.nets:
            rows += measure(name, args)
            if args.json:
                figures = {
                    "machine": machine(),
                    "threads": args.threads,
                    "cpu_time": args.cpu_time,
                    "rows": rows,
                }
                Path(args.json).write_text(json.dumps(figures, indent=2))
    stated = conditions(machine(), args.threads, args.cpu_time)
    print(stated)
    print()
    report(rows, args.price)
    if args.write:
        fill_page(args.write, rows, args.price, stated)


if __name__ == "__main__":
    main()
