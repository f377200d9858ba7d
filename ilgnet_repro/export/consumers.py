"""Consumers of ONNX files, run in processes of their own: what they compute is compared with the net."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IlgnetError, excerpt

SCRIPT = Path(__file__).with_name("run_consumer.py")
SECONDS = 1800
# Consumer -> the modules that it needs, and what installs them.  Those that quantize are none: their numbers are others.
VERIFIERS: dict[str, tuple[tuple[str, ...], str]] = {
    "onnxruntime": (("onnxruntime",), "pip install 'ilgnet_repro[runtime]'"),
    "openvino": (("openvino",), "pip install 'ilgnet_repro[openvino]'"),
    "opencv": (("cv2",), "pip install opencv-python-headless"),
    "reference": (("onnx",), "pip install onnx"),
    "onnxsim": (("onnxsim", "onnxruntime"), "pip install onnxsim onnxruntime"),
    "onnxslim": (("onnxslim", "onnxruntime"), "pip install onnxslim onnxruntime"),
    "onnx2torch": (("onnx2torch", "torchvision"), "pip install --no-deps onnx2torch torchvision"),
    "onnx2tf": (("onnx2tf", "ai_edge_litert"), "pip install onnx2tf"),
    "pnnx": (("pnnx", "ncnn"), "pip install pnnx ncnn"),
}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One model for a consumer: its file, its inputs, and the outputs that are wanted."""

    model: Path
    inputs: Mapping[str, np.ndarray]
    wanted: Sequence[str]


@dataclass(frozen=True)
class Ran:
    """What a consumer made of a job: its version and its outputs, or why there are none."""

    version: str = ""
    outputs: Arrays | None = None
    failed: str = ""


def run_consumer(consumer: str, jobs: Sequence[Job], python: str = sys.executable) -> list[Ran]:
    """Let a consumer run each job; where it crashes, it starts again with the next one."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index, job in enumerate(jobs):
            given, made = Path(folder, f"{index}.in.npz"), Path(folder, f"{index}.out.npz")
            values = {f"value_{number}": value for number, value in enumerate(job.inputs.values())}
            _save(given, {"names": list(job.inputs), "wanted": list(job.wanted), **values})
            files.append((str(job.model.resolve()), str(given), str(made)))
        found: list[Ran] = []
        while len(found) < len(jobs):
            rest = [name for three in files[len(found) :] for name in three]
            code = _start([python, str(SCRIPT), consumer, *rest], folder)
            for job, (_, _, outputs) in zip(jobs[len(found) :], files[len(found) :], strict=True):
                one = _read(Path(outputs), job.wanted)
                found.append(one or Ran(failed=f"it crashes (exit {code})"))
                if one is None:
                    break
        return found


def _start(command: list[str], folder: str) -> int | str:
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, timeout=SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return f"after {SECONDS} seconds"


def _read(made: Path, wanted: Sequence[str]) -> Ran | None:
    failed = made.with_name(f"{made.name}.failed")
    if failed.is_file():
        return Ran(failed=excerpt(" ".join(failed.read_text(errors="replace").split()), 300))
    if not made.is_file():
        return None
    with np.load(made) as file:
        values = {name: file[f"value_{i}"] for i, name in enumerate(wanted) if f"value_{i}" in file}
        return Ran(str(file["version"]), values)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def check_verifier(consumer: str) -> None:
    """Raise IlgnetError unless the consumer is one that verifies and is installed."""
    if consumer not in VERIFIERS:
        raise IlgnetError(f"verify={consumer!r}: choose one of {', '.join(VERIFIERS)}", option="verify")
    modules, remedy = VERIFIERS[consumer]
    for module in (name for name in modules if find_spec(name) is None):
        raise IlgnetError(f"verify={consumer!r}: {module} is not installed; {remedy}", option="verify")
