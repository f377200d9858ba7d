#!/usr/bin/env python3
"""Images per second of ILGNet at batches 1 and 16: OpenCV 4, the exact net, the fast path in each precision.

    python benchmarks/bench_inference.py [--rounds 40] [--threads 2] [--torch-compile] [--json FILE]

All run in turns, in one process, on the same weights (seeded, those that tests/golden was recorded with) and
the recorded images; each one's best round counts, since other programs on the machine only ever slow a
round down.  Deviations are from the exact net: on the two recorded images, and on the hundred of
golden/ilgnet/val_lmdb if the authors' mean file is available (../shared).
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilgnet_repro import precisions, tune_process
from ilgnet_repro.aesthetics import ilgnet
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import read_mean
from ilgnet_repro.reading.transforms import Transform
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.zoo.seeded import seeded_blobs

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "ilgnet"
MEAN = ROOT.parent / "shared" / "ilgnet" / "mean" / "AVA2_mean.binaryproto"
HIGH = "loss1/loss"
BATCHES = (1, 16)


def write_net(folder):
    """Write the seeded ILGNet as Caffe's two files."""
    from ilgnet_repro.caffe.graph_build import build_graph

    text = ilgnet.deploy()
    shapes = {
        name: [spec.shape for spec in specs] for name, specs in plan_net(build_graph(text)).blobs.items()
    }
    biases = {"loss1/classifier_cjy": np.loadtxt(GOLDEN / "classifier_bias.txt")}
    (folder / "net.prototxt").write_text(format_message(text))
    write_caffemodel(folder / "net.caffemodel", text, dict(seeded_blobs(text, shapes, biases=biases)))
    return str(folder / "net.prototxt"), str(folder / "net.caffemodel")


def recorded_images():
    with np.load(GOLDEN / "blobs.npz") as recorded:
        two = np.concatenate([recorded[f"in/{number}"].reshape(1, 3, 227, 227) for number in (0, 1)])
    if not MEAN.is_file():
        return torch.from_numpy(two), None
    rows = LmdbReader(GOLDEN / "val_lmdb")
    transform = Transform(crop_size=227, mean=read_mean(MEAN))
    return torch.from_numpy(two), torch.from_numpy(
        transform.batch(np.stack([row.image()[0] for row in rows]))
    )


def high(run, images):
    return np.concatenate([run(part)[:, 1] for part in images.split(10)])


def machine():
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = dict(
            line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model = f"{fields['model name']}, family {fields['cpu family']}, model {fields['model']}"
    return f"{os.cpu_count()} cores, {model}; torch {torch.__version__}, OpenCV {cv2.__version__}"


def make_runners(files, whole):
    """Each candidate's function from a batch to probabilities, and its setup time in seconds."""
    net, ready, runners = load_net(*files), {}, {}

    def through(model):
        def run(batch):
            with torch.inference_mode():
                return model(data=batch)[HIGH].numpy()

        return run

    def opencv(batch):
        loaded.setInput(batch.numpy())
        return loaded.forward()

    start = time.perf_counter()
    loaded = cv2.dnn.readNetFromCaffe(*files)
    ready["OpenCV 4"], runners["OpenCV 4"] = time.perf_counter() - start, opencv
    ready["exact"], runners["exact"] = 0.0, through(net)
    for precision, compile in (*((name, False) for name in precisions.WEIGHTS), ("float16", True)):
        name = f"fast {precision}, compiled" if compile else f"fast {precision}"
        start = time.perf_counter()
        runners[name] = through(fast_net(net, precision, compile=compile))
        ready[name] = time.perf_counter() - start
    if whole:
        compiled = through(torch.compile(net))
        start = time.perf_counter()
        for count in BATCHES:
            compiled(torch.zeros(count, 3, 227, 227))
        ready["exact, torch.compile"] = time.perf_counter() - start
        runners["exact, torch.compile"] = compiled
    return runners, ready


def best_rates(runners, two, rounds):
    rates = {}
    for count in BATCHES:
        batch = two[torch.arange(count) % 2].contiguous()
        best = dict.fromkeys(runners, float("inf"))
        for _ in range(rounds):
            for name, run in runners.items():
                run(batch)  # brings its weights back into the caches
                for _ in range(4 if count == 1 else 1):
                    start = time.perf_counter()
                    run(batch)
                    best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            rates[name, count] = count / seconds
    return rates


def main() -> None:
    tune_process()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--torch-compile", action="store_true", help="the exact net under torch.compile as well"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    two, hundred = recorded_images()
    with tempfile.TemporaryDirectory() as folder:
        runners, ready = make_runners(write_net(Path(folder)), args.torch_compile)
        rates = best_rates(runners, two, args.rounds)
        exact = {
            name: high(runners["exact"], images)
            for name, images in (("two", two), ("hundred", hundred))
            if images is not None
        }
        print(machine())
        print(f"{args.threads} threads, best of {args.rounds} rounds in turns\n")
        print(
            "| | batch 1: images/s | × OpenCV | batch 16: images/s | × OpenCV | \\|Δ probability\\|, 2 recorded "
            "| of 100: mean / largest / over 0.005 | seconds to make ready |\n|---|---|---|---|---|---|---|---|"
        )
        rows = []
        for name, run in runners.items():
            one, sixteen = (rates[name, count] for count in BATCHES)
            row = {
                "name": name, "batch 1": one, "batch 1 to OpenCV": one / rates["OpenCV 4", 1],
                "batch 16": sixteen, "batch 16 to OpenCV": sixteen / rates["OpenCV 4", 16],
                "seconds to make ready": ready[name],
            }  # fmt: skip
            errors = {
                key: np.abs(high(run, {"two": two, "hundred": hundred}[key]) - exact[key]) for key in exact
            }
            row["deviation of 2"] = float(errors["two"].max())
            shown = "not measured"
            if "hundred" in errors:
                far = errors["hundred"]
                row["deviation of 100"] = {
                    "mean": float(far.mean()),
                    "largest": float(far.max()),
                    "over 0.005": int((far > 0.005).sum()),
                }
                shown = f"{far.mean():.6f} / {far.max():.5f} / {(far > 0.005).sum()}"
            rows.append(row)
            print(
                f"| {name} | {one:.1f} | {row['batch 1 to OpenCV']:.2f} | {sixteen:.1f} | {row['batch 16 to OpenCV']:.2f} "
                f"| {row['deviation of 2']:.6f} | {shown} | {ready[name]:.1f} |"
            )
    if args.json:
        Path(args.json).write_text(
            json.dumps({"machine": machine(), "threads": args.threads, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
