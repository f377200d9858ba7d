"""Converting and loading the full-size ILGNet (604 MB), beside `cp`, SHA-256 and protobuf's own parse, in the same run.

    python benchmarks/bench_convert.py [--weights X.caffemodel] [--repeat 5] [--check]

Prints seconds, the ratio to `cp`, and the anonymous memory (file pages apart) each takes above an
interpreter that has torch imported.  Without --weights it makes a file of random weights in a temporary
folder (1.3 GB of disk are needed), and loads it once more at the size of a released file, where it is hashed.
With --check it ends with 1 where `convert` takes over 3 x `cp`, or `load` over 0.3 s beside its one hash.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Each measurement is a separate process, so that none inherits another's memory; the clock starts after
# the imports.
PRELUDE = """
import json, sys, threading, time, torch
import ilgnet_repro as ir
from ilgnet_repro.schema import caffe_pb2
import ilgnet_repro.export.convert, ilgnet_repro.scoring
from ilgnet_repro.layers.support.registry import layer_types
ir.convert, ir.load, ir.score, layer_types()  # the clock starts after their imports
ir.tune_process()
source, target, image = sys.argv[1:4]

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
CP, CONVERT, LOAD, HASHED, SHA256 = "cp", "ilgnet convert", "load", "load, hashed", "SHA-256"
CONVERT_LIMIT = 3.0  # x cp
LOAD_LIMIT = 0.3  # s
RELEASE = "ava1-weights"
WORK = {
    CP: "import subprocess; subprocess.run(['cp', source, target + '/copy.bin'], check=True)",
    CONVERT: "ir.convert(source, out=target)",
    LOAD: "net = ir.load(source)",
    "protobuf parse": "net = caffe_pb2.NetParameter.FromString(open(source, 'rb').read())",
    "load, first score": (
        "ir.score([image], target + '/' + source.rsplit('/', 1)[1].replace('.caffemodel', '.safetensors'))"
    ),
}
HASHED_WORK = {
    HASHED: "net = ir.load(source)\nassert net.about.source.sha256",
    SHA256: "import hashlib; hashlib.file_digest(open(source, 'rb'), 'sha256').hexdigest()",
}
Best = dict[str, tuple[float, float]]


def measure(work: dict[str, str], weights: Path, folder: str, image: str, repeat: int) -> Best:
    """Return the best seconds and the most memory of each, in turn, so that other load affects all equally."""
    best: Best = {}
    for _ in range(repeat):
        for name, code in work.items():
            for left in (Path(folder, "copy.bin"), Path(folder, f"{weights.stem}.safetensors")):
                if name in (CP, CONVERT):
                    left.unlink(missing_ok=True)
            command = [sys.executable, "-c", PRELUDE.replace("{work}", code), weights, folder, image]
            seconds, memory = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            known = best.get(name, (seconds, memory))
            best[name] = min(known[0], seconds), max(known[1], memory)
    return best


def lengthen(weights: Path, size: int) -> None:
    """Pad a caffemodel to a size with a last ``name`` field, which overrides the first."""
    missing = size - weights.stat().st_size - 3
    assert 128 <= missing < 1 << 14, f"{weights} is {missing + 3} bytes short of a release's size"
    with open(weights, "ab") as file:
        file.write(bytes((0x0A, missing & 127 | 128, missing >> 7)) + b"x" * missing)


def main() -> int:
    """Measure, and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="end with 1 above the limits")
    args = parser.parse_args()
    from ilgnet_repro.aesthetics.demo_inputs import draw_images, make_random_ilgnet
    from ilgnet_repro.aesthetics.releases import find_release

    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or Path(folder, "random.caffemodel")
        if args.weights is None:
            make_random_ilgnet(weights)
        image = draw_images(folder, 1)[0]
        best = measure(WORK, weights, folder, image, args.repeat)
        if args.weights is None:
            lengthen(weights, find_release(RELEASE).size)
            best |= measure(HASHED_WORK, weights, folder, image, args.repeat)
    print(f"{weights.name}, best of {args.repeat}; memory is the largest seen")
    print(f"{'':20}{'seconds':>9}{'x cp':>8}{'anonymous MB':>15}")
    for name, (seconds, memory) in best.items():
        print(f"{name:20}{seconds:9.3f}{seconds / best[CP][0]:8.2f}{memory / 1e6:15.0f}")
    failed = []
    if best[CONVERT][0] > CONVERT_LIMIT * best[CP][0]:
        failed.append(f"convert takes over {CONVERT_LIMIT:g} x cp")
    # The file given may have a release's size, and is then hashed.
    if args.weights is None and best[LOAD][0] > LOAD_LIMIT:
        failed.append(f"load takes over {LOAD_LIMIT:g} s")
    if args.weights is None and best[HASHED][0] > LOAD_LIMIT + best[SHA256][0]:
        failed.append(f"load takes over {LOAD_LIMIT:g} s beside one hash")
    for line in failed:
        print(f"over the limit: {line}")
    return int(args.check and bool(failed))


if __name__ == "__main__":
    sys.exit(main())
