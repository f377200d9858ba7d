"""Recorded small nets, as values: text, phase, weights, inputs, outputs, gradients.

284 were computed by Caffe 1.0, 309 with the layers of forks by the forks' own code (a few by a formula from it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from places import GOLDEN

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.runtime.weights import take_weights

FOLDER = GOLDEN / "layers"
FORK_FOLDER = GOLDEN / "forks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
FORK_NAMES = sorted(path.stem for path in FORK_FOLDER.glob("*.npz"))

# Options that choose between forks where the text shows neither.
OPTIONS: dict[str, dict[str, str]] = {
    "Crop-batch_split": {"crop": "geometry"},
    "Crop-no_pad_conv": {"crop": "geometry"},
}

# Fields that choose between forks, added to the layer ``op`` where nothing else shows which one it is.
STATED = {
    "SigmoidCrossEntropyLoss-hed": "loss_param { balance: HED }",
    "SigmoidCrossEntropyLoss-hed_weight": "loss_param { balance: HED }",
    "Normalize-whole_item_spatial": "normalize_param { across_spatial: true }",
}

# Every comparison with Caffe uses the first row; each exception states why it needs its own.
TOLERANCE = {
    "default": (1e-4, 1e-5),
    # Gradients of up to 80 whose terms cancel to 0.02, summed in another order.
    "DenseBlock-train_bc": (1e-4, 3e-5),
}

# Cases whose rows have equal scores, which PVANet's unstable sort puts into another order than ONNX: the same rows.
ROWS_IN_OTHER_ORDER_IN_ONNX = {"Proposal-pva_defaults", "Proposal-pva_min_size_big"}

# Cases that their shapes, not their fields, keep from ONNX, with the reason that the layer gives.
NOT_AS_ONNX = {"CTCGreedyDecoder-accuracy": "the accuracy is an edit distance"}

# Elements of recorded gradients that an out-of-bounds write of Caffe changed, and the right values.
# A max pooling window without a pixel (stride over kernel) has mask -1, so its gradient lands on the
# last element of the plane before (for the first plane, outside the blob).  No window reaches [14, 13].
STRAY = {("sweep1-091-Pooling", "x"): ((..., 14, 13), 0.0)}


def tolerance(name: str) -> dict[str, float]:
    """Return rtol and atol of a case for numpy.testing.assert_allclose."""
    rtol, atol = TOLERANCE.get(name, TOLERANCE["default"])
    return {"rtol": rtol, "atol": atol}


@dataclass(frozen=True)
class Case:
    """One recorded net."""

    name: str
    text: str
    phase: str
    caffemodel: bytes | None
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    top_diff: dict[str, np.ndarray]
    grad_in: dict[str, np.ndarray]
    grad_param: dict[tuple[str, int], np.ndarray]

    @property
    def has_gradient(self) -> bool:
        return bool(self.grad_in or self.grad_param)

    def net(self, folder: Path) -> CaffeNet:
        """Build the net with Caffe's weights; ``folder`` holds the caffemodel for the time it is read."""
        if self.name in FORK_NAMES:
            return self._fork_net(folder)
        graph = load_graph(parse_net(self.text, file=f"{self.name}.prototxt"), phase=self.phase)
        if self.caffemodel is None:
            return CaffeNet(graph)
        path = folder / f"{self.name}.caffemodel"
        path.write_bytes(self.caffemodel)
        return CaffeNet(graph, take_weights(plan_net(graph).blobs, open_caffemodel(path).layers))

    def _fork_net(self, folder: Path) -> CaffeNet:
        """Load the net as a user does: some layers show their fork only by the number of blobs in the file."""
        prototxt = folder / f"{self.name}.prototxt"
        prototxt.write_text(self.text.replace('name: "op"', f'name: "op" {STATED.get(self.name, "")}'))
        options = {"phase": self.phase, **OPTIONS.get(self.name, {})}
        if self.caffemodel is None:
            return ir.load_net(prototxt, **options)
        path = folder / f"{self.name}.caffemodel"
        path.write_bytes(self.caffemodel)
        return ir.load(path, prototxt=prototxt, **options)


def read_case(name: str) -> Case:
    """Read one case."""
    folder = FORK_FOLDER if name in FORK_NAMES else FOLDER
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}

    grad_in = under("grad_in/")
    for (case, blob), (place, value) in STRAY.items():
        if case == name:
            grad_in[blob][place] = value
    grad_param = {}
    for key, value in under("grad_param/").items():
        layer, index = key.rsplit("/", 1)
        grad_param[layer, int(index)] = value
    return Case(
        name=name,
        text=str(arrays["prototxt"]),
        phase=str(arrays["phase"]),
        caffemodel=arrays["caffemodel"].tobytes() if "caffemodel" in arrays else None,
        inputs=under("in/"),
        outputs=under("out/"),
        top_diff=under("top_diff/"),
        grad_in=grad_in,
        grad_param=grad_param,
    )
