#!/usr/bin/env python3
"""Making an encoded 256x256 LMDB from JPEGs, against a bare cv2.imread + resize + imencode loop.

Prints images per second and two ratios: builder on one core over the bare loop (wanted: 0.9 or more), and
all cores over one core, beside what the bare loop itself gains from as many threads (the machine's ceiling).
Rounds alternate, and the best of each counts, so that a busy machine disturbs all alike.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilgnet_repro.reading.lmdb_build import BuildOptions, build_lmdb
from ilgnet_repro.reading.parallel import cores

IMAGES, ROUNDS, SIDE = 300, 3, 256
OPTIONS = BuildOptions(resize_height=SIDE, resize_width=SIDE, encoded=True, encode_type="jpg")


def make_images(folder: Path) -> list[str]:
    """JPEGs of 640x480 with the detail of a photograph: noise at several scales."""
    rng = np.random.default_rng(0)
    names = [f"{number:04d}.jpg" for number in range(IMAGES)]
    for name in names:
        layers = [cv2.resize(rng.normal(0, 30, (side, side, 3)), (640, 480)) for side in (4, 16, 64, 256)]
        cv2.imwrite(str(folder / name), np.clip(sum(layers) + 128, 0, 255).astype(np.uint8))
    return names


def bare(path: str) -> int:
    return len(cv2.imencode(".jpg", cv2.resize(cv2.imread(path), (SIDE, SIDE)))[1])


def rates(work: Callable[[], object]) -> tuple[float, float]:
    """Images per second of wall time, and per second of processor time, which other programs do not affect."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return IMAGES / (time.perf_counter() - clock), IMAGES / (time.process_time() - processor)


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(cores()) as pool:
        folder = Path(temporary)
        names = make_images(folder)
        paths = [str(folder / name) for name in names]
        listed = folder / "list.txt"
        listed.write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(names)))
        names = ["bare loop", "bare loop, all cores", "builder", "builder, all cores"]
        best = dict.fromkeys(names, (0.0, 0.0))
        for turn in range(ROUNDS):
            works: tuple[Callable[[], object], ...] = (
                lambda: [bare(path) for path in paths],
                lambda: list(pool.map(bare, paths)),
                lambda turn=turn: build_lmdb(folder, listed, folder / f"one{turn}", OPTIONS, workers=1),
                lambda turn=turn: build_lmdb(folder, listed, folder / f"all{turn}", OPTIONS),
            )
            for name, work in zip(best, works, strict=True):
                clock, processor = rates(work)
                best[name] = max(best[name][0], clock), max(best[name][1], processor)
    for name, (clock, processor) in best.items():
        print(f"{name:22} {clock:8.0f} images/s, {processor:8.0f} per second of processor time")
    bare_loop, bare_all, builder, all_cores = best.values()
    one = [own / other for own, other in zip(builder, bare_loop, strict=True)]
    threads, ceiling = all_cores[0] / builder[0], bare_all[0] / bare_loop[0]
    print(f"builder / bare loop, one core: {one[0]:.2f}, of processor time {one[1]:.2f} (wanted: 0.90)")
    print(f"{cores()} cores / one core: {threads:.2f} (bare loop: {ceiling:.2f})")


if __name__ == "__main__":
    main()
