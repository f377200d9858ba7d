"""Every command under bad conditions: limits on files, broken streams, wrong kinds of input, options out of range.

    python attack_ends.py [--seed 1] [--only chains,kills,limits,streams,inputs,options] [--every 1] [--light]

Each case is a command in a forked child of its own in a folder of its own.  A defect is: a status other than 0 or 1, a
traceback, a signal, over ten seconds, an error of more or less than one line, an output that is neither absent nor
that of the whole run, a hidden file left over.  ``--every N`` runs each N-th case, from a seeded start.
Exit status 0 only without a defect; the last line is the figure.
"""

# Long lines are tables of hostile inputs.
# ruff: noqa: E501, SIM115, E402

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import importlib
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
import cv2
import numpy as np
import torch
from children import SECONDS, hangs, place_in, resident

from ilgnet_repro.cli import main as cli
from ilgnet_repro.schema import caffe_pb2 as pb

torch.set_num_threads(1)
MEMORY = 1 << 30
PIPE = 1 << 20

NET = """name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
TRAIN = """name: "t"
layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "db" backend: LMDB batch_size: 2 } transform_param { scale: 0.01 } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 3 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "c" top: "c" }
layer { name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
"""
SOLVER = """net: "train.prototxt" base_lr: 0.001 lr_policy: "fixed" momentum: 0.9 max_iter: 4 snapshot: 2 display: 1
snapshot_prefix: "out/s" random_seed: 3
"""

LOG = """I0101 00:00:00.000000 1 net.cpp:58] Initializing net from parameters:
layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "db" batch_size: 2 } }
I0101 00:00:00.000000 1 layer_factory.hpp:77] Creating layer d
I0101 00:00:00.000000 1 caffe.cpp:313] Batch 0, accuracy = 0.5
I0101 00:00:00.000000 1 caffe.cpp:313] Batch 1, accuracy = 1
"""
CHAIN = SOLVER.replace(
    "max_iter: 4 snapshot: 2", "max_iter: 30 snapshot: 4"
)  # within a pass of the three rows

IMAGES = ["--pictures", "images", "--list", "list.txt"]
FEATURES = ["--model", "gsfl", "--data", "features", "--folder", "features"]
MODEL = [
    "train",
    *FEATURES,
    "--epochs",
    "2",
    "--batch-size",
    "6",
    "--option",
    "groups=2",
    "--option",
    "hidden=4",
]
OWN = ["test", "own", "--weights", "net.caffemodel", *IMAGES, "--mean-value", "100", "--resize", "20", "--batch-size", "2"]  # fmt: skip

# Every command, small.  Results go below out/, which is empty before.
COMMANDS: dict[str, list[str]] = {
    **{
        f"convert {form}": ["convert", "net.caffemodel", "--to", form, "--out", "out"]
        for form in ("safetensors", "onnx", "pt2", "python", "caffemodel", "hdf5")
    },
    "convert many": ["convert", "net.caffemodel", "more", "--to", "safetensors,python", "--out", "out", "--json"],
    "compare": ["compare", "net.caffemodel", "net.safetensors", "--inputs", "data.npz"],
    "audit": ["audit", "net.prototxt", "net.caffemodel"],
    "audit folder": ["audit", "more", "--csv"],
    "audit candidates": ["audit", "net.caffemodel", "--candidates", "net.prototxt"],
    "score": ["score", "images/1.png", "--weights", "net.caffemodel", "--mean-file", "mean.binaryproto", "--labels", "labels.txt"],
    "partition ava1": ["partition", "ava1", "AVA.txt", "--out", "out", "--seed", "1", "--val-sizes", "3", "3", "--scores", "out/scores.csv", "--exclude", "exclude.txt"],
    "partition ava2": ["partition", "ava2", "AVA.txt", "--out", "out", "--seed", "1"],
    "partition check": ["partition", "check", "list.txt", "--pictures", "images", "--bad", "out/bad.txt"],
    "data where": ["data", "where"],
    "data verify": ["data", "verify", "--dest", "out"],
    "data get": ["data", "get", "deploy", "--from", "images", "--dest", "out"],
    "lmdb make": ["lmdb", "make", "images/", "list.txt", "out/db"],
    "lmdb info": ["lmdb", "info", "db"],
    "lmdb check": ["lmdb", "check", "db", "--list", "list.txt"],
    "lmdb export": ["lmdb", "export", "db", "out/exported"],
    "mean": ["mean", "db", "out/mean.binaryproto"],
    "mean npy": ["mean", "mean.binaryproto", "out/mean.npy"],
    "sheet": ["sheet", "db", "--out", "out/s.html", "--out", "out/s.png"],
    "sheet list": ["sheet", "list.txt", "--root", "images/", "--out", "out/s.html"],
    "test": [*OWN, "--out", "out/t", "--scores", "scores.csv"],
    "test lmdb": ["test", "own", "--weights", "net.safetensors", "--lmdb", "db", "--mean", "mean.npy", "--resize", "20", "--protocol", "tencrop", "--out", "out/t", "--table", "parquet"],
    "test check": [*OWN, "--check"],
    "report": ["report", "t/run.json", "--log", "caffe.log", "--out", "out/r.html"],
    "train": ["train", "--solver", "solver.prototxt", "--weights", "start.caffemodel"],
    "train resume": ["train", "--solver", "other.prototxt", "--resume", "snap/s_iter_2.solverstate", "--out", "out/log"],
    "synthetic": ["synthetic", "out/made"],
    "caffe train": ["caffe", "train", "-solver", "solver.prototxt"],
    "caffe test": ["caffe", "test", "-model", "train.prototxt", "-weights", "start.caffemodel", "-iterations", "2"],
    "caffe test arrays": ["caffe", "test", "-model", "net.prototxt", "-weights", "net.caffemodel", "-iterations", "2", "-arrays", "data.npz"],
    "caffe convert_imageset": ["caffe", "convert_imageset", "-resize_height=20", "-resize_width=20", "images/", "list.txt", "out/db"],
    "caffe compute_image_mean": ["caffe", "compute_image_mean", "db", "out/mean.binaryproto"],
    "score cache": ["score", "images", "--weights", "net.caffemodel", "--mean-value", "9", "--cache", "out/kept.db", "--out", "out/s.csv"],
    "view": ["view", "net.caffemodel", "--svg", "out/net.svg"],
    "features": ["features", "db", "--weights", "net.caffemodel", "--mean-value", "9", "--blob", "fc", "--out", "out/f.npz"],
    "features lmdb": ["features", "good.txt", "--root", "images/", "--weights", "net.caffemodel", "--mean-value", "9", "--blob", "fc", "--out", "out/f"],
    "finetune": ["finetune", "classes", "--out", "out/tuned", "--size", "16", "--batch", "2", "--epochs", "1", "--prepare"],
    "train model": [*MODEL, "--out", "out/run"],
    "test model": ["test", *FEATURES, "--weights", "run/gsfl.safetensors", "--out", "out/figures"],
    "lmdb labels": ["lmdb", "labels", "db", "values.txt", "out/labels"],
    "lmdb from-leveldb": ["lmdb", "from-leveldb", "leveldb", "out/copied"],
    "caffe draw_net": ["caffe", "draw_net", "net.prototxt", "out/net.svg"],
    "caffe extract_features": ["caffe", "extract_features", "start.caffemodel", "train.prototxt", "f", "out/feat", "1", "lmdb"],
    "caffe run": ["caffe", "run", "script.py"],
    "caffe device_query": ["caffe", "device_query"],
    "caffe upgrade_net_proto_text": ["caffe", "upgrade_net_proto_text", "net.prototxt", "out/up.prototxt"],
    "caffe upgrade_net_proto_binary": ["caffe", "upgrade_net_proto_binary", "net.caffemodel", "out/up.caffemodel"],
    "caffe upgrade_solver_proto_text": ["caffe", "upgrade_solver_proto_text", "solver.prototxt", "out/up.prototxt"],
    "caffe time": ["caffe", "time", "-model", "net.prototxt", "-iterations", "2"],
}  # fmt: skip
# What a run that stops may leave, for the next one to resume.
RESUMED = (
    "db.partial",
    "journal.csv",
    "s_log",
    "log",
    "run",
    "tuned",
    "kept.db",
    "kept.db-wal",
    "kept.db-shm",
    "kept.db-journal",
)
# demo runs a full-size net through the other commands, for minutes; serve ends only when it is stopped.
WITHOUT_ROW = (("demo",), ("serve",))


@dataclass
class End:
    """How a command ended."""

    status: int
    out: str
    err: str
    hung: bool
    memory: int


def preload() -> None:
    """Import what the commands import, once for all children."""
    for module in set(cli.COMMANDS.values()):
        importlib.import_module(f"ilgnet_repro.cli.{module}")
    for module in ("export.convert", "export.to_onnx", "export.to_python", "export.to_pt2", "compare.comparison", "audit",
                   "audit_folder", "scoring", "aesthetics.report_page", "aesthetics.evaluation", "reading.lmdb_build",
                   "aesthetics.partition_scores", "aesthetics.ava_partition", "aesthetics.partition_checks",
                   "aesthetics.synthetic_task", "aesthetics.run_check", "aesthetics.download", "reading.lmdb_export",
                   "reading.sheet_page", "reading.lmdb_check", "train.loop", "train.best_weights", "train.curves",
                   "train.one_run", "caffe_tool.extract", "caffe_tool.upgrade", "features", "score_cache", "web.net_graph", "pycaffe.draw",
                   "finetune.plan", "aesthetics.model_runs.train", "aesthetics.model_runs.finish", "aesthetics.model_runs.evaluate",
                   "reading.leveldb_convert", "reading.lmdb_labels", "caffe_tool.test", "caffe_tool.time"):  # fmt: skip
        importlib.import_module(f"ilgnet_repro.{module}")


def start(
    argv: list[str],
    cwd: Path,
    prepare: Callable[[], None] = lambda: None,
    sent: tuple[int, float] | None = None,
) -> End:
    """Run a command in a child, ``prepare`` in it first; the ends of its two streams are pipes.

    ``sent`` is a signal, and the seconds after which the child gets it.
    """
    pipes = [os.pipe() for _ in range(2)]
    for _, writing in pipes:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
    began, base = time.monotonic(), resident()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, (_, writing) in enumerate(pipes, 1):
                os.dup2(writing, number)
            stack = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 256)  # stderr, whatever ``prepare`` makes of it
            os.closerange(3, 256)
            faulthandler.register(signal.SIGUSR1, file=stack)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
            os.chdir(cwd)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            prepare()
            status = cli.main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode(errors="replace"))
        os._exit(status)
    for _, writing in pipes:
        os.close(writing)
    texts, hung = [b"", b""], False
    reading = {pipes[0][0]: 0, pipes[1][0]: 1}
    while reading:
        if sent and time.monotonic() - began > sent[1]:
            os.kill(child, sent[0])
            sent = None
        for handle in select.select(list(reading), [], [], 0.005 if sent else 0.2)[0]:
            data = os.read(handle, 1 << 16)
            texts[reading[handle]] += data
            if not data:
                os.close(handle)
                del reading[handle]
        if hangs(child, time.monotonic() - began, 0):
            os.kill(child, signal.SIGUSR1)
            time.sleep(1)
            for handle in select.select(list(reading), [], [], 0)[0]:
                texts[reading[handle]] += os.read(handle, 1 << 16)
            os.kill(child, signal.SIGKILL)
            hung = True
            break
    for handle in reading:
        os.close(handle)
    _, status, usage = os.wait4(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    hung = hung or usage.ru_utime + usage.ru_stime > SECONDS
    return End(code, *(text.decode(errors="replace") for text in texts), hung, usage.ru_maxrss * 1024 - base)


def fault_of(end: End, *, silent: bool = False) -> str:
    """What is wrong with the way a command ended, or ""."""
    if end.hung:
        return f"over {SECONDS:.0f} s, in {place_in(end.err)}"
    if end.status == 1 and re.search(r'^  File ".*script\.py", line \d+', end.err, re.MULTILINE):
        return ""  # `caffe run`: the user's own code ends as in Python, with its traceback
    if "Traceback" in end.err or end.status not in (0, 1):
        return f"status {end.status}: {end.err.strip()[-160:]}"
    if "RuntimeWarning" in end.err:
        return f"a warning of a library is printed: {end.err.strip()[:160]}"
    if end.memory > MEMORY:
        return f"takes {end.memory >> 20} MiB"
    errors = [line for line in end.err.splitlines() if line.startswith("ilgnet")]
    if end.status == 1 and not silent and not end.out and len(errors) != 1:
        return f"{len(errors)} lines of error: {end.err.strip()[-160:]!r}"
    if any(char in end.err + end.out for char in "\x1b\x07\x00"):
        return "a control character is printed"
    return ""


def fixtures(root: Path) -> None:
    """Write the inputs of `COMMANDS`."""
    for name in ("images", "more/a", "out", "snap"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        cv2.imwrite(str(root / f"images/{number}.png"), rng.integers(0, 256, (24, 28, 3), np.uint8))
    (root / "images/3.png").write_bytes(b"broken")
    (root / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(4)))
    (root / "good.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(3)))
    (root / "labels.txt").write_text("n01 low\nn02 high\n")
    (root / "exclude.txt").write_text("5\n7.jpg\n")
    (root / "caffe.log").write_text(LOG)
    ava = [" ".join(map(str, [i + 1, i + 1, *rng.integers(1, 60, 10).tolist(), 0, 0, 1])) for i in range(60)]
    (root / "AVA.txt").write_text("\n".join(ava) + "\n")
    (root / "net.prototxt").write_text(NET)
    (root / "train.prototxt").write_text(TRAIN)
    (root / "solver.prototxt").write_text(SOLVER)
    (root / "other.prototxt").write_text(SOLVER.replace("out/s", "snap/s"))
    net = pb.NetParameter(name="tiny")
    for name, kind, shapes in (
        ("conv", "Convolution", [(4, 3, 3, 3), (4,)]),
        ("fc", "InnerProduct", [(2, 784), (2,)]),
    ):
        layer = net.layer.add(name=name, type=kind)
        for shape in shapes:
            blob = layer.blobs.add()
            blob.shape.dim.extend(shape)
            blob.data.extend(rng.normal(0, 0.1, shape).astype(np.float32).ravel().tolist())
    (root / "net.caffemodel").write_bytes(net.SerializeToString())
    for name in ("net.caffemodel", "net.prototxt"):
        shutil.copy(root / name, root / "more/a" / name)
    (root / "values.txt").write_text("".join(f"{number}.png {number + 0.5}\n" for number in range(4)))
    (root / "script.py").write_text("import caffe\nprint(sorted(caffe.layer_type_list())[:2])\n")
    for number in range(4):
        (root / "classes" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(root / f"classes/{'ab'[number % 2]}/{number}.png"),
            rng.integers(0, 256, (20, 24, 3), np.uint8),
        )
    (root / "features").mkdir()
    for split in ("train", "test"):
        names, labels = np.array([f"{split}{row}" for row in range(24)]), np.arange(24) % 3
        values = (rng.normal(0, 1, (24, 6)) + labels[:, None]).astype(np.float32)
        np.savez(root / f"features/{split}.npz", key=names, label=labels, fc=values)
    write_leveldb(root / "leveldb")
    np.savez(root / "data.npz", data=rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32))
    slow = {"test model": [*MODEL, "--out", "run"], "report": [*OWN, "--out", "t"]}
    for argv in (["lmdb", "make", "images/", "list.txt", "db"], ["mean", "db", "mean.binaryproto"], ["mean", "mean.binaryproto", "mean.npy"],
                 ["convert", "net.caffemodel"], ["partition", "ava1", "AVA.txt", "--out", "lists", "--seed", "1", "--val-sizes", "3", "3", "--scores", "scores.csv"],
                 *(argv for name, argv in slow.items() if name in COMMANDS), ["train", "--solver", "other.prototxt"]):  # fmt: skip
        end = start(argv, root)
        assert end.status == 0, (argv, end.err)
    shutil.copy(root / "snap/s_iter_4.caffemodel", root / "start.caffemodel")


def write_leveldb(folder: Path) -> None:
    """Write a small LevelDB, where its library is installed; an empty folder otherwise, which is refused."""
    try:
        import plyvel
    except ImportError:
        folder.mkdir()
        return
    base = plyvel.DB(str(folder), create_if_missing=True)
    for number in range(3):
        base.put(b"%08d_x" % number, b"value%d" % number)
    base.close()


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_fifo()
    }


class Place:
    """A fresh copy of the fixtures for each case."""

    def __init__(self, root: Path, made: Path) -> None:
        self.root, self.made = root, made

    def __enter__(self) -> Path:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.made, self.root)
        return self.root

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


Case = tuple[str, Callable[[Place], str]]
VARYING = ("run.json", "r.html", "s.png", "curves.png", "train.csv", "test.csv", "big.pt2")


def half_written(folder: Path, whole: dict[str, bytes], before: dict[str, bytes]) -> str:
    """A file that is neither absent, nor as before, nor that of the whole run; or a hidden one."""
    for name, data in content(folder).items():
        parts = Path(name).parts
        if any(part.startswith(".") for part in parts):
            return f"{name} is left over"
        if before.get(name) == data or any(part in RESUMED for part in parts):
            continue
        if name not in whole:
            return f"{name} is no file of the whole run"
        if data != whole[name] and parts[-1] not in VARYING:
            return f"{name} is half-written ({len(data)} of {len(whole[name])} bytes)"
    states = {name for name in content(folder) if name.endswith(".solverstate")}
    models = {name for name in content(folder) if "_iter_" in name and name.endswith(".caffemodel")}
    unpaired = {name.rpartition(".")[0] for name in models} ^ {name.rpartition(".")[0] for name in states}
    return f"{unpaired.pop()} has one file of two" if unpaired else ""


@dataclass
class Whole:
    """A run to the end: the files before and after it, its seconds, and what was wrong with it."""

    before: dict[str, bytes]
    after: dict[str, bytes]
    seconds: float
    fault: str


FAULTY = (
    "data verify",
    "data get",
    "partition check",
    "test check",
    "lmdb check",
    "score cache",
    "lmdb from-leveldb",
)  # end with 1: the images are so, or a library is not there


def whole_runs(place: Place) -> Callable[[str, list[str]], Whole]:
    """Return a function that runs a command to its end, the first time that it is asked for."""

    @cache
    def run(name: str, argv: tuple[str, ...]) -> Whole:
        with place as folder:
            before, began = content(folder), time.monotonic()
            end = start(list(argv), folder)
            fault = f"the whole run gives {end.status}: {fault_of(end) or end.err[-200:]}"
            is_right = end.status == 0 or (end.status == 1 and name in FAULTY)
            return Whole(before, content(folder), time.monotonic() - began, "" if is_right else fault)

    return lambda name, argv: run(name, tuple(argv))


def limits(root: Path, rng: random.Random) -> Iterator[Case]:
    """A limit on the size of files, as a full disk: one line, and no output cut short."""
    runs = whole_runs(Place(root / "w", root / "made"))
    for name, argv in COMMANDS.items():
        for part in (0, 1, 100, 0.25, 0.5, 0.75, -1, rng.random(), rng.random(), rng.random()):
            draw = rng.random()

            def case(place: Place, name=name, argv=argv, part=part, draw=draw) -> str:
                whole = runs(name, argv)
                sizes = sorted(
                    {len(data) for path, data in whole.after.items() if whole.before.get(path) != data}
                ) or [0]
                size = sizes[int(draw * len(sizes))]
                limit = (
                    int(size * part) if isinstance(part, float) else max(0, size - 1) if part < 0 else part
                )
                with place as folder:
                    end = start(
                        argv, folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                    )
                    return whole.fault or fault_of(end) or half_written(folder, whole.after, whole.before)

            yield (
                f"{name}, files of at most {part:.3g} {'times their size' if isinstance(part, float) else 'bytes'}",
                case,
            )


def streams(root: Path, rng: random.Random) -> Iterator[Case]:
    """stdout or stderr closed, full, or with a reader that has gone; ASCII only."""

    def to(path: str, number: int) -> Callable[[], None]:
        def prepare() -> None:
            os.dup2(os.open(path, os.O_WRONLY), number)

        return prepare

    def gone(number: int) -> Callable[[], None]:
        def prepare() -> None:
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, number)
            os.close(writing)

        return prepare

    def closed(*numbers: int) -> Callable[[], None]:
        def prepare() -> None:
            for number in numbers:
                os.close(number)
            for number, name in ((1, "stdout"), (2, "stderr")):
                if number in numbers:
                    setattr(sys, name, None)

        return prepare

    def ascii_only() -> None:
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(number, "w", encoding="ascii", errors="strict", closefd=False))

    ways: dict[str, Callable[[], None]] = {
        "stdout full": to("/dev/full", 1), "stderr full": to("/dev/full", 2), "stdout closed": closed(1), "all closed": closed(0, 1, 2),
        "stderr closed": closed(2), "stdout gone": gone(1), "stderr gone": gone(2), "ascii": ascii_only,
    }  # fmt: skip
    commands = {
        **COMMANDS,
        "help": ["--help"],
        "help of convert": ["convert", "--help"],
        "version": ["--version"],
        "wrong": ["convert"],
        "nothing": [],
        "missing": ["audit", "no\x1b[31m\u00e9.prototxt"],
    }
    for name, argv in commands.items():
        for way, prepare in ways.items():

            def case(place: Place, argv=argv, way=way, prepare=prepare) -> str:
                with place as folder:
                    end = start(argv, folder, prepare)
                    return fault_of(end, silent="stderr" in way or "closed" in way)

            yield f"{name}, {way}", case


def inputs(root: Path, rng: random.Random) -> Iterator[Case]:
    """Each input as a pipe, a device, a folder, empty, missing, unreadable, of another kind."""

    def device(path: str) -> Callable[[Path], None]:
        return lambda target: target.symlink_to(path)

    ways: dict[str, Callable[[Path], object]] = {
        "a pipe": os.mkfifo, "/dev/zero": device("/dev/zero"), "/dev/full": device("/dev/full"), "/dev/null": device("/dev/null"),
        "a folder": Path.mkdir, "empty": Path.touch, "missing": lambda path: None, "a loop": lambda path: path.symlink_to(path.name),
        "text": lambda path: path.write_text("hello\n"), "zeros": lambda path: path.write_bytes(bytes(5000)), "the net": lambda path: path.write_text(NET),
        "braces": lambda path: path.write_bytes(b"{" * 9000), "a socket": lambda path: __import__("socket").socket(1).bind(str(path)[-100:] if len(str(path)) < 100 else "x"),
    }  # fmt: skip
    made = root / "made"
    for name, argv in COMMANDS.items():
        for position, word in enumerate(argv):
            if word == "out" or word.startswith("out/") or not (made / word).exists() or position == 0:
                continue
            for way, make in ways.items():

                def case(place: Place, argv=argv, word=word, make=make) -> str:
                    with place as folder:
                        target = folder / word
                        shutil.rmtree(target) if target.is_dir() else target.unlink()
                        make(target)
                        return fault_of(start(argv, folder))

                yield f"{name}, {word} is {way}", case


NUMBERS = ["-1", "0", "1", "99999999999", "100000000000000000000000", "-99999999999", "2147483648", "nan", "inf", "-inf", "1e308", "-0.0", "1e-320", "0x10", "", " ", "1.5", "\u0661", "9" * 5000]  # fmt: skip
TEXTS = ["", " ", "\x00"[:0] or "x" * 5000, "[/x]", "\x1b[31m", "../..", "/dev/full", "/dev/null", "a\nb", "=1+1", "None", "\udce9", "-"]  # fmt: skip
SHAPES = ["data=", "data=0", "data=1,3,-1,-1", "data=99999999999,3,16,16", "data=1,3,1000000,1000000", "data=1,3,16", "=1", "data=nan", "data=1,3,16,16,16,16", "x=1", "data=1,3,99999,99999"]  # fmt: skip


def parsers(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that does something, and its parser."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield path, parser
    for action in nested:
        for name, child in action.choices.items():
            yield from parsers(child, (*path, name))


def commands_without_row() -> list[str]:
    """Return the commands that `COMMANDS` does not run."""
    return [
        " ".join(path)
        for path, _ in parsers(cli.build_parser())
        if path not in WITHOUT_ROW and not any(tuple(argv[: len(path)]) == path for argv in COMMANDS.values())
    ]


def options(root: Path, rng: random.Random) -> Iterator[Case]:
    """Each option of each parser, with values that nobody means."""
    covered = set()
    for path, parser in parsers(cli.build_parser()):
        calls = [argv for argv in COMMANDS.values() if tuple(argv[: len(path)]) == path]
        if not calls or path == ("caffe", "run"):  # the user's own code
            continue
        for action in parser._actions:
            if not action.option_strings or action.nargs == 0 or action.choices:
                continue
            flag = action.option_strings[-1]
            is_number = (
                action.type is not None
                or action.metavar in ("N", "B,G,R", "caffe:SEED", "D", "T", "S")
                or action.nargs == 2
            )
            values = SHAPES if "shape" in flag else NUMBERS if is_number else TEXTS
            covered.add((path, flag))
            for value in values:
                for argv in calls[:1] if path != ("caffe", "test") else calls[-1:]:

                    def case(place: Place, argv=argv, flag=flag, value=value, action=action) -> str:
                        with place as folder:
                            extra = (
                                [f"{flag}={value}"]
                                if action.nargs is None or action.nargs == "?"
                                else [flag, *[value] * (action.nargs if isinstance(action.nargs, int) else 1)]
                            )
                            end = start([*argv, *extra], folder)
                            left = [
                                p
                                for p in content(folder)
                                if any(part.startswith(".") for part in Path(p).parts)
                            ]
                            return fault_of(end) or (f"{left[0]} is left over" if left else "")

                    yield f"{' '.join(path)} {flag}={value[:30]!r}", case


KILLED = {
    **{name: (argv, argv) for name, argv in COMMANDS.items() if name.startswith(("convert ", "mean", "sheet", "lmdb make", "lmdb export"))},
    "partition": ([*COMMANDS["partition ava1"], "--force"],) * 2,
    "test": (COMMANDS["test"], [*COMMANDS["test"], "--resume"]),
    "train": (["train", "--solver", "solver.prototxt"], ["train", "--solver", "solver.prototxt", "--resume", "latest"]),
    "caffe train": (COMMANDS["caffe train"],) * 2,
}  # fmt: skip


def kills(root: Path, rng: random.Random) -> Iterator[Case]:
    """A signal at a random moment, and the command once more: the same files as if nothing had happened."""
    runs = whole_runs(Place(root / "w", root / "made"))
    for name, (argv, again) in KILLED.items():
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) * 2:
            draw = rng.random()

            def case(place: Place, name=name, argv=argv, again=again, number=number, draw=draw) -> str:
                run = runs(name, argv)
                after, whole, before = draw * run.seconds, run.after, run.before
                with place as folder:
                    end = start(argv, folder, sent=(number, after))
                    if end.status == -number:  # SIGKILL, or another signal before the command began
                        end.status = 0
                    elif end.status in (128 + number, 130):
                        end.status = 1
                    left = [
                        path
                        for path in content(folder)
                        if any(part.startswith(".") for part in Path(path).parts)
                    ]
                    if fault := fault_of(end, silent=True) or (
                        number != signal.SIGKILL and left and f"{left[0]} is left over"
                    ):
                        return f"at the signal: {fault}"
                    states = sorted((folder / "out").glob("s_iter_*.solverstate"))
                    if argv[0] == "caffe" and states:
                        again = [*again, "-snapshot", f"out/{states[-1].name}"]
                    done = content(folder) == whole
                    end = start(again, folder)
                    if end.status and not ("already exists" in end.err or done):
                        return f"once more: status {end.status}: {end.err.strip()[-160:]}"
                    missing = [path for path in whole if not (folder / path).exists()]
                    return half_written(folder, whole, before) or (
                        f"{missing[0]} is missing" if missing else ""
                    )

            yield f"{name}, {signal.Signals(number).name}", case


def together(argv: list[str], cwd: Path, processes: int, sent: tuple[int, float] | None = None) -> End:
    """Run a command in one process, or in several that train together; a signal goes to all."""
    if processes == 1:
        return start(argv, cwd, sent=sent)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def joining(rank: int) -> Callable[[], None]:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        return lambda: os.environ.update({name: str(value) for name, value in group.items()})

    with ThreadPoolExecutor(processes) as pool:
        ends = list(pool.map(lambda rank: start(argv, cwd, joining(rank), sent), range(processes)))
    return max(ends, key=lambda end: (end.status not in (0, 1), end.status))


TRAINED = (".caffemodel", ".solverstate")


def chain(
    whole: Callable[..., Whole], place: Place, processes: int, tool: str, dropout: bool, draws: list[float]
) -> str:
    """Train, killed once per draw and taken up again each time, then to the end; what is wrong, or ""."""
    argv = [*tool.split(), "--solver" if tool == "train" else "-solver", "chain.prototxt"]
    run = whole(argv, processes, tool, dropout)
    with place as folder:
        chain_fixture(folder, dropout)
        command, killed = argv, 0
        for draw in draws:
            end = together(command, folder, processes, (signal.SIGKILL, draw * run.seconds))
            if end.status != -signal.SIGKILL:
                break
            killed += 1
            states = sorted(
                (folder / "out").glob("s_iter_*.solverstate"),
                key=lambda path: int(path.stem.rpartition("_")[2]),
            )
            if tool == "train":
                command = [*argv, "--resume", "latest"]
            elif states:
                command = [*argv, "-snapshot", f"out/{states[-1].name}"]
        else:
            end = together(command, folder, processes)
        if fault := run.fault or fault_of(end) or (end.status and f"status {end.status}: {end.err[-160:]}"):
            return f"after {killed} kills: {fault}"
        if any(name.startswith(".") for path in content(folder) for name in Path(path).parts):
            return "a hidden file is left over"
        trained = {name: data for name, data in run.after.items() if name.endswith(TRAINED)}
        other = [name for name, data in trained.items() if content(folder).get(name) != data]
        return f"after {killed} kills {other[0]} is not that of the whole run" if other else ""


def chain_fixture(folder: Path, dropout: bool) -> None:
    (folder / "chain.prototxt").write_text(CHAIN)
    lines = TRAIN.replace("scale: 0.01", "scale: 0.01 crop_size: 20 mirror: true").splitlines(keepends=True)
    kept = [line for line in lines if dropout or "Dropout" not in line]
    (folder / "train.prototxt").write_text("".join(kept))


def chains(root: Path, rng: random.Random) -> Iterator[Case]:
    """Training killed one to three times: the same bytes as a run that nothing stopped.

    With and without Dropout, `train` in one process and two, and `caffe train`; 20 of each.
    """
    spare = Place(root / "w", root / "made")

    @cache
    def run(argv: tuple[str, ...], processes: int, tool: str, dropout: bool) -> Whole:
        with spare as folder:
            chain_fixture(folder, dropout)
            began = time.monotonic()
            end = together(list(argv), folder, processes)
            fault = f"the whole run gives {end.status}: {end.err[-200:]}" if end.status else ""
            return Whole({}, content(folder), time.monotonic() - began, fault)

    for number in range(20):
        for processes, tool in ((1, "train"), (1, "caffe train"), (2, "train")):
            for dropout in (True, False):
                draws = [rng.random() for _ in range(rng.choice((1, 1, 2, 3)))]

                def case(place: Place, settings=(processes, tool, dropout, draws)) -> str:
                    return chain(lambda argv, *rest: run(tuple(argv), *rest), place, *settings)

                form = f"{'Dropout' if dropout else 'plain'}, {processes} process{'es' * (processes > 1)}"
                yield f"{tool}, {form}, chain {number}", case


GROUPS = {
    "chains": chains,
    "kills": kills,
    "limits": limits,
    "streams": streams,
    "inputs": inputs,
    "options": options,
}


def attack(
    names: list[str], seed: int, every: int, show: Callable[[str], None] = lambda text: None
) -> dict[str, tuple[int, list[str]]]:
    """Run the groups; for each the number of cases and the defects."""
    preload()
    found = {}
    with tempfile.TemporaryDirectory(prefix="ends_") as temporary:
        root = Path(temporary)
        (root / "made").mkdir()
        fixtures(root / "made")
        for group in names:
            rng, done, defects = random.Random(seed), 0, []
            first = rng.randrange(every)
            for number, (label, case) in enumerate(GROUPS[group](root, rng)):
                if number % every == first:
                    done += 1
                    if fault := case(Place(root / "w", root / "made")):
                        defects.append(f"{label}: {fault}")
                        show(f"DEFECT {group}: {defects[-1]}")
            found[group] = done, defects
            show(f"{group}: {done:,} cases, {len(defects)} defects")
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--light", action="store_true", help="omit three rows that take seconds")
    args = parser.parse_args()
    if missing := commands_without_row():
        raise SystemExit(f"no row in COMMANDS for: {', '.join(missing)}")
    names = [name for name in args.only.split(",") if name] or list(GROUPS)
    if args.light:
        for name in ("train model", "test model", "report"):
            del COMMANDS[name]
    found = attack(names, args.seed, args.every, lambda text: print(text, flush=True))
    cases, defects = (
        sum(values) for values in zip(*((count, len(bad)) for count, bad in found.values()), strict=True)
    )
    print(f"{cases:,} cases in {len(found)} groups, {defects} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    raise SystemExit(main())
