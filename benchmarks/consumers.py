"""What consumers of our ONNX files make of them: nets of the zoo (an eighth of the channels) and small ones.

    python benchmarks/consumers.py [--venvs .make/consumers] [--only opencv4 ...] [--nets alexnet ...] [--write]
    python benchmarks/consumers.py --layers [--only onnxsim ...]

Every consumer runs in its own virtual environment, made on the first run (several GB), and in its own process.
With --write the figures go into docs/consumers.md, between the markers.  --layers takes every recorded layer instead, and
compares with what Caffe or its forks computed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from fork_nets import FORK_TEXTS  # noqa: E402
from golden_cases import (  # noqa: E402
    FORK_NAMES,
    NAMES,
    NOT_AS_ONNX,
    ROWS_IN_OTHER_ORDER_IN_ONNX,
    read_case,
)
from small_nets import SMALL_TEXT  # noqa: E402
from zoo_weights import NETS, drawn_net, narrow_text  # noqa: E402

import ilgnet_repro as ir  # noqa: E402
from ilgnet_repro.caffe.prototxt import parse_net  # noqa: E402
from ilgnet_repro.errors import IlgnetError  # noqa: E402
from ilgnet_repro.export.consumers import Job, Ran, run_consumer  # noqa: E402
from ilgnet_repro.export.onnx_graph import build_onnx  # noqa: E402
from ilgnet_repro.export.verify import seeded_inputs  # noqa: E402
from ilgnet_repro.runtime.net import CaffeNet  # noqa: E402

PAGE = ROOT / "docs" / "consumers.md"
START, END = "<!-- consumers:start -->", "<!-- consumers:end -->"
RIGHT = 1e-4  # of the largest value: another order of float32 sums


@dataclass(frozen=True)
class Consumer:
    """One row: what it is, what installs it, and how far its values may be off: `RIGHT`, or more where it rounds."""

    name: str
    run: str
    packages: tuple[str, ...]
    allowed: float = RIGHT
    needs_torch: bool = False
    zoo: tuple[str, ...] = NETS  # fewer for what takes minutes per net
    note: str = ""

    @property
    def nets(self) -> tuple[str, ...]:
        return (*self.zoo, *SMALL)


# For converters that take long.
FEW = ("squeezenet", "alexnet", "mobilenet", "resnet50", "mobilenet_ssd")
CONSUMERS = {
    "ort_old": Consumer("ONNX Runtime, the oldest that setup.cfg allows", "onnxruntime", ("onnxruntime==1.20.0",)),
    "ort_new": Consumer("ONNX Runtime, the newest", "onnxruntime", ("onnxruntime>=1.32",)),
    "openvino": Consumer("OpenVINO", "openvino", ("openvino",)),
    "cv4": Consumer(
        "OpenCV 4", "opencv", ("opencv-python-headless<5",),
        note="its limits: no And, GatherND, NonMaxSuppression or Scan (SSD, LSTM), a crash on scattered values, "
        "outputs of one axis have two; `--verify opencv` refuses each of these",
    ),
    "cv5": Consumer("OpenCV 5, new engine", "opencv", ("opencv-python-headless>=5",), note="its limit: no Scan (LSTM)"),
    "reference": Consumer(
        "the onnx package's reference implementation", "reference", (), zoo=(),
        note="in NumPy, the small nets only; its LRN is not that of the standard: `--fast-lrn` avoids it",
    ),
    "onnxsim": Consumer("onnxsim, then ONNX Runtime", "onnxsim", ("onnxsim", "onnxruntime"), zoo=FEW),
    "onnxslim": Consumer("onnxslim, then ONNX Runtime", "onnxslim", ("onnxslim", "onnxruntime"), zoo=FEW),
    "dynamic": Consumer(
        "ONNX Runtime's dynamic quantization", "dynamic",
        ("onnxruntime==1.31.1", "onnx", "onnxconverter-common", "sympy"), zoo=FEW,
        allowed=0.25, note="its eight bits: other detections of the SSD",
    ),
    "static": Consumer(
        "ONNX Runtime's static quantization", "static",
        ("onnxruntime==1.31.1", "onnx", "onnxconverter-common", "sympy"), zoo=FEW,
        allowed=0.25, note="its eight bits: other maxima in the pooling whose mask SegNet reads",
    ),
    "float16": Consumer(
        "onnxconverter-common's float16", "float16",
        ("onnxruntime==1.31.1", "onnx", "onnxconverter-common", "sympy"), zoo=FEW,
        allowed=2e-2, note="its limit: Cast nodes to float32 (SSD, SegNet); `--precision float16` writes such files",
    ),
    "onnx2torch": Consumer(
        "onnx2torch", "onnx2torch", ("--no-deps", "onnx2torch==1.5.15", "torchvision==0.29.2"), zoo=FEW, needs_torch=True,
        note="its limits: no ScatterElements or Scan (SSD, SegNet, LSTM)",
    ),
    "pnnx": Consumer(
        "pnnx, then ncnn", "pnnx", ("pnnx", "ncnn"), zoo=FEW,
        note="their limits: no batch axis, no scattering, no reduction of all axes",
    ),
    "litert": Consumer(
        "litert-torch, then LiteRT (`--to tflite`)", "litert", ("litert-torch",), zoo=FEW, needs_torch=True,
    ),
    "onnx2tf": Consumer("onnx2tf, then LiteRT", "tflite", ("onnx2tf",), zoo=FEW),
    "coreml": Consumer(
        "coremltools, from the torch source", "coremltools", ("coremltools",), zoo=FEW, needs_torch=True,
        note="Core ML runs on macOS only: elsewhere it is converted, not run",
    ),
}  # fmt: skip

_RECURRENT = """
name: "lstm"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 5 dim: 1 dim: 6 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 5 dim: 1 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 8 } }
layer { name: "y" type: "InnerProduct" bottom: "h" top: "y" inner_product_param { num_output: 3 axis: 2 } }
"""
_IMAGE = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 24 } } }\n'
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param {'
    " num_output: 8 kernel_size: 3 pad: 1 } }\n"
)
SMALL = {
    "small": SMALL_TEXT,
    "segnet": _IMAGE + """
layer { name: "p" type: "Pooling" bottom: "c" top: "p" top: "m" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "u" type: "Upsample" bottom: "p" bottom: "m" top: "u" upsample_param { scale: 2 } }
layer { name: "d" type: "Convolution" bottom: "u" top: "d" convolution_param { num_output: 2 kernel_size: 3 } }
""",
    "squeeze and excitation": _IMAGE + """
layer { name: "g" type: "Pooling" bottom: "c" top: "g" pooling_param { pool: AVE global_pooling: true } }
layer { name: "f" type: "Convolution" bottom: "g" top: "f" convolution_param { num_output: 8 kernel_size: 1 } }
layer { name: "s" type: "Sigmoid" bottom: "f" top: "s" }
layer { name: "flat" type: "Flatten" bottom: "s" top: "flat" }
layer { name: "y" type: "Scale" bottom: "c" bottom: "flat" top: "y" scale_param { axis: 0 } }
""",
    "enlarged": _IMAGE + """
layer { name: "i" type: "Interp" bottom: "c" top: "i" interp_param { height: 31 width: 37 } }
layer { name: "n" type: "Upsample" bottom: "c" top: "n" upsample_param { scale: 2 } }
""",
    "normalized": _IMAGE + """
layer { name: "m" type: "MVN" bottom: "c" top: "m" }
layer { name: "l" type: "LRN" bottom: "m" top: "l" lrn_param { local_size: 5 alpha: 0.1 } }
layer { name: "s" type: "Slice" bottom: "l" top: "s1" top: "s2" slice_param { slice_point: 3 } }
layer { name: "e" type: "PReLU" bottom: "s1" top: "e" }
""",
    "reduced": _IMAGE + """
layer { name: "r" type: "Reduction" bottom: "c" top: "r" reduction_param { operation: SUMSQ axis: 1 } }
""",
    "batch statistics": _IMAGE + """
layer { name: "y" type: "BatchNorm" bottom: "c" top: "y" batch_norm_param { use_global_stats: false } }
""",
    "average pooling": _IMAGE + """
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "q" type: "SPP" bottom: "p" top: "q" spp_param { pyramid_height: 2 } }
""",
    "lstm": _RECURRENT,
    **FORK_TEXTS,
}  # fmt: skip


@dataclass(frozen=True)
class Net:
    """One net: its inputs and outputs, and the folder of its files."""

    name: str
    folder: Path
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @property
    def job(self) -> Job:
        return Job(self.folder / "net.onnx", self.inputs, list(self.outputs))


def make_nets(folder: Path, chosen: Sequence[str]) -> Iterator[Net]:
    """Write the nets' files."""
    for name in [*NETS, *SMALL]:
        if chosen and name not in chosen:
            continue
        net = drawn_net(narrow_text(name) if name in NETS else parse_net(SMALL[name]))
        inputs = {key: _scaled(value) for key, value in seeded_inputs(net, 1).items()}
        place = folder / name.replace(" ", "_")
        place.mkdir()
        with torch.inference_mode():
            outputs = {key: value.numpy() for key, value in net(inputs).items()}
        onnx.save(build_onnx(net), str(place / "net.onnx"))
        _save_source(net, place)
        yield Net(name, place, {key: value.numpy() for key, value in inputs.items()}, outputs)


def make_layers(folder: Path) -> Iterator[Net]:
    """Write the files of all recorded layers that ONNX can hold."""
    for name in (*NAMES, *FORK_NAMES):
        case, place = read_case(name), folder / name
        place.mkdir()
        net = case.net(place)
        if name in (*NOT_AS_ONNX, *ROWS_IN_OTHER_ORDER_IN_ONNX):
            continue
        if any(layer.no_onnx for _, layer in net.steps(net.outputs)):
            continue
        onnx.save(build_onnx(net), str(place / "net.onnx"))
        read = net.inputs_for(net.outputs)
        yield Net(name, place, {key: case.inputs[key] for key in read}, case.outputs)


def _scaled(value: torch.Tensor) -> torch.Tensor:
    return value / 50 if value.ndim == 4 else value


def _save_source(net: CaffeNet, place: Path) -> None:
    try:
        ir.save(net, place / "net.py")
    except IlgnetError as error:
        print(f"{place.name}: no source: {error}", file=sys.stderr)


def python_of(key: str, venvs: Path) -> str:
    """Return the interpreter of a consumer's environment, made where it is not there yet."""
    consumer = CONSUMERS[key]
    if not consumer.packages:
        return sys.executable
    folder = venvs / ("quant" if "onnxconverter-common" in consumer.packages else key)
    python = folder / "bin" / "python"
    if not python.is_file():
        print(f"installing {', '.join(consumer.packages)} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        if consumer.needs_torch:  # that of this package's environment, which pip then finds installed
            code = "import sysconfig; print(sysconfig.get_path('purelib'))"
            place = subprocess.run(
                [str(python), "-c", code], capture_output=True, text=True, check=True
            ).stdout.strip()
            Path(place, "own.pth").write_text(sysconfig.get_path("purelib"))
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *consumer.packages], check=True)
    return str(python)


def off_by(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the output's largest value; inf for another shape or no number."""
    largest = 0.0
    for name, value in expected.items():
        other = found.get(name)
        if (
            other is None
            or other.shape != value.shape
            or not np.array_equal(np.isfinite(other), np.isfinite(value))
        ):
            return float("inf")
        apart = np.abs(other.astype(np.float64) - value)
        largest = max(largest, float(apart.max(initial=0) / max(1e-6, np.abs(value).max(initial=0))))
    return largest


def row_of(key: str, nets: Sequence[Net], found: Sequence[Ran]) -> tuple[str, list[str]]:
    """Return a consumer's row of the table, and what it refuses or computes otherwise, with its own reason."""
    consumer, details = CONSUMERS[key], []
    right, refused, wrong, most = 0, 0, 0, 0.0
    for net, one in zip(nets, found, strict=True):
        if one.outputs is None:
            refused += 1
            details.append(f"{net.name}: {one.failed[:160]}")
            continue
        if not one.outputs:  # converted, not run
            right += 1
            continue
        apart = off_by(one.outputs, net.outputs)
        if apart <= consumer.allowed:
            right, most = right + 1, max(most, apart)
        else:
            wrong += 1
            how = (
                "another shape, or other values without a number"
                if np.isinf(apart)
                else f"off by {apart:.2g}"
            )
            details.append(f"{net.name}: **{how}**")
    version = next((one.version for one in found if one.version), "").partition("-")[0]
    is_run = any(one.outputs for one in found)
    how = (str(right), f"{most:.1e}") if is_run else (f"{right} converted", "not run")
    return (
        f"| {consumer.name} | {version} | {how[0]} | {how[1]} | {refused} | {wrong} | {consumer.note} |",
        details,
    )


def report(rows: Sequence[tuple[str, str, list[str]]]) -> str:
    """Return the generated part of the page."""
    lines = [
        "| consumer | version | right | largest difference | refuses | computes otherwise | |",
        "|---|---|---|---|---|---|---|", *[row for _, row, _ in rows], "",
        "Refused, or computed otherwise, with the consumer's own words:", "",
    ]  # fmt: skip
    for key, _, details in rows:
        if details:
            lines += [f"- {CONSUMERS[key].name}", *[f"  - {_plain(detail)}" for detail in details]]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a consumer's message as text that is no markup, without its temporary files."""
    text = re.sub(r"(\\x1b|\x1b)\[[0-9;]*m|/tmp/\S+/", "", text)
    return "".join(f"\\{char}" if char in "<>[]_`|" else char for char in text)


def run_layers(keys: Sequence[str], venvs: Path) -> int:
    """Let consumers run every recorded layer; print what each refuses or computes otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        nets = list(make_layers(Path(folder)))
        for key in keys:
            found = run_consumer(CONSUMERS[key].run, [net.job for net in nets], python_of(key, venvs))
            row, details = row_of(key, nets, found)
            print(row, *details, sep="\n  ", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venvs", default=str(ROOT / ".make" / "consumers"))
    parser.add_argument("--only", nargs="+", choices=CONSUMERS, default=list(CONSUMERS))
    parser.add_argument("--nets", nargs="+", default=[], choices=[*NETS, *SMALL])
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.layers:
        return run_layers(args.only, Path(args.venvs))
    store = Path(args.venvs) / "results.json"  # so that one consumer can be measured again
    stored = json.loads(store.read_text()) if store.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        nets = list(make_nets(Path(folder), args.nets))
        for key in args.only:
            chosen = [net for net in nets if net.name in CONSUMERS[key].nets]
            python = python_of(key, Path(args.venvs))
            found = run_consumer(CONSUMERS[key].run, [net.job for net in chosen], python)
            stored[key] = row_of(key, chosen, found)
            print(stored[key][0], *stored[key][1], sep="\n  ", flush=True)
            store.write_text(json.dumps(stored, indent=1))
    if args.write:
        text = report([(key, *stored[key]) for key in CONSUMERS if key in stored])
        page = PAGE.read_text()
        before, _, rest = page.partition(START)
        PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
