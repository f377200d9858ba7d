"""Small nets of widely deployed kinds, run by OpenCV 4's own Caffe reader with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
from one_layer import draw, run, run_onnx
from opencv_reference import CLASSES, READS_CAFFE, detection, found_rows, reference

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet

if not READS_CAFFE:
    pytest.skip("OpenCV 5 no longer reads Caffe nets", allow_module_level=True)


def layer(type_: str, name: str, bottoms: str, params: str = "", top: str = "") -> str:
    names = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{type_}" {names} top: "{top or name}" {params} }}\n'


def image(*shape: int) -> str:
    dims = " ".join(f"dim: {length}" for length in shape)
    return layer("Input", "in0", "", f"input_param {{ shape {{ {dims} }} }}")


def conv(name: str, bottom: str, count: int, kernel: int, more: str = "", type_: str = "Convolution") -> str:
    fields = f"num_output: {count} kernel_size: {kernel} pad: {kernel // 2} {more}"
    filler = 'weight_filler { type: "xavier" } bias_filler { type: "gaussian" std: 0.1 }'
    return layer(type_, name, bottom, f"convolution_param {{ {fields} {filler} }}")


def small_ssd() -> str:
    """Two feature maps, one of them normalised, with their predictions concatenated."""
    text = image(2, 3, 48, 64)
    text += conv("conv1", "in0", 8, 3, "stride: 4") + layer("ReLU", "relu1", "conv1", top="conv1")
    text += conv("conv2", "conv1", 12, 3, "stride: 2") + layer("ReLU", "relu2", "conv2", top="conv2")
    scale = 'scale_filler { type: "constant" value: 2 }'
    text += layer(
        *("Normalize", "norm", "conv1"),
        f"norm_param {{ across_spatial: false channel_shared: false {scale} }}",
    )
    sizes = {"norm": "min_size: 12 max_size: 20 aspect_ratio: 2", "conv2": "min_size: 24 aspect_ratio: 3"}
    for source, boxes in (("norm", 4), ("conv2", 3)):
        for kind, values in (("loc", 4), ("conf", CLASSES)):
            name = f"{source}_{kind}"
            text += conv(name, source, boxes * values, 3)
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            text += layer("Permute", f"{name}_perm", name, order)
            text += layer("Flatten", f"{name}_flat", f"{name}_perm")
        fields = f"{sizes[source]} clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
        text += layer("PriorBox", f"{source}_box", f"{source} in0", f"prior_box_param {{ {fields} }}")
    text += layer("Concat", "loc", "norm_loc_flat conv2_loc_flat")
    text += layer("Concat", "conf", "norm_conf_flat conv2_conf_flat")
    text += layer("Concat", "box", "norm_box conv2_box", "concat_param { axis: 2 }")
    text += layer(
        *("Reshape", "conf_rows", "conf"),
        f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }}",
    )
    text += layer("Softmax", "prob", "conf_rows", "softmax_param { axis: 2 }")
    text += layer("Flatten", "prob_flat", "prob")
    rules = detection("CENTER_SIZE", True, nms_threshold=0.45, top_k=50, keep_top_k=30)
    return text + layer("DetectionOutput", "op", "loc prob_flat box", rules, "top0")


def mobilenet_block(depthwise: str) -> str:
    """A depthwise and a pointwise convolution, each with BatchNorm, Scale and ReLU."""
    text = image(2, 6, 9, 11)
    bottom = "in0"
    for name, more, kernel in (("dw", "group: 6 stride: 2", 3), ("sep", "", 1)):
        text += conv(
            name,
            bottom,
            6 if name == "dw" else 10,
            kernel,
            more,
            depthwise if name == "dw" else "Convolution",
        )
        statistics = "batch_norm_param { use_global_stats: true }"
        text += layer("BatchNorm", f"{name}_bn", name, statistics, name)
        filler = 'filler { type: "gaussian" } bias_filler { type: "gaussian" }'
        text += layer("Scale", f"{name}_scale", name, f"scale_param {{ bias_term: true {filler} }}", name)
        text += layer("ReLU", f"{name}_relu", name, top=name)
        bottom = name
    return text + layer("Pooling", "op", bottom, "pooling_param { pool: AVE global_pooling: true }", "top0")


def small_fcn() -> str:
    """Down by pooling, up by a bilinear Deconvolution, cropped to a skip connection and to the image."""
    text = image(2, 3, 21, 26)
    text += conv("conv1", "in0", 6, 3) + layer("ReLU", "relu1", "conv1", top="conv1")
    text += layer("Pooling", "pool1", "conv1", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    text += layer("Pooling", "pool2", "pool1", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    text += conv("score2", "pool2", 5, 1) + conv("score1", "pool1", 5, 1)
    up = 'num_output: 5 kernel_size: 4 stride: 2 group: 5 bias_term: false weight_filler { type: "bilinear" }'
    text += layer("Deconvolution", "up2", "score2", f"convolution_param {{ {up} }}")
    text += layer("Crop", "up2c", "up2 score1", "crop_param { axis: 2 offset: 1 }")
    text += layer("Eltwise", "fused", "up2c score1")
    up = 'num_output: 5 kernel_size: 4 stride: 2 bias_term: false weight_filler { type: "gaussian" std: 0.1 }'
    text += layer("Deconvolution", "up1", "fused", f"convolution_param {{ {up} }}")
    return text + layer("Crop", "op", "up1 in0", "crop_param { axis: 2 offset: 1 offset: 2 }", "top0")


def make(text: str) -> CaffeNet:
    """Build the net with seeded weights; statistics get separate values, since a filler leaves them 0."""
    net = CaffeNet(load_graph(parse_net(text)), seed=5)
    for name, blobs in net.params.items():
        if name.endswith("_bn"):
            for blob, low, high in zip(blobs, (-1, 0.5, 1), (1, 2, 1), strict=True):
                blob.data.uniform_(low, high)
    return net


# OpenCV reads no DepthwiseConvolution: it gets a Convolution with one group per channel.
NETS = {
    "MobileNet block": (
        mobilenet_block("DepthwiseConvolution"),
        mobilenet_block("Convolution"),
        (2, 6, 9, 11),
    ),
    "FCN": (small_fcn(), small_fcn(), (2, 3, 21, 26)),
    "SSD": (small_ssd(), small_ssd(), (2, 3, 48, 64)),
}


@pytest.mark.parametrize(("text", "other", "shape"), NETS.values(), ids=NETS)
def test_small_nets(text, other, shape, tmp_path):
    net = make(text)
    arrays = [draw(6, *shape)]
    found, through_onnx = run(net, arrays)[0], run_onnx(net, arrays)[0]
    (expected,) = reference(net, other, arrays, tmp_path)
    if "DetectionOutput" in text:
        found, through_onnx, expected = map(found_rows, (found, through_onnx, expected))
        assert len(expected) == 2 * 30
    assert found.shape == expected.shape and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(through_onnx, expected, rtol=1e-4, atol=1e-5)
