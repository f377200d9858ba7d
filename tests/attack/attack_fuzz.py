"""Hostile and damaged inputs by the thousand: only IlgnetError may come out, in bounded time and memory.

    python attack_fuzz.py [--cases 3000] [--seconds 60] [--seed 1] [--only formats,layers,...] [--show 3]

``python`` must be one that has ilgnet_repro.  ``--cases`` and ``--seconds`` are for each of the big groups
(formats, layers, lmdb, datum, models).  A case is a defect if it raises anything but IlgnetError (for commands: ends with
a status other than 0 or 1, or prints a traceback), dies by a signal, runs over ten seconds, takes over 1 GiB, or
leaves a file over; or if code from a data file runs.  Every case runs in a forked child under RLIMIT_AS.
Exit status 0 only without a defect; the last line is the figure.
"""

# Long lines are tables of hostile inputs; each closure runs in the pass of the loop that made it.
# ruff: noqa: E501, B023, SIM115, E402

from __future__ import annotations

import argparse
import ast
import faulthandler
import importlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
import cv2
import h5py
import hostile_models
import lmdb
import numpy as np
import onnx
import torch
from children import SECONDS, hangs, place_in, processor_seconds, resident

from ilgnet_repro.caffe.blob import read_blob, write_blob
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import format_message, parse_net, parse_solver, read_net, read_solver
from ilgnet_repro.caffe.solverstate import read_solverstate, write_solverstate
from ilgnet_repro.caffe.upgrade import upgrade_net, upgrade_solver
from ilgnet_repro.cli import main as cli
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.layers.support.registry import layer_types
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.schema import caffe_pb2 as pb

torch.set_num_threads(1)
for _module in set(cli.COMMANDS.values()):
    importlib.import_module(f"ilgnet_repro.cli.{_module}")
for _module in ("export.convert", "export.to_onnx", "export.to_python", "export.to_pt2", "compare.comparison",
                "export.onnx_graph", "export.source_writer", "export.verify", "audit", "scoring", "aesthetics.report_page", "aesthetics.protocol_run",
                "reading.lmdb_build", "reading.sheet_page", "reading.lmdb_check", "train.loop"):  # fmt: skip
    importlib.import_module(f"ilgnet_repro.{_module}")

MEMORY = 1 << 30
LIMIT = 4 << 30  # RLIMIT_AS above what a child begins with
GROUPS: dict[str, Counter] = {}
FIRST: dict[tuple[str, str], str] = {}
RUN = Counter()


def found(group: str, key: str, example: str) -> None:
    GROUPS.setdefault(group, Counter())[key] += 1
    FIRST.setdefault((group, key), example)


def place_of(trace) -> str:
    own = [f for f in trace if "ilgnet_repro" in f.filename]
    last = own[-1] if own else trace[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def stack_of(child: int, file) -> str:
    """Ask the child where it is, and return the last frame in the package."""
    os.kill(child, signal.SIGUSR1)
    time.sleep(1)
    file.seek(0)
    return place_in(file.read())


def batch(group: str, cases: list, work, seconds: float, show=repr) -> None:
    """Run ``work(case)`` for each; a crash or a hang costs one case only."""
    index, end = 0, time.monotonic() + seconds
    while index < len(cases) and time.monotonic() < end:
        reading, writing = os.pipe()
        stack = tempfile.TemporaryFile("w+")
        child = os.fork()
        if child == 0:
            os.close(reading)
            faulthandler.register(signal.SIGUSR1, file=stack)
            null = os.open(os.devnull, os.O_RDWR)
            for handle in (0, 1, 2):
                os.dup2(null, handle)
            limit_memory()
            warned: list[str] = []
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = lambda message, category, file, line, *_: (
                warned.append(f"{category.__name__} at {file[max(0, file.rfind('ilgnet_repro')) :]}:{line}")
                if category is RuntimeWarning
                else None
            )
            for number in range(index, len(cases)):
                began, verdict = time.process_time(), ""
                try:
                    work(cases[number])
                except IlgnetError as error:
                    verdict = "" if len(str(error).splitlines()) <= 1 else "a message of several lines"
                except hostile_models.EndedBadly as error:
                    verdict = str(error)
                except BaseException as error:
                    where = place_of(traceback.extract_tb(error.__traceback__))
                    verdict = f"{type(error).__name__} at {where}"
                verdict = verdict or next((w for w in warned if "ilgnet_repro" in w), "")
                warned.clear()
                if time.process_time() - began > SECONDS:
                    verdict = f"{verdict} over {SECONDS:.0f} s".strip()
                os.write(writing, (json.dumps([number, verdict]) + "\n").encode())
            os._exit(0)
        os.close(writing)
        buffer, last, used, hung = b"", time.monotonic(), 0.0, ""
        while True:
            if select.select([reading], [], [], 1)[0]:
                data = os.read(reading, 1 << 16)
                if not data:
                    break
                buffer, last, used = buffer + data, time.monotonic(), processor_seconds(child)
                while b"\n" in buffer:
                    line, buffer = buffer.split(b"\n", 1)
                    number, verdict = json.loads(line)
                    RUN[group] += 1
                    index = number + 1
                    if verdict:
                        found(group, verdict, show(cases[number]))
            elif hangs(child, time.monotonic() - last, used):
                hung = f"hang at {stack_of(child, stack)}"
                os.kill(child, signal.SIGKILL)
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                break
        os.close(reading)
        stack.close()
        status = os.waitpid(child, 0)[1]
        if time.monotonic() > end and not hung:
            return
        if index < len(cases) and (hung or os.WIFSIGNALED(status)):
            RUN[group] += 1
            found(group, hung or f"signal {os.WTERMSIG(status)}", show(cases[index]))
            index += 1


def command(
    group: str, label: str, argv: list, cwd: Path, seconds: float = SECONDS, may_leave: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Run a command of the CLI in a child; status and stderr."""
    RUN[group] += 1
    before = {p.name for p in cwd.iterdir()}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
                sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
                os.chdir(cwd)
                limit_memory()
                status = cli.main([os.fspath(a) for a in argv])
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
        base, hung = resident(), False
        while True:
            done, status, usage = os.wait4(child, os.WNOHANG)
            if done:
                break
            if hangs(child, time.monotonic() - began, seconds - SECONDS):
                os.kill(child, signal.SIGKILL)
                _, status, usage = os.wait4(child, 0)
                hung = True
                break
            time.sleep(0.003)
        err.seek(0)
        out.seek(0)
        text, printed = err.read().decode(errors="replace"), out.read()
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    verdict = ""
    if hung or usage.ru_utime + usage.ru_stime > seconds:
        verdict = "hang"
    elif code < 0:
        verdict = f"signal {-code}"
    elif code not in (0, 1) or "Traceback" in text:
        lines = re.findall(r'File "[^"]*?/ilgnet_repro/([^"]+)", line (\d+)', text)
        raised = [
            x
            for x in text.splitlines()
            if re.match(r"[A-Za-z_][\w.]*: |[\w.]*(Error|error|Exception|Interrupt)\b", x)
            and not x.startswith("ilgnet")
        ]
        verdict = f"status {code}, {raised[-1].split(':')[0] if raised else '?'} at {':'.join(lines[-1]) if lines else '?'}"
    elif usage.ru_maxrss * 1024 - base > MEMORY:
        verdict = "over 1 GiB of memory"
    elif b"\x1b" in printed:
        verdict = "an escape sequence from the input is printed"
    left = {p.name for p in cwd.iterdir()} - before
    if (
        code
        and (stray := [n for n in left if not n.startswith(may_leave)] if may_leave else list(left))
        and not hung
    ):
        found(group, "a file is left over", f"{label}: {stray[:2]}")
    if verdict:
        found(group, verdict, label)
    return code, text


# ---------------------------------------------------------------- fixtures

TINY = """name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def write_net(folder: Path, text: str = TINY, stem: str = "net") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    net = upgrade_net(parse_net(text))
    specs = plan_net(build_graph(net)).blobs
    rng = np.random.default_rng(0)
    (folder / f"{stem}.prototxt").write_text(text)
    write_caffemodel(
        folder / f"{stem}.caffemodel",
        net,
        {n: [rng.normal(0, 0.1, s.shape).astype(np.float32) for s in b] for n, b in specs.items() if b},
    )
    return folder / f"{stem}.caffemodel"


def datum(**fields) -> bytes:
    values = {
        "channels": 3,
        "height": 8,
        "width": 8,
        "label": 1,
        "encoded": False,
        "data": bytes(range(192)),
        **fields,
    }
    return pb.Datum(**{k: v for k, v in values.items() if v is not None}).SerializeToString()


def write_lmdb(folder: Path, rows: list[tuple[bytes, bytes]]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    handle = lmdb.open(os.fspath(folder), map_size=1 << 26, lock=False)
    with handle.begin(write=True) as transaction:
        for key, value in rows:
            transaction.put(key, value)
    handle.close()
    return folder


# ---------------------------------------------------------------- values nobody means

INTS = [-(2**31), -1000, -2, -1, 0, 1, 2, 3, 5, 7, 64, 300, 3000, 65536, 2**20, 2**31 - 1]
UINTS = [0, 1, 2, 3, 4, 5, 7, 64, 300, 3000, 65536, 2**20, 2**31 - 1, 2**31, 2**32 - 1]
FLOATS = [
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0,
    -1.0,
    1.0,
    0.5,
    2.0,
    3e38,
    -3e38,
    1e-45,
    1e-5,
    100.0,
]
TEXTS = [
    "",
    "x",
    "a b",
    "'",
    '"""',
    "\\",
    "/etc/passwd",
    "../x",
    "é",
    "a\nb",
    "[/x]",
    "{'a': 1}",
    "xavier",
    "gaussian",
    "constant",
    "msra",
    "bilinear",
    "uniform",
    "positive_unitball",
]


def value(field, rng: random.Random):
    if field.enum_type:
        return rng.choice([v.number for v in field.enum_type.values])
    kind = field.cpp_type
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == field.CPPTYPE_STRING:
        return rng.choice(TEXTS) if field.type == field.TYPE_STRING else rng.randbytes(3)
    return rng.choice(UINTS if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else INTS)


def fill(message, rng: random.Random, depth: int = 0, count: int | None = None) -> None:
    fields = [f for f in message.DESCRIPTOR.fields if f.name != "fork_field"]
    for field in rng.sample(
        fields,
        min(len(fields), count if count is not None else rng.choice((0, 1, 1, 2, 2, 3, 5, len(fields)))),
    ):
        target = getattr(message, field.name)
        repeated = hasattr(target, "append") or hasattr(target, "add")
        times = rng.choice((1, 1, 2, 3, 5, 33)) if repeated else 1
        try:
            if field.message_type:
                if depth < 3:
                    for _ in range(min(times, 3)):
                        fill(target.add() if repeated else target, rng, depth + 1, rng.choice((0, 1, 2, 3)))
                    if not repeated:
                        target.SetInParent()
            elif repeated:
                target.extend([value(field, rng) for _ in range(times)])
            else:
                setattr(message, field.name, value(field, rng))
        except (ValueError, TypeError):
            pass


def damage(data: bytes, rng: random.Random) -> bytes:
    out, kind = bytearray(data), rng.randrange(7)
    at = rng.randrange(len(out) + 1)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            out[rng.randrange(min(len(out), rng.choice((64, 512, len(out)))))] = rng.choice(
                (0, 1, 127, 128, 255, rng.randrange(256))
            )
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        out[at : at + rng.randrange(16)] = rng.randbytes(rng.randrange(12))
    elif kind == 3:
        out[at:at] = out[rng.randrange(len(out) + 1) :][: rng.randrange(200)]
    elif kind == 4:
        del out[at : at + rng.randrange(1, 64)]
    elif kind == 5:
        out = bytearray(rng.randbytes(rng.randrange(300)))
    else:
        out[at:at] = rng.choice(
            (b"\xff\xff\xff\xff\x7f", b"{" * 300, b'"', b"\0", b"nan", b"[" * 50, b"9" * 6000, b"\x80" * 12)
        )
    return bytes(out)


# ---------------------------------------------------------------- groups

SHAPES = [(2, 3, 8, 8)] * 6 + [
    (1, 4, 6, 6),
    (2, 8, 4, 4),
    (2, 4),
    (4,),
    (1, 1, 1, 1),
    (2, 3, 8),
    (2, 3, 4, 5, 6),
    (0, 3, 8, 8),
    (2, 3, 0, 5),
    (1,),
    (5, 5),
    (1, 1, 300, 4),
]


def any_net(seed: int) -> str:
    rng = random.Random(seed)
    types = layer_types()
    kind = rng.choice(sorted(types))
    net = pb.NetParameter(name="n")
    bottoms = 0 if types[kind].is_input else rng.choice((1, 1, 1, 2, 2, 3, 4))
    first = rng.choice(SHAPES)
    for i in range(bottoms):
        layer = net.layer.add(name=f"in{i}", type="Input", top=[f"in{i}"])
        layer.input_param.shape.add(
            dim=list(rng.choice((first, first, first, first[:1], rng.choice(SHAPES))))
        )
    op = net.layer.add(
        name="op",
        type=kind,
        bottom=[f"in{i}" for i in range(bottoms)],
        top=[f"t{i}" for i in range(rng.choice((0, 1, 1, 1, 1, 2, 3)))],
    )
    name = getattr(types[kind], "message", None)
    if isinstance(name, str) and name in op.DESCRIPTOR.fields_by_name:
        if (
            kind
            in (
                "Convolution",
                "Deconvolution",
                "InnerProduct",
                "Embed",
                "LSTM",
                "RNN",
                "Pooling",
                "DepthwiseConvolution",
            )
            and rng.random() < 0.8
        ):
            sub = getattr(op, name)
            for key, number in (("num_output", 4), ("kernel_size", 3), ("input_dim", 9)):
                if key in sub.DESCRIPTOR.fields_by_name:
                    target = getattr(sub, key)
                    target.append(number) if hasattr(target, "append") else setattr(sub, key, number)
            fill(sub, rng, 1, rng.choice((0, 1, 1, 2)))
        else:
            fill(getattr(op, name), rng)
        getattr(op, name).SetInParent()
    if rng.random() < 0.1:
        fill(op.param.add(), rng)
    if rng.random() < 0.1:
        op.loss_weight.extend(rng.choice(FLOATS) for _ in range(rng.choice((1, 2))))
    return format_message(net)


def run_net(text: str) -> None:
    from ilgnet_repro.export.onnx_graph import build_onnx
    from ilgnet_repro.export.source_writer import build_source
    from ilgnet_repro.export.verify import seeded_inputs

    graph = build_graph(
        upgrade_net(parse_net(text)), "TRAIN" if zlib.crc32(text.encode()) % 4 == 0 else "TEST"
    )
    plan = plan_net(graph)
    sizes = list(plan.shapes.values()) + [b.shape for blobs in plan.blobs.values() for b in blobs]
    if sum(float(np.prod([max(d, 1) for d in s], dtype=float)) for s in sizes) > 3e7:
        return  # honestly huge
    net = CaffeNet(graph, seed=1)
    inputs = seeded_inputs(net)
    refused = None
    with torch.no_grad():
        for stage in (
            lambda: net(inputs),
            lambda: build_onnx(net),
            lambda: ast.parse(build_source(net).text),
        ):
            try:
                stage()
            except IlgnetError as error:
                refused = error
    if refused:
        raise refused


def formats(root: Path, cases: int, seconds: float, rng: random.Random) -> None:
    weights = write_net(root / "n")
    write_blob(root / "m", np.zeros((1, 3, 8, 8), np.float32))
    write_solverstate(root / "s", 5, "x.caffemodel", [np.zeros((3, 3), np.float32)], 1)
    with h5py.File(root / "w.h5", "w") as file:
        file["data/conv/0"], file["data/conv/1"] = np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)
    solver = 'net: "n.prototxt" base_lr: 0.01 lr_policy: "step" stepsize: 5 gamma: 0.1 momentum: 0.9 max_iter: 6 snapshot: 2 snapshot_prefix: "s" type: "Adam"\n'
    v1 = 'name: "v1" input: "d" input_dim: [1, 3, 8, 8] layers { name: "c" type: CONVOLUTION bottom: "d" top: "c" blobs_lr: 1 convolution_param { num_output: 4 kernel_size: 3 } include { phase: TEST } }'
    pool = {
        "net": [TINY.encode(), v1.encode(), *(any_net(s).encode() for s in range(200))],
        "solver": [solver.encode()],
        "model": [weights.read_bytes()],
        "mean": [(root / "m").read_bytes()],
        "state": [(root / "s").read_bytes()],
        "h5": [(root / "w.h5").read_bytes()],
    }
    readers = {
        "net": lambda p: parse_net(format_message(upgrade_net(read_net(p)))),
        "solver": lambda p: parse_solver(format_message(upgrade_solver(read_solver(p)))),
        "model": lambda p: [b.array().sum() for layer in open_caffemodel(p).layers for b in layer.blobs],
        "mean": lambda p: read_blob(p).sum(),
        "state": lambda p: [b.array().sum() for b in read_solverstate(p).history],
        "h5": lambda p: [b.array().sum() for layer in open_caffemodel(p).layers for b in layer.blobs],
    }
    kinds = sorted(pool)
    todo = []
    for _ in range(cases):
        kind = rng.choice(kinds)
        data = rng.choice(pool[kind])
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = damage(data, rng) if data else data
        todo.append((kind, data))

    def work(case: tuple[str, bytes]) -> None:
        path = root / f"case{'.h5' if case[0] == 'h5' else ''}"
        path.write_bytes(case[1])
        readers[case[0]](path)

    batch("formats", todo, work, seconds, lambda c: f"{c[0]} {c[1][:80]!r}")


def layers(root: Path, cases: int, seconds: float, rng: random.Random) -> None:
    first = rng.randrange(1 << 30)
    batch(
        "layers",
        [any_net(first + k) for k in range(cases)],
        run_net,
        seconds,
        lambda t: re.sub(r"\s+", " ", t)[-300:],
    )


def damaged_lmdb(root: Path, cases: int, seconds: float, rng: random.Random) -> None:
    from ilgnet_repro.reading import lmdb_read_environment as lmdb_environment
    from ilgnet_repro.reading.lmdb_read import LmdbReader

    seeds = [
        (
            write_lmdb(
                root / "a",
                [(b"%08d_x" % i, datum(data=bytes(6000), height=40, width=50)) for i in range(200)],
            )
            / "data.mdb"
        ).read_bytes(),
        (
            write_lmdb(
                root / "b", [(b"%08d_x" % i, datum(height=1, width=1, data=b"abc")) for i in range(1500)]
            )
            / "data.mdb"
        ).read_bytes(),
    ]

    def work(seed: int) -> None:
        draw = random.Random(seed)
        data = bytearray(draw.choice(seeds))
        pages = len(data) // 4096
        for _ in range(draw.choice((1, 1, 2, 8))):
            page, kind = 4096 * draw.randrange(pages), draw.randrange(5)
            if kind == 0:
                data[page + draw.randrange(32)] = draw.choice((0, 1, 255, draw.randrange(256)))
            elif kind == 1:
                data[page : page + 4096] = draw.randbytes(4096)
            elif kind == 2:
                data[draw.choice((0, 4096)) + draw.randrange(180)] = draw.randrange(256)
            elif kind == 3:
                data[draw.randrange(len(data))] = draw.randrange(256)
            elif draw.random() < 0.2:
                del data[page + draw.randrange(4096) :]
                break
        folder = root / f"f{os.getpid()}"
        folder.mkdir(exist_ok=True)
        (folder / "data.mdb").write_bytes(data)
        try:
            reader = LmdbReader(folder)
            for row in reader:
                row.datum()
            list(reader.headers())
            if len(reader):
                reader[0]
        finally:
            lmdb_environment._open_environments.clear()
            shutil.rmtree(folder, ignore_errors=True)

    first = rng.randrange(1 << 30)
    batch("lmdb", [first + k for k in range(cases)], work, seconds)


def datums(root: Path, cases: int, seconds: float, rng: random.Random) -> None:
    from ilgnet_repro.reading.datum import (
        datum_header,
        datum_image,
        parse_datum,
    )

    image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    seeds = [datum(), datum(encoded=True, data=image), datum(data=None, float_data=[0.5] * 192)]

    def work(data: bytes) -> None:
        datum_header(memoryview(data), "row")
        datum_image(parse_datum(data, "row"), "row")

    batch("datum", [damage(rng.choice(seeds), rng) for _ in range(cases)], work, seconds)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def images(root: Path, *_: object) -> None:
    weights = write_net(root / "n")
    folder = root / "p"
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    jpeg, plain = cv2.imencode(".jpg", image)[1].tobytes(), cv2.imencode(".png", image)[1].tobytes()
    at = jpeg.find(b"\xff\xc0")

    def bomb(side: int) -> bytes:
        return jpeg[: at + 5] + struct.pack(">HH", side, side) + jpeg[at + 9 :]

    files: dict[bytes, bytes] = {
        b"ok.png": plain, b"cut.jpg": jpeg[: len(jpeg) // 2], b"cut1.jpg": jpeg[:20], b"cut.png": plain[:60], b"zero.jpg": b"", b"text.jpg": b"hello",
        b"one.png": cv2.imencode(".png", image[:1, :1])[1].tobytes(), b"grey.png": cv2.imencode(".png", image[:, :, 0])[1].tobytes(),
        b"rgba.png": cv2.imencode(".png", np.dstack([image, image[:, :, 0]]))[1].tobytes(),
        b"rgb16.png": cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes(), b"float.tif": cv2.imencode(".tif", image.astype(np.float32))[1].tobytes(),
        b"bomb30k.png": png(30000, 30000), b"bomb100k.png": png(100000, 100000), b"bombmax.png": png(2**31 - 1, 2**31 - 1), b"bomb30k.jpg": bomb(30000),
        b"bomb65k.jpg": bomb(65500), b"bomb.ppm": b"P6\n30000 30000\n255\n" + bytes(100), b"bomb.pgm": b"P5\n1000000000 1000000000\n255\n",
        b"bomb.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(50), b"x.exr": b"\x76\x2f\x31\x01\x02\0\0\0" + bytes(50),
        b"caf\xe9.png": plain, b"\x1b[31mred.png": plain, b"[red].png": plain, b"with space.png": plain, b"=1+1.png": plain,
    }  # fmt: skip
    for name, data in files.items():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(data)
    os.mkfifo(folder / "fifo.jpg")
    (folder / "dir.jpg").mkdir()
    os.symlink("loop.jpg", folder / "loop.jpg")
    names = [os.fsdecode(n) for n in files] + [
        "fifo.jpg",
        "dir.jpg",
        "loop.jpg",
        "missing.png",
        "x" * 300 + ".png",
    ]
    (root / "out").mkdir()
    for name in names:
        (root / "list.txt").write_bytes(os.fsencode(f"{name} 1\nok.png 0\n"))
        for way in ("whole", "crop"):
            command(
                "images",
                f"score {way} {name!r:.40}",
                ["score", folder / name, "--weights", weights, "--mean-value", "9", "--path", way],
                root / "out",
            )
        for argv in (
            ["lmdb", "make", f"{folder}/", root / "list.txt", "db"],
            ["partition", "check", root / "list.txt", "--pictures", folder],
            ["sheet", root / "list.txt", "--root", f"{folder}/", "--out", "s.html"],
        ):
            command("images", f"{argv[0]} {name!r:.40}", argv, root / "out", may_leave=("db.partial",))
            shutil.rmtree(root / "out")
            (root / "out").mkdir()


def rows(root: Path, *_: object) -> None:
    """LMDBs that someone else made: keys that lead out, values that lie."""
    weights = write_net(root / "n")
    keys = [b"00000000_../../evil.png", b"00000000_/evil.png", b"00000000_..", b"00000000_", b"00000000_a\0b.png", b"00000000_a\nb.png", b"00000000_\xff\xfe.png", b"abc", b"00000000_\x1b[31m.png",
            b"00000000_<script>alert(1)</script>.png", b"00000000_" + b"x" * 480, b"9" * 400 + b"_x.png", b"00000000_list.txt/x.png"]  # fmt: skip
    values = [b"", b"\xff" * 50, datum(height=2**20, width=2**20), datum(channels=2**31 - 1), datum(height=-1), datum(encoded=True, data=b"hello"), datum(encoded=True, data=png(30000, 30000)),
              datum(encoded=True, data=png(100000, 100000)), datum(data=None, float_data=[float("nan")] * 192), datum(channels=1, height=24), datum(channels=2, height=12), datum(height=1, width=64)]  # fmt: skip
    cases = [(k, [(k, datum()), (b"00000001_b.png", datum(label=0))]) for k in keys]
    cases += [(v[:20], [(b"00000000_a.png", v), (b"00000001_b.png", datum(label=0))]) for v in values]
    for number, (name, content) in enumerate(cases):
        folder = root / f"r{number}"
        folder.mkdir()
        database = write_lmdb(folder / "db", content)
        for argv in (["lmdb", "info", database], ["lmdb", "check", database], ["lmdb", "export", database, "exp"], ["mean", database, "m.binaryproto"], ["sheet", database, "--out", "s.html"],
                     ["test", "own", "--weights", weights, "--lmdb", database, "--mean-value", "1", "--resize", "20", "--protocol", "full", "--out", "t"]):  # fmt: skip
            command("rows", f"{argv[0]} {argv[1]} {name!r:.40}", argv, folder, may_leave=("t",))
            page = folder / "s.html"
            if page.exists() and "<script>alert" in page.read_text(errors="replace"):
                found("rows", "a script reaches the page", repr(name))
        if any(root.parent.glob("evil*")) or any(root.glob("evil*")) or Path("/evil.png").exists():
            found("rows", "a key leads out of the folder", repr(name))
        shutil.rmtree(folder)
    # collisions, and a folder that is not ours
    database = write_lmdb(
        root / "db",
        [
            (b"00000000_00000002_a.png", datum()),
            (b"00000001_a.png", datum(label=0)),
            (b"00000002_a.png", datum()),
        ],
    )
    (root / "exp.partial").mkdir()
    (root / "exp.partial" / "mine.txt").write_text("mine")
    command("rows", "export", ["lmdb", "export", database, root / "exp"], root, may_leave=("exp",))
    if not (root / "exp.partial" / "mine.txt").exists():
        found("rows", "lmdb export removes a folder X.partial that it did not make", "exp.partial/mine.txt")
    if (root / "exp").exists() and len(list((root / "exp").rglob("*.png"))) != 3:
        found("rows", "lmdb export writes one image over another", "keys ..._00000002_a.png, a.png, a.png")


def files(root: Path, *_: object) -> None:
    """Metadata of safetensors, run.json, npz, npy, journals, logs; and text where an image is meant."""
    weights = write_net(root / "n")
    cv2.imwrite(str(root / "p.png"), np.zeros((20, 20, 3), np.uint8))
    command("files", "fixture", ["convert", weights, "--to", "safetensors,onnx,pt2", "--out", root], root, 60)
    good = root / "net.safetensors"
    raw = good.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]

    def safetensors(edit) -> Path:
        copy = json.loads(json.dumps(head))
        edit(copy)
        text = json.dumps(copy).encode()
        (root / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        return root / "x.safetensors"

    def score(label: str, path: Path) -> None:
        command(
            "files",
            f"score {label}",
            [
                "score",
                root / "p.png",
                "--weights",
                path,
                *([] if "preprocessing" in label else ["--mean-value", "9"]),
            ],
            root,
        )

    deep = "[" * 100000
    odd = ["", "5", "[1,2]", "null", "NaN", '"x"', deep, "\x00{", "9" * 5000]
    for key in head["__metadata__"]:
        for text in odd:
            score(f"{key}={text[:12]}", safetensors(lambda h: h["__metadata__"].__setitem__(key, text)))
    for text in (
        '["1"]',
        "[1.5,3,16,16]",
        '"1234"',
        "[[1],3,16,16]",
        "[-1,3,16,16]",
        "[1,3,1000000000,1000000000]",
        "[Infinity]",
        "null",
    ):
        path = safetensors(
            lambda h: h["__metadata__"].__setitem__("caffe.input_shapes", f'{{"data":{text}}}')
        )
        score(f"shapes {text}", path)
        command("files", f"compare shapes {text}", ["compare", path, good], root)
    base = {
        "size": [16, 16],
        "path": "whole",
        "resize": None,
        "order": "BGR",
        "mean_value": [1, 2, 3],
        "scale": 1.0,
        "has_mean_image": False,
    }
    wrong = {
        "size": [[16], ["a", "b"], [100000, 100000], [0, 0], None, [1.5, 1.5]],
        "resize": [[0, 0], [-1, 2], ["a", "b"], [1]],
        "mean_value": [[1, 2], ["a"], [[1]], 5],
        "scale": ["x", {}, 10**400],
        "order": [5],
        "path": [5],
    }
    for key, options in wrong.items():
        for option in options:
            for way in ("whole", "crop"):
                text = json.dumps({**base, "path": way, key: option})
                score(
                    f"preprocessing {way} {key}={str(option)[:20]}",
                    safetensors(lambda h: h["__metadata__"].__setitem__("preprocessing", text)),
                )
    for shown in ("1,2", "1,2,3,4", "a"):
        command(
            "files",
            f"--mean-value {shown}",
            ["score", root / "p.png", "--weights", weights, "--mean-value", shown],
            root,
        )
    for option in ("--size=100000", "--resize=-1", "--resize=99999999999"):
        command(
            "files",
            option,
            [
                "score",
                root / "p.png",
                "--weights",
                weights,
                "--path",
                "crop" if "resize" in option else "whole",
                "--mean-value",
                "1",
                option,
            ],
            root,
        )

    def header(shape: str, kind: str = "<f4") -> bytes:
        text = (
            f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        )
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text

    def zipped(data: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            file.writestr("data.npy", data)
        return buffer.getvalue()

    arrays = zipped(header("(2, 3, 16, 16)") + bytes(6144), zipfile.ZIP_DEFLATED)
    bad = bytearray(arrays)
    bad[60] ^= 255
    for label, data in {"no zip": b"PK\x03\x04garbage", "cut": arrays[:50], "empty": b"", "bomb": zipped(header("(40000, 40000, 10)")), "bad stream": bytes(bad), "deep": zipped(b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000),
                        "text": zipped(b"hello"), "words": zipped(header("(1,)", "<U1") + b"a\0\0\0"), "npy": header("(100000, 100000, 100)")}.items():  # fmt: skip
        (root / "z.npz").write_bytes(data)
        command(
            "files",
            f"npz {label}, compare",
            ["compare", good, root / "net.onnx", "--inputs", root / "z.npz"],
            root,
        )
        command(
            "files",
            f"npz {label}, caffe test",
            [
                "caffe",
                "test",
                "-model",
                root / "n/net.prototxt",
                "-weights",
                weights,
                "-iterations",
                "1",
                "-arrays",
                root / "z.npz",
            ],
            root,
        )
    for label, data in {
        "huge": header("(3, 100000, 100000)"),
        "zero": header("(3, 0, 0)"),
        "deep": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"[" * 9000,
        "object": header("(1,)", "|O") + b"\x80\x04.",
    }.items():
        (root / "m.npy").write_bytes(data)
        command("files", f"npy {label}, mean", ["mean", root / "m.npy"], root)
        command(
            "files",
            f"npy {label}, score",
            ["score", root / "p.png", "--weights", weights, "--mean-file", root / "m.npy"],
            root,
        )

    (root / "list.txt").write_text("p.png 1\np.png 0\n")
    test = [
        "test",
        "own",
        "--weights",
        weights,
        "--list",
        root / "list.txt",
        "--pictures",
        root,
        "--mean-value",
        "1",
        "--resize",
        "20",
        "--protocol",
        "full",
        "--out",
        root / "t",
    ]
    command("files", "fixture", test, root, 60)
    run = json.loads((root / "t/run.json").read_text())

    def report(text: bytes, label: str) -> None:
        shutil.rmtree(root / "rep", ignore_errors=True)
        (root / "rep").mkdir()
        (root / "rep/run.json").write_bytes(text)
        command("files", f"report {label}", ["report", root / "rep/run.json"], root / "rep", 20)
        page = root / "rep/report.html"
        if page.exists() and (
            "<script>alert" in page.read_text(errors="replace")
            or "<img src=x" in page.read_text(errors="replace")
        ):
            found("files", "a script reaches the report", label)

    for label, edit in {
        "dataset 5": {"dataset": 5}, "dataset list": {"dataset": []}, "protocol nan": {"protocol": float("nan")}, "protocol markup": {"protocol": "[/x]"}, "preprocessing 5": {"preprocessing": 5},
        "surrogate": {"protocol": "\ud800"}, "labels huge": {"pictures": {**run["pictures"], "labels": [10**30, 1]}}, "elapsed text": {"elapsed": "x"}, "batches size 0": {"batches": [{"index": 0, "size": 0, "correct": 0, "loss": 1.0}]},
        "scripts": dict.fromkeys(("dataset", "protocol", "preprocessing", "command", "list_order", "computed"), '"><img src=x onerror=alert(1)><script>alert(1)</script>'),
    }.items():  # fmt: skip
        report(json.dumps({**run, **edit}).encode(), label)
    report(deep.encode(), "deep")
    shutil.rmtree(root / "rep", ignore_errors=True)
    (root / "rep").mkdir()
    shutil.copy(root / "t/run.json", root / "rep/run.json")
    command(
        "files",
        "report over its input",
        ["report", root / "rep/run.json", "--out", root / "rep/run.html"],
        root / "rep",
        20,
    )
    if (root / "rep/run.json").read_bytes() != (root / "t/run.json").read_bytes():
        found("files", "report RUN.json --out RUN.html writes over RUN.json", "run.json")


def resumes(root: Path, *_: object) -> None:
    """Journals and half-built databases that were tampered with or damaged."""
    (root / "p").mkdir()
    for i in range(4):
        cv2.imwrite(str(root / f"p/{i}.png"), np.full((9, 9, 3), i, np.uint8))
    (root / "list.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(4)))
    make = ["lmdb", "make", f"{root}/p/", root / "list.txt", root / "db"]
    from ilgnet_repro.reading.image_list import ImageList
    from ilgnet_repro.reading.lmdb_build import BuildOptions
    from ilgnet_repro.reading.lmdb_build_journal import Journal

    plan = json.dumps(
        Journal(root / "zz", ImageList(root / "list.txt"), f"{root}/p/", asdict(BuildOptions())).plan
    ).encode()
    whole = (write_lmdb(root / "w", [(b"%08d_x" % i, datum()) for i in range(50)]) / "data.mdb").read_bytes()
    parts = {"build.json deep": {"build.json": b"[" * 200000}, "build.json zeros": {"build.json": bytes(9)}}
    for label, line in {
        "garbage": b"garbage\n",
        "zeros": bytes(50) + b"\n",
        "types": b'["x","y","z","w"]\n',
        "object": b'{"a":1}\n',
        "number": b"5\n",
        "bytes": b"\xff\n",
        "deep": b"[" * 200000 + b"\n",
        "torn": b'[1, "a"',
    }.items():
        parts[f"bad.jsonl {label}"] = {"build.json": plan, "bad.jsonl": line}
    for label, data in {
        "cut": whole[:6000],
        "garbage": os.urandom(20000),
        "empty": b"",
        "foreign": whole,
    }.items():
        parts[f"data.mdb {label}"] = {"build.json": plan, "db/data.mdb": data}
    for label, content in parts.items():
        for name in ("db", "db.partial"):
            shutil.rmtree(root / name, ignore_errors=True)
        for name, data in content.items():
            (root / "db.partial" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "db.partial" / name).write_bytes(data)
        command("resumes", label, make, root, may_leave=("db",))


PAYLOAD = "pwned"


def code(root: Path, *_: object) -> None:
    """Code in names and files must never run; and every name gives a file that works or one clear error."""
    mark = root / PAYLOAD
    names = [
        f'x""";open("{mark}","w");"""',
        "a\nb",
        "a\rb",
        'x"""\nimport os\n"""',
        "None",
        "True",
        "F",
        "__debug__",
        "__x",
        "//x",
        "[/x]",
        "\x1b[31m",
        "self",
        "it's",
        "é",
        "",
        "conv:Conv_1",
        "const_0",
        "a" * 300,
    ]

    def quoted(text: str) -> str:
        return "".join(c if c.isalnum() else "".join(f"\\{b:03o}" for b in c.encode()) for c in text)

    for number, name in enumerate(names):
        for what in ("net", "layer", "input", "output"):
            q = {k: k for k in ("net", "layer", "input", "output")} | {what: quoted(name)}
            text = (
                f'name: "{q["net"]}" layer {{ name: "data" type: "Input" top: "{q["input"]}" input_param {{ shape {{ dim: 1 dim: 3 dim: 6 dim: 6 }} }} }}'
                f'layer {{ name: "conv" type: "Convolution" bottom: "{q["input"]}" top: "c" convolution_param {{ num_output: 4 kernel_size: 3 }} }}'
                f'layer {{ name: "relu" type: "ReLU" bottom: "c" top: "c" }}'
                f'layer {{ name: "{q["layer"]}" type: "InnerProduct" bottom: "c" top: "{q["output"]}" inner_product_param {{ num_output: 2 }} }}'
            )
            folder = root / f"c{number}{what}"
            try:
                weights = write_net(folder, text)
            except IlgnetError:
                continue
            (folder / "out").mkdir()
            status, _ = command(
                "code",
                f"{what} {name!r:.40}, python",
                ["convert", weights, "--to", "python", "--verify", "--out", folder / "out"],
                folder,
                20,
            )
            if status == 1 and name not in ("",):
                found("code", "a name that Caffe takes cannot be written as python", f"{what} {name!r:.40}")
            command(
                "code",
                f"{what} {name!r:.40}, onnx",
                ["convert", weights, "--to", "onnx", "--verify", "--out", folder / "out"],
                folder,
                20,
            )
            command("code", f"{what} {name!r:.40}, audit", ["audit", folder / "net.prototxt"], folder)
            if mark.exists():
                found("code", "CODE IN A BLOB'S NAME RUNS (convert --to python)", f"{what} {name!r}")
                mark.unlink()
            shutil.rmtree(folder)
    # pickles and expressions in pt2 files
    weights = write_net(root / "n")
    command("code", "fixture", ["convert", weights, "--to", "safetensors,pt2", "--out", root], root, 60)

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    saved = io.BytesIO()
    torch.save(Evil(), saved)

    def edit(name: str, data: bytes, way: str) -> bytes:
        if way == "sample" and name.endswith("sample_inputs/model.pt"):
            return saved.getvalue()
        if way == "weight" and name.endswith("model_weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        if way == "weight" and name.endswith("weight_0"):
            return saved.getvalue()
        if way == "expression" and name.endswith("models/model.json"):
            return re.sub(
                rb'"expr_str": "[^"]*"',
                b"\"expr_str\": \"open('%s','w')\"" % str(mark).encode(),
                data,
                count=1,
            )
        return data

    for way in ("sample", "weight", "expression"):
        with zipfile.ZipFile(root / "net.pt2") as old, zipfile.ZipFile(root / "evil.pt2", "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, edit(entry.filename, old.read(entry), way))
        command(
            "code",
            f"compare, pt2 with a hostile {way}",
            ["compare", root / "net.safetensors", root / "evil.pt2"],
            root,
            30,
        )
        if mark.exists():
            found("code", "CODE IN A pt2 FILE RUNS (compare)", way)
            mark.unlink()


def onnx_files(root: Path, *_: object) -> None:
    weights = write_net(root / "n")
    command("onnx", "fixture", ["convert", weights, "--to", "safetensors,onnx", "--out", root], root, 60)
    good, seed = root / "net.safetensors", (root / "net.onnx").read_bytes()
    rng = random.Random(5)

    def check(label: str, data: bytes) -> None:
        (root / "x.onnx").write_bytes(data)
        for pair in ((good, root / "x.onnx"), (root / "x.onnx", good)):
            command("onnx", f"compare {label}", ["compare", *pair], root)

    for number in range(60):
        check(f"damaged {number}", damage(seed, rng))
    for dims in ((-1, 3, 16, 16), (2**40, 3, 16, 16), (1, 3), (), (1, 3, 16, 16, 1), (1, 3, 100000, 100000)):
        model = onnx.load_from_string(seed)
        shape = model.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for size in dims:
            shape.dim.add().dim_value = size
        check(f"dims {dims}", model.SerializeToString())
    for place in ("/etc/passwd", "../../../../../../etc/passwd", "/dev/zero"):
        model = onnx.load_from_string(seed)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, text in (("location", place), ("offset", "0"), ("length", "432")):
            tensor.external_data.add(key=key, value=text)
        check(f"external {place}", model.SerializeToString())


def models(root: Path, cases: int, seconds: float, rng: random.Random) -> None:
    """Score caches, models of scores, their states and lists, runs, journals and folders of fine-tuning."""
    hostile_models.prepare(root, command, write_net)
    first = rng.randrange(1 << 30)
    batch(
        "models",
        [first + k for k in range(cases)],
        lambda seed: hostile_models.hostile(seed, root, damage),
        seconds,
    )


TARGETS = {
    "formats": formats,
    "layers": layers,
    "lmdb": damaged_lmdb,
    "datum": datums,
    "images": images,
    "rows": rows,
    "files": files,
    "resumes": resumes,
    "code": code,
    "onnx": onnx_files,
    "models": models,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--show", type=int, default=40, help="kinds of defect shown for each group")
    args = parser.parse_args()
    chosen = [n for n in args.only.split(",") if n] or list(TARGETS)
    for name in chosen:
        root = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
        began = time.monotonic()
        try:
            TARGETS[name](root, args.cases, args.seconds, random.Random(args.seed))
        finally:
            shutil.rmtree(root, ignore_errors=True)
        kinds = GROUPS.get(name, Counter())
        print(
            f"{name}: {RUN[name]:,} cases, {sum(kinds.values())} defects of {len(kinds)} kinds, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for key, count in kinds.most_common(args.show):
            print(f"    {count:5} {key}   e.g. {FIRST[name, key][:150]}", flush=True)
    total = sum(sum(kinds.values()) for kinds in GROUPS.values())
    print(
        f"{sum(RUN.values()):,} cases in {len(chosen)} groups, {total} defects of {sum(map(len, GROUPS.values()))} kinds"
    )
    return 1 if total else 0


if __name__ == "__main__":
    raise SystemExit(main())
