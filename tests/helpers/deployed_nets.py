"""Nets that people deployed, with the weights and inputs of their recordings; they are not part of the repository."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from places import SHARED

import ilgnet_repro as ir
from ilgnet_repro.runtime.net import CaffeNet

FOLDER = SHARED / "golden" / "deployed"
CHECK = SHARED / "tools" / "check_deployed.py"


def deployed_nets() -> Iterator[tuple[str, CaffeNet, dict[str, torch.Tensor]]]:
    """Yield each net with its first recorded inputs; nothing where the recordings are not at hand."""
    if not (CHECK.is_file() and FOLDER.is_dir()):
        return
    spec = importlib.util.spec_from_file_location("check_deployed", CHECK)
    assert spec is not None and spec.loader is not None
    checker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checker)
    for place in sorted(path for path in FOLDER.iterdir() if (path / "golden.npz").is_file()):
        with np.load(place / "golden.npz") as file:
            record = {key: file[key] for key in ("cases", "layers", "gains") if key in file.files}
        case = json.loads(str(record["cases"]))[0]
        with tempfile.TemporaryDirectory() as folder:
            weights = place / "net.caffemodel"
            if not weights.exists():
                weights = Path(folder, "net.caffemodel")
                checker.write_caffemodel(
                    weights, json.loads(str(record["layers"])), json.loads(str(record["gains"]))
                )
            net = ir.load_net(place / "net.prototxt", weights, input_shapes=case["first"])
        given = checker.feeds(case)
        yield place.name, net, {name: torch.from_numpy(given[name]) for name in net.inputs_for(net.outputs)}
