"""Every recorded layer and every recorded random net through the lowest and the newest opset, in ONNX Runtime.

    python tests/helpers/opset_sweep.py [--opsets 13,26] [--random ../shared/golden/random]

Layers are compared with what Caffe or its forks computed, random nets with what this package computes (which other checks
compare with Caffe).  The random nets are not part of the repository; without them that part is left out, with a line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from golden_cases import FORK_NAMES, NAMES, NOT_AS_ONNX, ROWS_IN_OTHER_ORDER_IN_ONNX, read_case, tolerance
from places import SHARED

import ilgnet_repro as ir
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.onnx_opsets import LOWEST, newest
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.onnx_net import open_session

Arrays = dict[str, np.ndarray]


def layers() -> Iterator[tuple[str, CaffeNet, Arrays, Arrays]]:
    for name in (*NAMES, *FORK_NAMES):
        case = read_case(name)
        with tempfile.TemporaryDirectory() as folder:
            yield name, case.net(Path(folder)), case.inputs, case.outputs


def random_nets(folder: Path) -> Iterator[tuple[str, CaffeNet, Arrays, Arrays]]:
    """Yield the nets that this package runs; it refuses labels past their range, which Caffe reads out of bounds."""
    for path in sorted(folder.glob("n*.npz")):
        with np.load(path) as file:
            arrays = dict(file)
        inputs = {key.removeprefix("in/"): value for key, value in arrays.items() if key.startswith("in/")}
        with tempfile.TemporaryDirectory() as place:
            text, weights = Path(place, "n.prototxt"), Path(place, "n.caffemodel")
            text.write_text(str(arrays["prototxt"]))
            if "caffemodel" in arrays:
                weights.write_bytes(arrays["caffemodel"].tobytes())
            given = [weights] if weights.exists() else []
            try:
                net = ir.load_net(text, *given, phase=str(arrays["phase"]))
                with torch.no_grad():
                    found = net({name: torch.from_numpy(value) for name, value in inputs.items()})
            except IlgnetError as error:
                print(f"{path.stem}: not run: {error}")
                continue
        yield path.stem, net, inputs, {name: value.detach().numpy() for name, value in found.items()}


def check(name: str, net: CaffeNet, inputs: Arrays, outputs: Arrays, opset: int) -> str | None:
    """Return what is wrong; "" for nothing, None for a net that no ONNX file can hold."""
    if name in NOT_AS_ONNX or any(layer.no_onnx for _, layer in net.steps(net.outputs)):
        return None
    model = build_onnx(net, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    found = session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})
    for entry, value in zip(session.get_outputs(), found, strict=True):
        expected = outputs[entry.name]
        if name in ROWS_IN_OTHER_ORDER_IN_ONNX:
            value, expected = (np.array(sorted(rows.tolist())) for rows in (value, expected))
        limits = tolerance(name)
        limits["atol"] *= max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
        try:
            np.testing.assert_allclose(value, expected, **limits)
        except AssertionError as error:
            return f"{entry.name}: {' '.join(str(error).split())[:200]}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--opsets", default=f"{LOWEST},{newest()}")
    parser.add_argument("--random", type=Path, default=SHARED / "golden" / "random")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    opsets = [int(opset) for opset in args.opsets.split(",")]
    bad = 0
    for what, nets in (("layers", layers()), ("random nets", random_nets(args.random))):
        right = dict.fromkeys(opsets, 0)
        for name, net, inputs, outputs in nets:
            for opset in opsets:
                try:
                    wrong = check(name, net, inputs, outputs, opset)
                except Exception as error:  # also ONNX Runtime's, which share no base class
                    wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                right[opset] += wrong == ""
                if wrong:
                    bad += 1
                    print(f"{name}, opset {opset}: {wrong}")
        shown = ", ".join(f"opset {opset}: {count} right" for opset, count in right.items())
        print(f"{what}: {shown}" if any(right.values()) else f"skipped: no {what} at hand")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
