"""What a fast net reports of its difference from the exact net: outputs, and the logits that a softmax takes."""

from __future__ import annotations

from math import inf, isnan, log

import numpy as np
import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.engines.deviation import Deviation, deviations, shown

GRAPH = build_graph(parse_net("""
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }
layer { name: "flat" type: "Power" bottom: "data" top: "flat" power_param { scale: 2 } }
layer { name: "prob" type: "Softmax" bottom: "data" top: "prob" }
"""))  # fmt: skip
FEW = 2.0**-60

CASES = {
    "no softmax": ("flat", [1.0, 2.0], [1.5, 2.0], 0.5, None),
    "alike": ("prob", [0.5, 0.5], [0.5, 0.5], 0.0, 0.0),
    "saturated": ("prob", [1.0, FEW], [1.0, FEW / 2], FEW / 2, 1 / 60),
    "of small logits": ("prob", [0.5, 0.5], [0.25, 0.75], 0.25, log(2)),
    "none in one of them": ("prob", [1.0, FEW], [1.0, 0.0], FEW, 66 / 60),
    "none in both": ("prob", [1.0, 0.0], [1.0, 0.0], 0.0, 0.0),
    "not finite in one": ("prob", [0.5, 0.5], [0.5, inf], inf, inf),
}


@pytest.mark.parametrize(("blob", "exact", "found", "largest", "logits"), CASES.values(), ids=CASES)
def test_deviation(blob: str, exact: list[float], found: list[float], largest: float, logits: float) -> None:
    one = deviations(GRAPH, {blob: torch.tensor([exact])}, {blob: torch.tensor([found])})[blob]
    assert one.largest == pytest.approx(largest)
    assert one.logits == (None if logits is None else pytest.approx(logits))


def test_nothing_finite_is_no_number() -> None:
    one = deviations(GRAPH, {"prob": torch.full((1, 2), np.nan)}, {"prob": torch.full((1, 2), np.nan)})
    assert isnan(one["prob"].largest)


SHOWN = {
    "the largest of all": (
        [
            {"a": Deviation(0.25), "p": Deviation(0.5, 0.125)},
            {"a": Deviation(1.0), "p": Deviation(0.0, 0.25)},
        ],
        "at most 1 (a), 0.25 of the largest logit,",
    ),
    "no softmax": ([{"a": Deviation(0.25)}], "at most 0.25 (a)"),
    "nothing": ([], "nothing is computed, so no difference"),
    "no number": ([{"a": Deviation(np.nan), "b": Deviation(2.0)}], "at most nan (a)"),
}


@pytest.mark.parametrize(("found", "expected"), SHOWN.values(), ids=SHOWN)
def test_text(found: list[dict[str, Deviation]], expected: str) -> None:
    assert shown(found) == expected


def test_a_fast_net_reports_its_logits() -> None:
    logged: list[str] = []
    pytest.importorskip("onnxruntime")
    ir.fast(ir.CaffeNet(GRAPH), engine="onnxruntime", log=logged.append)
    assert " of the largest logit, from the exact net on seeded inputs" in logged[-1]
