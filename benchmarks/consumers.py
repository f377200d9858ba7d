"""What consumers of our ONNX files make of them: nets of the zoo (an eighth of the channels), small and deployed ones.

    python benchmarks/consumers.py [--venvs .make/consumers] [--only opencv4 ...] [--nets alexnet ...] [--again] [--write]
    python benchmarks/consumers.py --layers [--only onnxsim ...]

Every consumer runs in its own virtual environment, made on the first run (several GB), and in its own process.
What was measured is kept beside the environments, so that a run that was stopped continues where it was; a net whose file
has changed since, or --again, is measured again.  With --write the figures go into docs/consumers.md, between the markers.
--layers takes every recorded layer instead, and compares with what Caffe or its forks computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import onnx
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from deployed_nets import deployed_nets  # noqa: E402
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
AT_ONCE = 6  # nets that one process of a consumer runs, after which they are kept


@dataclass(frozen=True)
class Consumer:
    """One row: what it is, what installs it, and how far its values may be off: `RIGHT`, or more where it rounds."""

    name: str
    run: str
    packages: tuple[str, ...]
    allowed: float = RIGHT
    needs_torch: bool = False
    small_only: bool = False
    note: str = ""

    def runs(self, net: Net) -> bool:
        return not self.small_only or net.name in SMALL


CONSUMERS = {
    "ort_old": Consumer("ONNX Runtime, the oldest that setup.cfg allows", "onnxruntime", ("onnxruntime==1.20.0",)),
    "ort_new": Consumer("ONNX Runtime, the newest", "onnxruntime", ("onnxruntime>=1.32",)),
    "openvino": Consumer(
        "OpenVINO", "openvino", ("openvino",),
        note="near ties: one of 92160 maxima in the mask that SegNet reads, boxes of Proposal and DetectionOutput",
    ),
    "cv4": Consumer(
        "OpenCV 4", "opencv", ("opencv-python-headless<5",),
        note="its limits: no And, GatherND, NonMaxSuppression or Scan (SSD, Proposal, LSTM), a crash on scattered values, "
        "outputs of one axis have two; `--verify opencv` refuses each of these",
    ),
    "cv5": Consumer(
        "OpenCV 5, new engine", "opencv", ("opencv-python-headless>=5",),
        note="its limits: no Scan (LSTM), no Proposal; near ties: SegNet, DetectionOutput",
    ),
    "reference": Consumer(
        "the onnx package's reference implementation", "reference", (), small_only=True,
        note="in NumPy, the small nets only; its LRN is not that of the standard: `--fast-lrn` avoids it",
    ),
    "onnxsim": Consumer("onnxsim, then ONNX Runtime", "onnxsim", ("onnxsim", "onnxruntime")),
    "onnxslim": Consumer("onnxslim, then ONNX Runtime", "onnxslim", ("onnxslim", "onnxruntime")),
    "dynamic": Consumer(
        "ONNX Runtime's dynamic quantization", "dynamic",
        ("onnxruntime==1.31.1", "onnx", "onnxconverter-common", "sympy"),
        allowed=0.25, note="its eight bits: other detections of the SSD",
    ),
    "static": Consumer(
        "ONNX Runtime's static quantization", "static",
        ("onnxruntime==1.31.1", "onnx", "onnxconverter-common", "sympy"),
        allowed=0.25, note="its eight bits: other maxima in the pooling whose mask SegNet reads",
    ),
    "float16": Consumer(
        "onnxconverter-common's float16", "float16",
        ("onnxruntime==1.31.1", "onnx", "onnxconverter-common", "sympy"),
        allowed=2e-2, note="its limit: Cast nodes to float32 (SSD, SegNet); `--precision float16` writes such files",
    ),
    "onnx2torch": Consumer(
        "onnx2torch", "onnx2torch", ("--no-deps", "onnx2torch==1.5.15", "torchvision==0.29.2"), needs_torch=True,
        note="its limits: no ScatterElements or Scan (SSD, SegNet, LSTM)",
    ),
    "pnnx": Consumer(
        "pnnx, then ncnn", "pnnx", ("--no-deps", "pnnx", "ncnn"), needs_torch=True,
        note="their limits: no batch axis, no scattering, no reduction of all axes",
    ),
    "litert": Consumer(
        "litert-torch, then LiteRT (`--to tflite`)", "litert", ("litert-torch",), needs_torch=True,
    ),
    "onnx2tf": Consumer("onnx2tf, then LiteRT", "onnx2tf", ("onnx2tf",)),
    "coreml": Consumer(
        "coremltools, from the torch source", "coremltools", ("coremltools",), needs_torch=True,
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
    def digest(self) -> str:
        return hashlib.sha256((self.folder / "net.onnx").read_bytes()).hexdigest()

    @property
    def job(self) -> Job:
        return Job(self.folder / "net.onnx", self.inputs, list(self.outputs))


def make_nets(folder: Path, chosen: Sequence[str]) -> Iterator[Net]:
    """Write the nets' files."""
    for name, net, inputs in _nets(chosen):
        place = folder / name.replace(" ", "_")
        place.mkdir()
        with torch.inference_mode():
            outputs = {key: value.numpy() for key, value in net(inputs).items()}
        onnx.save(build_onnx(net), str(place / "net.onnx"))
        _save_source(net, place)
        yield Net(name, place, {key: value.numpy() for key, value in inputs.items()}, outputs)


def _nets(chosen: Sequence[str]) -> Iterator[tuple[str, CaffeNet, dict[str, torch.Tensor]]]:
    for name in [*NETS, *SMALL]:
        if not chosen or name in chosen:
            net = drawn_net(narrow_text(name) if name in NETS else parse_net(SMALL[name]))
            yield name, net, {key: _scaled(value) for key, value in seeded_inputs(net, 1).items()}
    yield from (one for one in deployed_nets() if not chosen or one[0] in chosen)


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
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
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
        ready.touch()
    return str(python)


@dataclass(frozen=True)
class Measured:
    """What one consumer made of one net: how far it is off (None for converted, not run), or why that is not known."""

    digest: str
    version: str
    apart: float | None = None
    refused: str = ""
    otherwise: str = ""


def measure(net: Net, one: Ran) -> Measured:
    if one.outputs is None:
        return Measured(net.digest, one.version, refused=one.failed[:160])
    if not one.outputs:
        return Measured(net.digest, one.version)
    largest = 0.0
    for name, value in net.outputs.items():
        other, how = one.outputs.get(name), ""
        if other is None:
            how = f"no output {name}"
        elif other.shape != value.shape:
            how = f"shape {list(other.shape)} for {list(value.shape)}"
        elif other.dtype != value.dtype:
            how = f"{other.dtype} for {value.dtype}"
        elif not np.array_equal(np.isfinite(other), np.isfinite(value)):
            how = "other values without a number"
        if how or other is None:
            return Measured(net.digest, one.version, otherwise=how)
        finite = np.isfinite(value)
        apart = np.abs(other[finite].astype(np.float64) - value[finite])
        largest = max(largest, float(apart.max(initial=0) / max(1e-6, np.abs(value[finite]).max(initial=0))))
    return Measured(net.digest, one.version, largest)


def row_of(key: str, found: dict[str, Measured]) -> tuple[str, list[str]]:
    """Return a consumer's row of the table, and what it refuses or computes otherwise, with its own reason."""
    consumer, details = CONSUMERS[key], []
    right, refused, wrong, most = 0, 0, 0, None
    for name, one in found.items():
        if one.refused:
            refused += 1
            details.append(f"{name}: {one.refused}")
        elif one.otherwise or (one.apart is not None and one.apart > consumer.allowed):
            wrong += 1
            details.append(f"{name}: **{one.otherwise or f'off by {one.apart:.2g}'}**")
        else:
            right += 1
            most = one.apart if most is None else max(most, one.apart or 0.0)
    version = next((one.version for one in found.values() if one.version), "").partition("-")[0]
    how = (str(right), f"{most:.1e}") if most is not None else (f"{right} converted", "not run")
    return (
        f"| {consumer.name} | {version} | {how[0]} | {how[1]} | {refused} | {wrong} | {consumer.note} |",
        details,
    )


def read_rows(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return the rows of the page as it is, by consumer, each with its details."""
    found: dict[str, tuple[str, list[str]]] = {}
    for key, consumer in CONSUMERS.items():
        for line in text.splitlines():
            if line.startswith(f"| {consumer.name} |"):
                details = text.partition(f"\n- {consumer.name}\n")[2].splitlines()
                found[key] = (
                    line,
                    [
                        one.removeprefix("  - ")
                        for one in takewhile(lambda one: one.startswith("  - "), details)
                    ],
                )
    return found


def report(rows: dict[str, tuple[str, list[str]]]) -> str:
    """Return the generated part of the page."""
    lines = [
        "| consumer | version | right | largest difference | refuses | computes otherwise | |",
        "|---|---|---|---|---|---|---|", *[rows[key][0] for key in CONSUMERS if key in rows], "",
        "Refused, or computed otherwise, with the consumer's own words:", "",
    ]  # fmt: skip
    for key, consumer in CONSUMERS.items():
        if key in rows and rows[key][1]:
            lines += [f"- {consumer.name}", *[f"  - {detail}" for detail in rows[key][1]]]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return a consumer's message as text that is no markup, without its temporary files."""
    text = re.sub(r"(\\x1b|\x1b)\[[0-9;]*m|/tmp/\S+/", "", text)
    return "".join(f"\\{char}" if char in "<>[]_`|" else char for char in text)


def run_nets(key: str, nets: Sequence[Net], venvs: Path, kept: dict[str, Measured]) -> Iterator[None]:
    """Let a consumer run the nets that are not in `kept` as they are now, a few at once."""
    missing = [net for net in nets if net.name not in kept or kept[net.name].digest != net.digest]
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        found = run_consumer(CONSUMERS[key].run, [net.job for net in some], python_of(key, venvs))
        kept.update({net.name: measure(net, one) for net, one in zip(some, found, strict=True)})
        yield


def show(key: str, found: dict[str, Measured]) -> None:
    row, details = row_of(key, found)
    print(row, *details, sep="\n  ", flush=True)


def run_layers(keys: Sequence[str], venvs: Path) -> int:
    """Let consumers run every recorded layer; print what each refuses or computes otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        nets = list(make_layers(Path(folder)))
        for key in keys:
            found = run_consumer(CONSUMERS[key].run, [net.job for net in nets], python_of(key, venvs))
            show(key, {net.name: measure(net, one) for net, one in zip(nets, found, strict=True)})
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venvs", default=str(ROOT / ".make" / "consumers"))
    parser.add_argument("--only", nargs="+", choices=CONSUMERS, default=list(CONSUMERS))
    parser.add_argument("--nets", nargs="+", default=[], metavar="NET")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.layers:
        return run_layers(args.only, Path(args.venvs))
    store = Path(args.venvs) / "results.json"
    text = store.read_text() if store.is_file() else "{}"
    kept = {
        key: {name: Measured(**one) for name, one in nets.items()} for key, nets in json.loads(text).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        nets = list(make_nets(Path(folder), args.nets))
        for key in args.only:
            chosen = [net for net in nets if CONSUMERS[key].runs(net)]
            found = kept.setdefault(key, {})
            if args.again:
                for net in chosen:
                    found.pop(net.name, None)
            for _ in run_nets(key, chosen, Path(args.venvs), found):
                lines = {of: {name: asdict(one) for name, one in row.items()} for of, row in kept.items()}
                store.write_text(json.dumps(lines, indent=1))
            if not args.nets:  # in the nets' order; nets that there are no longer are left out
                kept[key] = {net.name: found[net.name] for net in chosen}
            show(key, kept[key])
    if args.write:
        page = PAGE.read_text()
        before, _, rest = page.partition(START)
        old, _, after = rest.partition(END)
        rows = read_rows(old)  # those of consumers that have not run every net stay
        for key, measured in kept.items():
            if all(net.name in measured for net in nets if CONSUMERS[key].runs(net)):
                row, details = row_of(key, measured)
                rows[key] = (row, [_plain(detail) for detail in details])
        PAGE.write_text(f"{before}{START}\n{report(rows)}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
