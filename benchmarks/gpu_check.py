#!/usr/bin/env python3
"""All that this project checks on a GPU, in one command: its tests there, then the speed of the zoo.

    python benchmarks/gpu_check.py [--out FOLDER] [--workers 8] [--until 200] [-- OPTIONS OF bench_zoo.py]

The tests are those that other machines skip: every recorded layer forward, backward and through `fast`, the recorded
solvers, fast nets.  What each step prints is also in FOLDER (tests.log, speed.log, speed.json); the exit status is 1
where one failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/engines/test_cuda.py", "tests/layers/test_golden_cuda.py", "tests/train/test_solvers_cuda.py")


def run(command: list[str], log: Path, limit: float) -> bool:
    """Run a command, show what it prints and keep it in a file; stop it after ``limit`` seconds."""
    print(f"$ {' '.join(command)}", flush=True)
    start = time.perf_counter()
    # As a file, which holds what a stopped command has printed.
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            done = -1
    text = log.read_text(errors="replace")
    print(text[-6000:])
    result = "stopped" if done == -1 else f"exit status {done}"
    print(f"{result} after {time.perf_counter() - start:.0f} s; all of it is in {log}", flush=True)
    return done == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_check", help="folder (default gpu_check)")
    parser.add_argument("--workers", type=int, default=8, help="processes of the tests (default 8)")
    parser.add_argument("--until", type=float, default=200, help="seconds for the tests, and for the speed")
    parser.add_argument("--only", choices=("tests", "speed"), help="one of the two steps")
    parser.add_argument("options", nargs="*", help="of bench_zoo.py, after --")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    passed = True
    if args.only != "speed":
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            str(args.workers),
            "--durations=8",
            "-p",
            "no:cacheprovider",
        ]
        passed = run([*command, "--tb=short", *TESTS], args.out / "tests.log", args.until)
    if args.only != "tests":
        command = [sys.executable, "benchmarks/bench_zoo.py", "--device", "cuda", "--until", str(args.until)]
        command += ["--json", str(args.out / "speed.json"), *args.options]
        passed = run(command, args.out / "speed.log", args.until + 60) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
