"""Converting the full-size ILGNet (604 MB), beside `cp` and protobuf's own parse, in the same run.

    python benchmarks/bench_convert.py [--weights X.caffemodel] [--repeat 5]

Prints seconds, the ratio to `cp`, and the anonymous memory (file pages apart) each takes above an
interpreter that has torch imported.  Without --weights it makes a file of random weights in a temporary
folder (1.3 GB of disk are needed).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Each measurement is a process of its own, so that none inherits another's memory; the clock starts after
# the imports.
PRELUDE = """
import json, sys, threading, time, torch
import ilgnet_repro as ir
from ilgnet_repro.schema import caffe_pb2
import ilgnet_repro.conversion.convert, ilgnet_repro.scoring
from ilgnet_repro.layers.registry import layer_types
ir.convert, ir.load, ir.score, layer_types()
source, target, picture = sys.argv[1:4]

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

before, peak, running = anonymous(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.01)
thread = threading.Thread(target=watch); thread.start()
started = time.perf_counter()
{work}
seconds = time.perf_counter() - started
running = False; thread.join()
print(json.dumps([seconds, max(peak, anonymous()) - before]))
"""
WORK = {
    "cp": "import subprocess; subprocess.run(['cp', source, target + '/copy.bin'], check=True)",
    "ilgnet convert": "ir.convert(source, out=target)",
    "protobuf parse": "net = caffe_pb2.NetParameter.FromString(open(source, 'rb').read())",
    "load, first score": (
        "ir.score([picture], target + '/' + source.rsplit('/', 1)[1].replace('.caffemodel', '.safetensors'))"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from ilgnet_repro.demo import draw_pictures, make_random_ilgnet

        weights = args.weights or Path(folder, "random.caffemodel")
        if args.weights is None:
            make_random_ilgnet(weights)
        picture = draw_pictures(folder, 1)[0]
        best: dict[str, list[float]] = {}
        for _ in range(args.repeat):  # in turn, so that a busy moment falls on all alike
            for name, work in WORK.items():
                for left in (Path(folder, "copy.bin"), Path(folder, f"{weights.stem}.safetensors")):
                    if name in ("cp", "ilgnet convert"):
                        left.unlink(missing_ok=True)
                command = [sys.executable, "-c", PRELUDE.replace("{work}", work), weights, folder, picture]
                seconds, memory = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                known = best.setdefault(name, [seconds, memory])
                best[name] = [min(known[0], seconds), max(known[1], memory)]
    print(f"{weights.name}, best of {args.repeat}; memory is the largest seen")
    print(f"{'':20}{'seconds':>9}{'x cp':>8}{'anonymous MB':>15}")
    for name, (seconds, memory) in best.items():
        print(f"{name:20}{seconds:9.3f}{seconds / best['cp'][0]:8.2f}{memory / 1e6:15.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
