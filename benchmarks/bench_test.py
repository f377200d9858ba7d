"""Images per second of `ilgnet test` (protocol full, batch 48) beside the bare forward pass and OpenCV 4's.

    python benchmarks/bench_test.py ilgnet.caffemodel [--pictures 192] [--encoded] [--rounds 3] [--fast float16]

All are measured alternately, in one process, on the same machine; OpenCV only runs the net, on images that are
ready. Three figures compare the test with only the forward pass of its net: the ratio of their best
rounds; that of their processor times, which other programs on the machine disturb less; and the share of the
test's time that was spent inside the net.  Caffe 1.0 runs ILGNet at 31 images per second and OpenCV at
36 at batch 16, so 1.3 times Caffe is 1.12 times OpenCV.
"""

from __future__ import annotations

import argparse
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
from ilgnet_repro.aesthetics.journal import Journal
from ilgnet_repro.aesthetics.labelled_images import StoredImages
from ilgnet_repro.aesthetics.protocol_run import run_protocol, scorer
from ilgnet_repro.aesthetics.protocols import PROTOCOLS, RESIZE, Mean, Preparation
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.reading.datum import encoded_datum, raw_datum
from ilgnet_repro.reading.images import encode_image
from ilgnet_repro.reading.lmdb_read import row_key
from ilgnet_repro.reading.lmdb_write import LmdbWriter
from ilgnet_repro.runtime.load import load

BATCH = 48


def store(folder: Path, count: int, encoded: bool) -> None:
    """Write ``count`` smooth images as the authors' databases have them, raw, or as JPEG files."""
    random = np.random.default_rng(1)
    writer = LmdbWriter(folder)
    for index in range(count):
        coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (RESIZE, RESIZE), interpolation=cv2.INTER_CUBIC)
        label = int(random.integers(2))
        row = (
            encoded_datum(encode_image(image, "jpg"), label)
            if encoded
            else raw_datum(image.transpose(2, 0, 1), label)
        )
        writer.write([(row_key(index, f"{index}.jpg"), row)])
    writer.close()


def main() -> None:
    tune_process()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("weights")
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--encoded", action="store_true", help="JPEG files in the database, not pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fast", choices=precisions.WEIGHTS, help="test the net's fast form")
    args = parser.parse_args()

    net = load(args.weights)
    score = scorer(fast_net(net, args.fast) if args.fast else net)
    side = net.shapes[net.inputs[0]][2]
    mean = np.full((3, RESIZE, RESIZE), 100, np.float32)
    noise = np.random.default_rng(2).uniform(-100, 100, (BATCH, 3, side, side))
    batch = torch.from_numpy(noise.astype(np.float32))
    rounds: list[tuple[float, ...]] = []
    inside = 0.0

    def timed(images: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        started = time.perf_counter()
        result = score(images)
        inside += time.perf_counter() - started
        return result

    with tempfile.TemporaryDirectory() as temporary:
        store(Path(temporary, "lmdb"), args.pictures, args.encoded)
        deploy = Path(temporary, "deploy.prototxt")
        deploy.write_text(format_message(ilgnet.deploy()))
        peer = cv2.dnn.readNetFromCaffe(str(deploy), args.weights)
        cv2.setNumThreads(torch.get_num_threads())
        images = StoredImages(Path(temporary, "lmdb"))
        preparation = Preparation(PROTOCOLS["full"], side, Mean(mean))
        score(batch)
        passes = -(-args.pictures // BATCH)
        for number in range(args.rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(passes):
                score(batch)
            forward, forward_cpu = time.perf_counter() - wall, time.process_time() - cpu
            wall = time.perf_counter()
            for _ in range(passes):
                peer.setInput(batch.numpy())
                peer.forward()
            opencv = (time.perf_counter() - wall) / (passes * BATCH)
            inside, wall, cpu = 0.0, time.perf_counter(), time.process_time()
            with Journal(Path(temporary, f"journal{number}"), "bench") as journal:
                run_protocol(timed, images, preparation, BATCH, journal=journal)
            test, test_cpu = time.perf_counter() - wall, time.process_time() - cpu
            # A last batch that is not full costs less: both are counted by the image.
            per = (passes * BATCH, passes * BATCH, args.pictures, args.pictures)
            seconds = [s / n for s, n in zip((forward, forward_cpu, test, test_cpu), per, strict=True)]
            rounds.append((*seconds, opencv, inside / test))
            speeds = (
                f"forward {1 / seconds[0]:.1f} images/s, OpenCV {1 / opencv:.1f}, test {1 / seconds[2]:.1f}"
            )
            print(f"round {number + 1}: {speeds}", flush=True)
    forward, forward_cpu, test, test_cpu, opencv = (min(row[k] for row in rounds) for k in range(5))
    print(f"best: forward {1 / forward:.1f}, test {1 / test:.1f} images/s: ratio {forward / test:.3f}")
    print(f"OpenCV {1 / opencv:.1f} images/s: the test makes {opencv / test:.2f} times as many")
    times = f"forward {forward_cpu:.4f} s, test {test_cpu:.4f} s"
    print(f"processor time per image: {times}: ratio {forward_cpu / test_cpu:.3f}")
    print(f"share of the test's time inside the net: {max(row[5] for row in rounds):.3f}")


if __name__ == "__main__":
    main()
