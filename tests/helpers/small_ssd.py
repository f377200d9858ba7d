"""A single-shot detector of two maps and three classes, small enough to be run in every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net

CLASSES = 3
MAPS = (("conv1", 8, 16), ("conv2", 16, 30))


def text(keep_top_k: int = 12, confidence: float = 0.3) -> str:
    """The deploy net, with an input of 1 x 3 x 32 x 40."""
    lines = [
        'name: "small_ssd" input: "data" input_shape { dim: 1 dim: 3 dim: 32 dim: 40 }',
        *(_conv("conv1", "data", 6, 3, 4), _relu("conv1"), _conv("conv2", "conv1", 8, 3, 2), _relu("conv2")),
    ]
    for blob, step, size in MAPS:
        for kind, outputs in (("loc", 4 * 2), ("conf", CLASSES * 2)):
            name = f"{blob}_{kind}"
            lines.append(_conv(name, blob, outputs, 1, 1))
            lines.append(f'layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm"'
                         " permute_param { order: 0 order: 2 order: 3 order: 1 } }")  # fmt: skip
            lines.append(
                f'layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" }}'
            )
        lines.append(f'layer {{ name: "{blob}_prior" type: "PriorBox" bottom: "{blob}" bottom: "data" top: "{blob}_prior"'
                     f" prior_box_param {{ min_size: {size} max_size: {size + 9} flip: false clip: true step: {step}"
                     " variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 offset: 0.5 } }")  # fmt: skip
    for kind, axis in (("loc_flat", 1), ("conf_flat", 1), ("prior", 2)):
        bottoms = " ".join(f'bottom: "{blob}_{kind}"' for blob, _, _ in MAPS)
        lines.append(
            f'layer {{ name: "all_{kind}" type: "Concat" {bottoms} top: "all_{kind}" concat_param {{ axis: {axis} }} }}'
        )
    lines += [
        'layer { name: "by_box" type: "Reshape" bottom: "all_conf_flat" top: "by_box"'
        f" reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }} }}",
        'layer { name: "softmax" type: "Softmax" bottom: "by_box" top: "softmax" softmax_param { axis: 2 } }',
        'layer { name: "softmax_flat" type: "Flatten" bottom: "softmax" top: "softmax_flat" }',
        'layer { name: "detection_out" type: "DetectionOutput" bottom: "all_loc_flat" bottom: "softmax_flat"'
        ' bottom: "all_prior" top: "detection_out" include { phase: TEST } detection_output_param {'
        f" num_classes: {CLASSES} share_location: true background_label_id: 0 code_type: CENTER_SIZE"
        f" keep_top_k: {keep_top_k} confidence_threshold: {confidence} nms_param {{ nms_threshold: 0.6 top_k: 40 }} }} }}",
    ]
    return "\n".join(lines)


def _conv(name: str, bottom: str, outputs: int, kernel: int, stride: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{'
        f" num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {kernel // 2} }} }}"
    )


def _relu(blob: str) -> str:
    return f'layer {{ name: "{blob}_relu" type: "ReLU" bottom: "{blob}" top: "{blob}" }}'


def write(folder: Path, seed: int = 5, **options: float) -> tuple[str, str]:
    """Write the net and drawn weights; return the paths of the two files."""
    stated = text(**options)
    rng = np.random.default_rng(seed)
    net = ir.load_net(parse_net(stated), seed=0)
    drawn = {
        name: [rng.normal(0, 0.4, tuple(blob.shape)).astype(np.float32) for blob in blobs]
        for name, blobs in net.params.items()
    }
    prototxt, caffemodel = folder / "ssd.prototxt", folder / "ssd.caffemodel"
    prototxt.write_text(stated)
    write_caffemodel(caffemodel, parse_net(stated), drawn)
    return str(prototxt), str(caffemodel)
