"""kill -9 (and SIGTERM, SIGINT) at random moments: outputs must be whole or absent, and resumed runs equal.

    python attack_kill.py --ilgnet ilgnet --rounds 20 --seed 1 --work FOLDER [--only convert,lmdb,...] [--small]

``python`` must be one that has ilgnet_repro (for the fixtures).  Jobs: convert (five formats), lmdb make, lmdb
export, mean, sheet, partition, test --resume, score --cache, train --resume latest, caffe train -snapshot; two processes at
once.  A defect is: a final file that is neither absent nor the reference's bytes, a resumed run that differs,
a rerun that fails, a traceback.  Hidden left-overs are counted; with --leftovers-fail they count as defects.
Exit status 0 only without a defect; the last line is the figure.
"""

# Long lines are tables of hostile inputs; each closure runs in the pass of the loop that made it.
# ruff: noqa: E501, PLW1510

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
DEFECTS: list[str] = []
COUNT = {"kills": 0, "midway": 0, "leftovers": 0, "jobs": 0}


def defect(text: str) -> None:
    DEFECTS.append(text)
    print("DEFECT", text, flush=True)


def fixtures(root: Path, *, is_small: bool = False) -> None:
    """Write the inputs; small ones for a few kills in seconds."""
    from ilgnet_repro.schema import caffe_pb2 as pb

    def net(path: Path, fc: int) -> None:
        text = (
            f'name: "k" layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 dim: 20 dim: 20 }} }} }}'
            'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 16 kernel_size: 5 } }'
            'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }'
            f'layer {{ name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param {{ num_output: {fc} }} }}'
            'layer { name: "g" type: "InnerProduct" bottom: "f" top: "g" inner_product_param { num_output: 2 } }'
            'layer { name: "p" type: "Softmax" bottom: "g" top: "p" }'
        )
        path.with_suffix(".prototxt").write_text(text)
        rng = np.random.default_rng(0)
        message = pb.NetParameter(name="k")
        shapes = {"c": [(16, 3, 5, 5), (16,)], "f": [(fc, 16 * 16 * 16), (fc,)], "g": [(2, fc), (2,)]}
        for name, of in shapes.items():
            layer = message.layer.add(name=name, type="Convolution" if name == "c" else "InnerProduct")
            for shape in of:
                blob = layer.blobs.add()
                blob.shape.dim.extend(shape)
                blob.data.extend(rng.normal(0, 0.05, shape).astype(np.float32).ravel().tolist())
        path.write_bytes(message.SerializeToString())

    net(root / "big.caffemodel", 60 if is_small else 6000)  # 98 MB
    net(root / "small.caffemodel", 8)
    rng = np.random.default_rng(1)
    (root / "pics").mkdir()
    rows = []
    for i in range(90 if is_small else 1500):
        data = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        (root / f"pics/{i:04d}.png").write_bytes(
            b"broken" if i % 97 == 5 else cv2.imencode(".png", data)[1].tobytes()
        )
        rows.append(f"{i:04d}.png {i % 2}")
    (root / "list.txt").write_text("\n".join(rows) + "\n")
    ava = [
        " ".join(map(str, [i + 1, i + 1, *rng.integers(1, 60, 10).tolist(), 0, 0, 1]))
        for i in range(600 if is_small else 60000)
    ]
    (root / "AVA.txt").write_text("\n".join(ava) + "\n")
    (root / "train.prototxt").write_text(
        'name: "t" layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "traindb" backend: LMDB batch_size: 16 } transform_param { scale: 0.01 crop_size: 40 mirror: true } }'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 16 kernel_size: 5 weight_filler { type: "xavier" } } }'
        'layer { name: "dr" type: "Dropout" bottom: "c" top: "c" }'
        'layer { name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }'
        'layer { name: "l" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "l" }'
    )
    (root / "solver.prototxt").write_text(
        'net: "train.prototxt" base_lr: 0.001 lr_policy: "step" stepsize: 20 gamma: 0.5 momentum: 0.9 '
        'weight_decay: 0.001 max_iter: 120 snapshot: 5 snapshot_prefix: "snap/s" random_seed: 3 display: 10 type: "Adam" momentum2: 0.99'
    )
    (root / "good.txt").write_text("\n".join(row for i, row in enumerate(rows) if i % 97 != 5) + "\n")


def start(command: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(command: list[str], cwd: Path, what: str) -> bool:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode or "Traceback" in done.stderr:
        defect(
            f"{what}: a run to the end gives status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
        )
        return False
    return True


def kill(command: list[str], cwd: Path, after: float, number: int = signal.SIGKILL) -> bool:
    """Whether it was still at work when the signal came."""
    process = start(command, cwd)
    try:
        process.wait(after)
        midway = False
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        midway = True
    try:
        _, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        defect(f"{command[1]}: still alive 30 s after signal {number}")
        return midway
    text = err.decode(errors="replace")
    if "Traceback" in text:
        defect(
            f"{' '.join(command[1:3])}: a traceback after signal {number} at {after:.2f} s: {text.strip().splitlines()[-1]}"
        )
    COUNT["kills"] += 1
    COUNT["midway"] += midway
    return midway


def snapshot(folder: Path, ignore: tuple[str, ...] = ()) -> dict[str, bytes]:
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ignore
    }


def hidden(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.name.startswith(".")]


class Job:
    """A command, where its results lie, and how it is taken up again."""

    def __init__(self, name, command, results, again=None, partial=(), clean=None):
        self.name, self.command, self.results = name, command, results
        self.again, self.partial, self.clean = again or command, partial, clean


def jobs(il: str, root: Path) -> list[Job]:
    def out(name: str) -> Path:
        return root / "out" / name

    test = [il, "test", "own", "--weights", "small.caffemodel", "--list", "list.txt", "--pictures", "pics", "--mean-value", "100",
            "--resize", "30", "--batch-size", "20", "--protocol", "tencrop", "--out", str(out("test"))]  # fmt: skip
    score = [il, "score", "--list", "good.txt", "--root", "pics", "--weights", "small.caffemodel", "--mean-value", "100",
             "--csv", "--out", str(out("scores.csv")), "--cache", str(out("scores.db"))]  # fmt: skip
    return [
        *(
            Job(
                f"convert {fmt}",
                [il, "convert", "big.caffemodel", "--to", fmt, "--out", str(out("."))],
                [out(f) for f in files],
            )
            for fmt, files in (
                ("safetensors", ["big.safetensors"]),
                ("onnx", ["big.onnx"]),
                ("caffemodel", ["big.caffemodel"]),
                ("python", ["big.py", "big.weights.safetensors"]),
                ("pt2", ["big.pt2"]),
            )
        ),
        Job(
            "lmdb",
            [
                il,
                "lmdb",
                "make",
                "--resize_height=64",
                "--resize_width=64",
                "pics/",
                "list.txt",
                str(out("db")),
            ],
            [out("db")],
            partial=("db.partial",),
        ),
        Job(
            "lmdb encoded",
            [il, "lmdb", "make", "--encoded", "--shuffle", "pics/", "list.txt", str(out("dbe"))],
            [out("dbe")],
            partial=("dbe.partial",),
        ),
        Job(
            "export",
            [il, "lmdb", "export", "traindb", str(out("exp"))],
            [out("exp")],
            partial=("exp.partial",),
        ),
        Job("mean", [il, "mean", "traindb", str(out("mean.binaryproto"))], [out("mean.binaryproto")]),
        Job("sheet", [il, "sheet", "traindb", "--out", str(out("s.html"))], [out("s.html")]),
        Job(
            "partition",
            [
                il,
                "partition",
                "ava1",
                "AVA.txt",
                "--out",
                str(out("lists")),
                "--seed",
                "1",
                "--val-sizes",
                "1000",
                "1000",
                "--force",
            ],
            [out("lists")],
        ),
        Job("test", test, [out("test")], again=[*test, "--resume"], partial=("journal.csv",)),
        Job("score", score, [out("scores.csv")]),
        Job(
            "train",
            [il, "train", "--solver", "solver.prototxt"],
            [root / "snap"],
            again=[il, "train", "--solver", "solver.prototxt", "--resume", "latest"],
        ),
        Job("caffe", [il, "caffe", "train", "-solver", "solver.prototxt"], [root / "snap"]),
    ]


def reset(root: Path) -> None:
    for name in ("out", "snap", "solver_log", "snap_log"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "out").mkdir()
    (root / "snap").mkdir()


def same_results(job: Job, reference: list[dict[str, bytes]], whole: bool) -> str | None:
    for path, wanted in zip(job.results, reference, strict=True):
        if not path.exists():
            if whole:
                return f"{path.name} is missing"
            continue
        for name, data in snapshot(path).items():
            if (
                name.startswith(".")
                or "/." in name
                or (
                    name.endswith((".csv", ".svg", ".png", ".json", ".jsonl"))
                    and job.name in ("train", "caffe")
                )
            ):
                continue
            if name == "run.json":
                if {**json.loads(data), "elapsed": 0, "command": ""} != {
                    **json.loads(wanted[name]),
                    "elapsed": 0,
                    "command": "",
                }:
                    return f"{path.name}/{name} differs"
            elif name in job.partial or (name == "journal.csv" and not whole):
                continue
            elif name not in wanted:
                return f"{path.name}/{name} is no file of the whole run"
            elif data != wanted[name]:
                return f"{path.name}/{name} differs ({len(data)} bytes, {len(wanted[name])} in the whole run)"
        if whole and path.is_dir():
            lacking = [n for n in wanted if not (path / n).exists() and not n.startswith(".")]
            if lacking:
                return f"{path.name}/{lacking[0]} is missing"
    return None


def newest_state(root: Path) -> str | None:
    whole = [p for p in (root / "snap").glob("*.solverstate") if p.stem.rpartition("_")[2].isdigit()]
    states = sorted(whole, key=lambda p: int(p.stem.rpartition("_")[2]))
    return str(states[-1].relative_to(root)) if states else None


def attack(job: Job, root: Path, rounds: int, rng: random.Random) -> None:
    COUNT["jobs"] += 1
    reset(root)
    began = time.monotonic()
    if not finish(job.command, root, job.name):
        return
    seconds = time.monotonic() - began
    reference = [snapshot(path) for path in job.results]
    reset(root)
    if not finish(job.command, root, job.name):
        return
    wrong = same_results(job, reference, whole=True)
    if wrong:
        defect(f"{job.name}: two whole runs differ: {wrong}")
        if "differs" in wrong and job.name.startswith("convert"):
            return
    reset(root)
    if job.name.startswith(("lmdb", "test", "score", "train", "caffe")):
        chains(job, root, rounds, rng, reference, seconds)
        return
    midway = 0
    for number in range(rounds):
        midway += kill(job.command, root, rng.uniform(0.15, 1.0) * seconds)
        for path in job.results if job.name != "partition" else []:
            if path.exists() and (wrong := same_results(job, reference, whole=False)):
                defect(f"{job.name}: after kill {number}: {wrong}")
        if job.name == "export":
            COUNT["leftovers"] += count_left(root)
            reset(root)
    if finish(job.command, root, f"{job.name}, after {rounds} kills") and (
        wrong := same_results(job, reference, whole=True)
    ):
        defect(f"{job.name}: after {midway} kills and a run to the end: {wrong}")
    left = count_left(root)
    COUNT["leftovers"] += left
    print(
        f"{job.name}: {seconds:.1f} s whole, {midway} of {rounds} kills midway, {left} left over", flush=True
    )


def chains(
    job: Job, root: Path, rounds: int, rng: random.Random, reference: list[dict[str, bytes]], seconds: float
) -> None:
    """Each round: one to three kills, each taking up what was left, then a run to the end, then a comparison."""
    midway = equal = 0
    for number in range(rounds):
        reset(root)
        kills = 0
        for _ in range(rng.choice((1, 1, 2, 3))):
            command = job.command if not kills else again(job, root)
            if not kill(command, root, rng.uniform(0.3, 0.95) * seconds):
                break
            kills += 1
        midway += kills
        if not (job.name.startswith("lmdb") and job.results[0].exists()) and not finish(
            again(job, root), root, f"{job.name}, after {kills} kills"
        ):
            continue
        wrong = same_results(job, reference, whole=True)
        equal += wrong is None
        if wrong and job.name.startswith("lmdb") and same_rows(job.results[0], reference[0]["data.mdb"]):
            COUNT["other bytes"] = COUNT.get("other bytes", 0) + 1  # the same rows, in a file that differs
        elif wrong:
            defect(f"{job.name}: round {number}, {kills} kills and a run to the end: {wrong}")
    print(
        f"{job.name}: {seconds:.1f} s whole, {midway} kills midway in {rounds} runs, {equal} ended with the same bytes",
        flush=True,
    )


def again(job: Job, root: Path) -> list[str]:
    state = newest_state(root)
    if job.name == "caffe":
        return [*job.command, "-snapshot", state] if state else job.command
    return job.again


def same_rows(folder: Path, reference: bytes) -> bool:
    import lmdb

    with tempfile.TemporaryDirectory() as other:
        Path(other, "data.mdb").write_bytes(reference)
        rows = []
        for path in (folder, other):
            handle = lmdb.open(os.fspath(path), readonly=True, lock=False)
            with handle.begin() as transaction:
                rows.append(list(transaction.cursor()))
            handle.close()
    return rows[0] == rows[1]


def count_left(root: Path) -> int:
    found = [p for p in root.rglob("*") if p.name.startswith(".") and p.name != ".gitignore"]
    return len(
        [p for p in found if not any(q.name.startswith(".") for q in p.relative_to(root).parents if q.name)]
    )


def signals(il: str, root: Path, rng: random.Random, rounds: int) -> None:
    """SIGINT gives 130 and one line, SIGTERM leaves nothing hidden."""
    for name, command in (
        ("convert", [il, "convert", "big.caffemodel", "--to", "safetensors,onnx", "--out", "out"]),
        ("lmdb", [il, "lmdb", "make", "pics/", "list.txt", "out/db"]),
        (
            "partition",
            [
                il,
                "partition",
                "ava1",
                "AVA.txt",
                "--out",
                "out/lists",
                "--seed",
                "1",
                "--val-sizes",
                "10",
                "10",
            ],
        ),
    ):
        for number in (signal.SIGINT, signal.SIGTERM):
            for _ in range(rounds):
                reset(root)
                process = start(command, root)
                time.sleep(rng.uniform(0.05, 2.5))
                process.send_signal(number)
                try:
                    _, err = process.communicate(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    defect(f"{name}: alive 30 s after signal {number}")
                    continue
                text, status = err.decode(errors="replace"), process.returncode
                COUNT["kills"] += 1
                if "Traceback" in text:
                    defect(f"{name}: traceback after signal {number}: {text.strip().splitlines()[-1]}")
                if number == signal.SIGINT and status not in (0, 130, -signal.SIGINT):
                    defect(f"{name}: status {status} after SIGINT")
                left = list((root / "out").rglob(".*"))
                if left:
                    defect(f"{name}: signal {number} leaves {left[0].name}")


def two_at_once(il: str, root: Path) -> None:
    """Two processes, one output: each ends by itself, and what is there is whole."""
    for name, command, result in (
        (
            "convert",
            [il, "convert", "big.caffemodel", "--to", "safetensors,onnx", "--out", "out"],
            "big.onnx",
        ),
        ("lmdb", [il, "lmdb", "make", "pics/", "list.txt", "out/db"], "db"),
        ("export", [il, "lmdb", "export", "traindb", "out/exp"], "exp"),
        (
            "test",
            [
                il,
                "test",
                "own",
                "--weights",
                "small.caffemodel",
                "--list",
                "list.txt",
                "--pictures",
                "pics",
                "--mean-value",
                "1",
                "--resize",
                "30",
                "--batch-size",
                "20",
                "--protocol",
                "full",
                "--out",
                "out/test",
            ],
            "test",
        ),
    ):
        reset(root)
        if not finish(command, root, name):
            continue
        reference = snapshot(root / "out" / result, ("run.json",))
        reset(root)
        pair = [start(command, root) for _ in range(2)]
        ends = [(p.communicate()[1].decode(errors="replace"), p.returncode) for p in pair]
        COUNT["jobs"] += 1
        for text, status in ends:
            if "Traceback" in text or status not in (0, 1):
                defect(f"two at once, {name}: status {status}: {text.strip().splitlines()[-1:]}")
        if all(status for _, status in ends):
            defect(
                f"two at once, {name}: both failed: {ends[0][0].strip()[-150:]} / {ends[1][0].strip()[-150:]}"
            )
        elif snapshot(root / "out" / result, ("run.json", "journal.csv")) != reference:
            defect(f"two at once, {name}: what is there is not the reference")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ilgnet", default=os.environ.get("ILGNET", shutil.which("ilgnet") or "ilgnet"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", help="a folder for the work (default: a temporary one)")
    parser.add_argument("--only", default="", help="names of jobs, commas between; also: signals, two")
    parser.add_argument("--small", action="store_true", help="small inputs, for a few kills in seconds")
    parser.add_argument("--leftovers-fail", action="store_true")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="kill_", dir=args.work))
    rng = random.Random(args.seed)
    only = [name for name in args.only.split(",") if name]
    try:
        fixtures(root, is_small=args.small)
        reset(root)
        finish([args.ilgnet, "lmdb", "make", "pics/", "list.txt", "traindb"], root, "fixture")
        for job in jobs(args.ilgnet, root):
            if not only or any(job.name.startswith(name) for name in only):
                attack(job, root, args.rounds, rng)
        if not only or "signals" in only:
            signals(args.ilgnet, root, rng, max(2, args.rounds // 4))
        if not only or "two" in only:
            two_at_once(args.ilgnet, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    bad = bool(DEFECTS) or (args.leftovers_fail and COUNT["leftovers"] > 0)
    print(
        f"{COUNT['jobs']} jobs, {COUNT['kills']} signals ({COUNT['midway']} kills midway), {COUNT['leftovers']} hidden left-overs, {COUNT.get('other bytes', 0)} databases of the same rows in other bytes, {len(DEFECTS)} defects"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
