"""How often `ir.convert` reads, upgrades, builds and plans: once, and a verified file is opened once more."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_nets import write_weights

import ilgnet_repro as ir

COUNTED = {
    "open_caffemodel": "ilgnet_repro.caffe.caffemodel",
    "upgrade_net": "ilgnet_repro.caffe.upgrade",
    "build_graph": "ilgnet_repro.caffe.graph_build",
    "make_layer": "ilgnet_repro.layers.support.registry",
}
TEXT = """
name: "four"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "prob" type: "Softmax" bottom: "conv" top: "prob" }
"""
ONCE = {"open_caffemodel": 1, "upgrade_net": 1, "build_graph": 1, "make_layer": 4}
# A safetensors file is loaded whole, with its text; of Caffe's own files only the weights are read again.
FORMATS = {
    "safetensors": {"build_graph": 1, "make_layer": 4},
    "caffemodel": {"open_caffemodel": 1},
    "hdf5": {"open_caffemodel": 1},
    "onnx": {},
    "pt2": {},
    "python": {},
}


@pytest.mark.parametrize("to", FORMATS)
def test_a_conversion_does_each_thing_once(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "a.caffemodel", TEXT)
    (tmp_path / "deploy.prototxt").write_text(TEXT)
    ir.convert(tmp_path / "a.caffemodel", to=to, out=tmp_path / "first", verify=True)  # imports what it needs
    counts: Counter[str] = Counter()
    for name, home in COUNTED.items():
        function = getattr(sys.modules[home], name)

        def counted(*given: Any, name: str = name, function: Any = function, **named: Any) -> Any:
            counts[name] += 1
            return function(*given, **named)

        for module in list(sys.modules.values()):
            if module.__name__.startswith("ilgnet_repro") and vars(module).get(name) is function:
                monkeypatch.setattr(module, name, counted)
    ir.convert(tmp_path / "a.caffemodel", to=to, out=tmp_path / "second")
    assert counts == ONCE
    counts.clear()
    ir.convert(tmp_path / "a.caffemodel", to=to, out=tmp_path / "third", verify=True)
    assert counts == Counter(ONCE) + Counter(FORMATS[to])
