"""Run as a child process: what it is before and after the library's work, and what that work changed, as JSON."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import locale
import logging
import os
import random
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py  # noqa: F401
import lmdb  # noqa: F401
import numpy as np
import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import safetensors.torch  # noqa: F401
import sympy  # noqa: F401  # torch.export imports it, and it adds a filter of warnings as it is imported
import torch
import torch.export
from small_nets import SMALL_TEXT, write_weights
from train_cases import settings_of

import ilgnet_repro as ir
from ilgnet_repro.reading.lmdb_build import build_lmdb
from ilgnet_repro.reading.lmdb_check import check_lmdb
from ilgnet_repro.reading.lmdb_export import export_lmdb
from ilgnet_repro.reading.mean import compute_mean
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.train.loop import Trainer
from ilgnet_repro.train.solver import read_settings

C = ctypes.CDLL(None)
C.malloc.restype, C.malloc.argtypes, C.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
MIB = 1 << 20
TRAINED_TEXT = """
name: "trained"
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 6 } shape { dim: 4 } data_filler { type: "gaussian" } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def taken_and_returned(size: int) -> tuple[bool, bool]:
    """Whether malloc takes a block from the kernel by itself, and returns it: by default from 32 MiB at most."""

    def held() -> int:
        return int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024

    before = held()
    block = C.malloc(size)
    after = held()
    C.free(block)
    return after - before >= size, after - held() >= size


def snapshot() -> dict[str, Any]:
    status, smaps = (Path("/proc/self", name).read_text() for name in ("status", "smaps"))
    flags = [line.split() for line in smaps.splitlines() if line.startswith("VmFlags")]
    numbers = sorted(number for number in signal.valid_signals() if isinstance(number, signal.Signals))
    numpy_state = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
    return {
        "malloc": [taken_and_returned(mib * MIB) for mib in (33, 100, 250)],
        "huge pages": sum("hg" in line for line in flags),
        "umask": re.findall(r"Umask:\s+(\d+)", status),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "dont_write_bytecode": sys.dont_write_bytecode,
        "path": list(sys.path),
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "hooks": [id(sys.excepthook), id(sys.displayhook), id(threading.excepthook)],
        "recursion limit": sys.getrecursionlimit(),
        "garbage collector": [gc.isenabled(), gc.get_threshold()],
        "locale": locale.setlocale(locale.LC_ALL),
        "socket timeout": socket.getdefaulttimeout(),
        "signal handlers": {number.name: repr(signal.getsignal(number)) for number in numbers},
        "warning filters": [repr(one) for one in warnings.filters],
        "logging": [logging.root.level, repr(logging.root.handlers), logging.root.manager.disable],
        "random": digest(random.getstate()),
        "NumPy's random state": digest(numpy_state),
        "NumPy's error state": np.geterr(),
        "torch's random state": digest(torch.get_rng_state().tolist()),
        "torch's threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch's defaults": [
            str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled(),
            torch.is_anomaly_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled,
            torch.backends.quantized.engine, torch.backends.cudnn.benchmark,
        ],
        "OpenCV": [cv2.getNumThreads(), cv2.utils.logging.getLogLevel(), cv2.useOptimized()],
    }  # fmt: skip


def work(folder: Path, watch: Callable[[], None]) -> None:
    """What users of the library do; ``watch`` is called while it is under way."""
    weights, text = folder / "small.caffemodel", folder / "small.prototxt"
    rows = ["a.png 0\n", "b.png 1\n"]
    (folder / "list.txt").write_text("".join(rows))
    build_lmdb(folder, folder / "list.txt", folder / "db", progress=lambda done, rows: watch())
    check_lmdb(folder / "db", progress=lambda done, rows: watch())
    compute_mean(folder / "db", progress=lambda done, rows: watch())
    export_lmdb(folder / "db", folder / "exported")

    net = ir.load(weights, text)
    batch = torch.ones(2, 3, 9, 7)
    net(data=batch)
    said: list[str] = []  # "auto" says on stderr what it chose, unless the caller takes it
    ir.fast(net, "float16", log=said.append)(data=batch)
    large = ir.load_net(folder / "large.prototxt")  # its weights would be worth a move to huge pages
    ir.fast(large, log=said.append)(data=torch.ones(1, 3000))
    preprocessing = Preprocessing(size=(9, 7), mean_value=(104.0, 117.0, 123.0))
    images = [folder / "a.png", folder / "b.png"]
    ir.score(images, weights, prototxt=text, preprocessing=preprocessing)
    formats = ["safetensors", "onnx", "pt2", "python", "caffemodel", "hdf5"]
    ir.convert(weights, text, formats, folder / "converted", verify=True, preprocessing=preprocessing)
    for suffix in (".safetensors", ".onnx", ".pt2", ".py", ".caffemodel", ".caffemodel.h5"):
        ir.save(net, folder / "saved" / f"net{suffix}")
    for settings in (settings_of("sgd_fixed", folder), read_settings(folder / "solver.prototxt", folder)):
        trainer = Trainer(settings)
        trainer.step(3)
        trainer.snapshot()
        watch()


def prepare(folder: Path) -> None:
    (folder / "saved").mkdir()
    (folder / "converted").mkdir()
    write_weights(folder / "small.caffemodel")
    (folder / "small.prototxt").write_text(SMALL_TEXT)
    (folder / "large.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3000 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 6000 } }'
    )
    (folder / "trained.prototxt").write_text(TRAINED_TEXT)
    (folder / "solver.prototxt").write_text(
        'net: "trained.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 snapshot_prefix: "trained"'
    )
    for name in "ab":
        image = np.random.default_rng(ord(name)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), image)


def main() -> None:
    folder = Path(sys.argv[1])
    tuned = sys.argv[2:] == ["tuned"]
    prepare(folder)
    before = snapshot()
    seen: list[dict[str, Any]] = []
    if tuned:
        ir.tune_process()
    work(folder, lambda: seen.append(snapshot()))
    after = snapshot()
    changed = {
        key: [before[key], one[key]] for one in [*seen, after] for key in before if before[key] != one[key]
    }
    print(json.dumps({"watched": len(seen), "changed": changed, "malloc": before["malloc"]}))


if __name__ == "__main__":
    main()
