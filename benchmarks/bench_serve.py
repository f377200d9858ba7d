"""`ilgnet serve` under load: many uploads at the same time, their errors, and how far the server's memory grows.

python benchmarks/bench_serve.py                                  # SqueezeNet with seeded weights, 200 uploads
python benchmarks/bench_serve.py --weights ilgnet.caffemodel --browser --uploads 50
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.zoo import squeezenet

# Bytes over the memory before the first image: two images of 12 million pixels being decoded, the blobs of a batch of
# four, eight bodies, and what 200 connections have sent before they are read.  290 MiB were measured.
MOST_GROWTH = 384 << 20
MOST_SECONDS = 3.0  # from dropping ten images to the last score


def main() -> int:
    """Start the server, time ten images, then upload to it from many threads; print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="default: SqueezeNet with seeded weights")
    parser.add_argument("--engine", help="as `ilgnet serve --engine`")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument(
        "--browser",
        action="store_true",
        help="also drop ten images on the page in a browser without a window",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail where an upload fails, memory grows further, or ten images take longer",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights, options = args.weights, []
        if weights is None:
            weights = str(Path(folder) / "net.caffemodel")
            ir.save(ir.load_net(squeezenet.deploy(), seed=1), weights)
            options = ["--mean-value", "104,117,123"]
        if args.engine:
            options += ["--engine", args.engine]
        command = [
            sys.executable,
            "-m",
            "ilgnet_repro",
            "serve",
            "--port",
            "0",
            "--weights",
            weights,
            *options,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address, process = server.stdout.readline().strip(), psutil.Process(server.pid)
                httpx.get(f"{address}api/nets", timeout=600).raise_for_status()
                loaded = process.memory_info().rss
                print(f"{Path(weights).name}: {loaded >> 20} MiB after loading")
                seconds = in_turn(address, process)
                if args.browser:
                    seconds = max(seconds, in_browser(address, process))
                is_good = measure(address, process, args.uploads, loaded)
            finally:
                server.terminate()
    return int(args.check and not (is_good and seconds <= MOST_SECONDS))


def photo(seed: int, height: int = 3000, width: int = 4000) -> bytes:
    """A JPEG of 12 million pixels, as phones take them."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 100, width // 100, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(small, (width, height)))[1])


def images() -> list[tuple[str, bytes]]:
    """Ten of them, with their names."""
    return [(f"{number}.jpg", photo(number)) for number in range(10)]


def in_turn(address: str, server: psutil.Process) -> float:
    """Score ten images in one request; print and return its seconds."""
    files = [("files", image) for image in images()]
    httpx.post(f"{address}api/score", files=files[:1], timeout=600).raise_for_status()
    start, used = time.monotonic(), cpu(server)
    httpx.post(f"{address}api/score", files=files, timeout=600).raise_for_status()
    seconds = time.monotonic() - start
    print(f"ten images of 12 million pixels: {seconds:.2f} s, {cpu(server) - used:.2f} s of processor time")
    return seconds


def in_browser(address: str, server: psutil.Process) -> float:
    """Choose ten images in the page; print when the first and the last are scored, and return the seconds of the last."""
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    # Files on the disk, as a person has them: the driver would send bytes to the browser as text, which takes seconds.
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        files = [Path(folder, name) for name, _ in images()]
        for file, (_, data) in zip(files, images(), strict=True):
            file.write_bytes(data)
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("body")).to_have_attribute("data-ready", "yes", timeout=60_000)
        start, used = time.monotonic(), cpu(server)
        page.get_by_label("Choose images").set_input_files(files)
        expect(page.locator("#rows .number").first).not_to_be_empty(timeout=600_000)
        first = time.monotonic() - start
        expect(page.get_by_role("status").first).to_have_text("10 of 10 images scored.", timeout=600_000)
        seconds = time.monotonic() - start
        browser.close()
    print(f"in the page: the first score after {first:.2f} s, the last of ten after {seconds:.2f} s, "
          f"{cpu(server) - used:.2f} s of the server's processor time")  # fmt: skip
    return seconds


def cpu(server: psutil.Process) -> float:
    """The processor time that the server has used, in seconds."""
    times = server.cpu_times()
    return times.user + times.system


def measure(address: str, server: psutil.Process, uploads: int, loaded: int) -> bool:
    """Print the errors of uploads at the same time and the largest growth of memory; return whether both are as stated.

    ``loaded`` is the memory before the first image.
    """
    files = [("files", image) for image in images()]
    before = most = server.memory_info().rss
    is_done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_done.wait(0.02):
            most = max(most, server.memory_info().rss)

    def upload(number: int) -> str:
        try:
            answer = httpx.post(f"{address}api/score", files=[files[number % len(files)]], timeout=600)
            return "" if answer.status_code == 200 and "score" in answer.json()[0] else answer.text
        except httpx.HTTPError as error:
            return repr(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    with ThreadPoolExecutor(uploads) as pool:
        errors = [error for error in pool.map(upload, range(uploads)) if error]
    seconds = time.monotonic() - start
    is_done.set()
    watcher.join()
    growth = most - loaded
    print(f"{uploads} uploads at the same time: {len(errors)} errors, {uploads / seconds:.1f} per second")
    print(
        f"memory: {before >> 20} MiB before them, at most {most >> 20}: {growth >> 20} MiB more than after loading"
    )
    for error in errors[:3]:
        print(error, file=sys.stderr)
    return not errors and growth <= MOST_GROWTH


if __name__ == "__main__":
    sys.exit(main())
