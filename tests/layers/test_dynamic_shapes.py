"""A net built for one batch (or, in torch and ONNX, size) runs with another, as Caffe's Reshape lets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_layer import build, draw, run, run_onnx, run_source

DENSE_BLOCK = """denseblock_param { numTransition: 1 growthRate: 2 Filter_Filler { type: "xavier" }
    BN_Scaler_Filler { value: 0.01 } }"""
# Type, parameters, tops, shapes it is built for, shapes it is run with.
BATCHES = {
    "InnerProduct": ("InnerProduct", "inner_product_param { num_output: 4 }", 1, [(2, 3, 5)], [(7, 3, 5)]),
    "InnerProduct axis 2": (
        "InnerProduct",
        "inner_product_param { num_output: 4 axis: 2 }",
        1,
        *([(2, 3, 5)], [(7, 3, 5)]),
    ),
    "Flatten": ("Flatten", "", 1, [(2, 3, 5)], [(7, 3, 5)]),
    "Flatten batch": ("Flatten", "flatten_param { end_axis: 1 axis: 0 }", 1, [(2, 3, 5)], [(7, 3, 5)]),
    "Flatten in the middle": ("Flatten", "flatten_param { end_axis: 2 }", 1, [(2, 3, 5, 4)], [(7, 3, 5, 4)]),
    "Reshape": ("Reshape", "reshape_param { shape { dim: 0 dim: 5 dim: -1 } }", 1, [(2, 3, 5)], [(7, 3, 5)]),
    "Reshape moved batch": (
        "Reshape",
        "reshape_param { shape { dim: 1 } num_axes: 0 }",
        1,
        *([(2, 3, 5)], [(7, 3, 5)]),
    ),
    "Reshape moved batch and inferred": (
        "Reshape",
        "reshape_param { shape { dim: -1 dim: 5 } axis: 1 }",
        1,
        *([(2, 3, 5)], [(7, 3, 5)]),
    ),
    "ShuffleChannel": ("ShuffleChannel", "shuffle_channel_param { group: 2 }", 1, [(2, 6, 5)], [(7, 6, 5)]),
    "Slice batch": ("Slice", "slice_param { axis: 0 slice_point: 2 }", 2, [(6, 3)], [(9, 3)]),
    "Slice batch evenly": ("Slice", "slice_param { axis: 0 }", 2, [(6, 3)], [(8, 3)]),
    "Concat batch": ("Concat", "concat_param { axis: 0 }", 1, [(2, 3), (4, 3)], [(7, 3), (5, 3)]),
    "Crop batch": ("Crop", "crop_param { axis: 0 offset: 1 }", 1, [(3, 4), (2, 3)], [(9, 4), (7, 3)]),
    "ArgMax": ("ArgMax", "argmax_param { top_k: 2 }", 1, [(2, 3, 5)], [(7, 3, 5)]),
    "ArgMax over the batch": ("ArgMax", "argmax_param { axis: 0 }", 1, [(2, 3)], [(7, 3)]),
    "BatchReindex": ("BatchReindex", "", 1, [(2, 3), (2,)], [(7, 3), (4,)]),
    "Im2col": ("Im2col", "convolution_param { kernel_size: 2 }", 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "Scale": ("Scale", "scale_param { axis: 0 }", 1, [(2, 3, 5), (2, 3)], [(7, 3, 5), (7, 3)]),
    "Axpy": ("Axpy", "", 1, [(2, 3), (2, 3, 4, 5), (2, 3, 4, 5)], [(7, 3), (7, 3, 4, 5), (7, 3, 4, 5)]),
    "Reduction of all": ("Reduction", "reduction_param { operation: MEAN }", 1, [(2, 3)], [(7, 3)]),
    "Upsample": ("Upsample", "upsample_param { scale: 2 }", 1, [(2, 3, 4, 5)] * 2, [(7, 3, 4, 5)] * 2),
    "Upsample nearest": ("Upsample", "", 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "Upsample like": ("Upsample", "", 1, [(2, 3, 7, 5), (2, 3, 4, 5)], [(7, 3, 7, 5), (7, 3, 4, 5)]),
    "Accum": ("Accum", "", 1, [(2, 3, 4, 5), (2, 2, 6, 3)], [(7, 3, 4, 5), (7, 2, 6, 3)]),
    "Correlation": (
        "Correlation",
        "correlation_param { kernel_size: 1 max_displacement: 1 }",
        1,
        *([(2, 3, 4, 5)] * 2, [(7, 3, 4, 5)] * 2),
    ),
    "FlowWarp": ("FlowWarp", "", 1, [(2, 3, 4, 5), (2, 2, 4, 5)], [(7, 3, 4, 5), (7, 2, 4, 5)]),
    "Resample": ("Resample", "resample_param { height: 6 width: 3 }", 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "Downsample": (
        "Downsample",
        "downsample_param { top_height: 2 top_width: 3 }",
        1,
        *([(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    ),
    "Resize": ("Resize", "resize_param { height: 6 width: 3 }", 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "UnPooling": (
        "UnPooling",
        "unpooling_param { unpool: DIV out_kernel_size: 3 }",
        1,
        *([(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    ),
    "Flip": ("Flip", "flip_param { flip_height: true }", 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "DenseBlock": ("DenseBlock", DENSE_BLOCK, 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "Convolution3D": (
        "Convolution3D",
        "convolution3d_param { num_output: 2 kernel_size: 2 kernel_depth: 2 }",
        1,
        *([(2, 3, 4, 5, 6)], [(7, 3, 4, 5, 6)]),
    ),
    "Pooling3D": (
        "Pooling3D",
        "pooling3d_param { pool: AVE kernel_size: 2 kernel_depth: 2 stride: 2 }",
        1,
        *([(2, 3, 4, 5, 6)], [(7, 3, 4, 5, 6)]),
    ),
    "Interp": ("Interp", "interp_param { zoom_factor: 3 }", 1, [(2, 3, 4, 5)], [(7, 3, 4, 5)]),
    "InnerProduct normalized": (
        "InnerProduct",
        "inner_product_param { num_output: 4 normalize: true weight_filler { type: 'xavier' } }",
        1,
        *([(2, 3, 5)], [(7, 3, 5)]),
    ),
    "InnerProduct of a bottom": (
        "InnerProduct",
        "inner_product_param { bias_term: false }",
        1,
        *([(2, 3, 5), (4, 15)], [(7, 3, 5), (4, 15)]),
    ),
    "MarginInnerProduct": (
        "MarginInnerProduct",
        "margin_inner_product_param { num_output: 4 type: QUADRUPLE weight_filler { type: 'xavier' } }",
        2,
        *([(2, 3, 5), (2,)], [(7, 3, 5), (7,)]),
    ),
    "LargeMarginInnerProduct axis 2": (
        "LargeMarginInnerProduct",
        "largemargin_inner_product_param { num_output: 4 type: TRIPLE axis: 2 weight_filler { type: 'xavier' } }",
        1,
        *([(2, 3, 5), (2, 3)], [(7, 3, 5), (7, 3)]),
    ),
    "CosinAddm": ("CosinAddm", "", 1, [(2, 3, 1), (2,)], [(7, 3, 1), (7,)]),
    "CombinedMargin": ("CombinedMargin", "", 1, [(2, 3), (2,)], [(7, 3), (7,)]),
    "AdaCosAddmScale": ("AdaCosAddmScale", "", 1, [(2, 3), (2,)], [(7, 3), (7,)]),
    "CenterLoss": (
        "CenterLoss",
        "center_loss_param { num_output: 3 center_filler { type: 'xavier' } }",
        1,
        [(2, 3), (2,)],
        [(7, 3), (7,)],
    ),
    "TripletLoss": ("TripletLoss", "", 1, [(2, 3)] * 3, [(7, 3)] * 3),
    "FocalLoss": ("FocalLoss", "", 2, [(2, 3), (2,)], [(7, 3), (7,)]),
    "L1Loss": ("L1Loss", "", 1, [(2, 3)] * 2, [(7, 3)] * 2),
    "L1Loss of FlowNet": ("L1Loss", "l1_loss_param { l2_per_location: true }", 1, [(2, 3)] * 2, [(7, 3)] * 2),
    "NormL2": ("NormL2", "", 1, [(2, 3)], [(7, 3)]),
    "L2Norm": ("L2Norm", "", 1, [(2, 3, 4)], [(7, 3, 4)]),
    "ChannelNorm": ("ChannelNorm", "", 1, [(2, 3, 4)], [(7, 3, 4)]),
    "ChannelScale": ("ChannelScale", "", 1, [(2, 3, 4), (2, 4)], [(7, 3, 4), (7, 4)]),
    "BN with three tops": ("BN", "", 3, [(2, 3, 4)], [(7, 3, 4)]),
    "CReLU batch": ("CReLU", "crelu_param { concat_axis: 0 }", 1, [(2, 3)], [(7, 3)]),
}
LABELS = ("Margin", "CosinAddm", "AdaCos", "CenterLoss", "FocalLoss")
BOTTOM_SIZE = [[(2, 3, 4, 5), (2, 2, 6, 3)], [(7, 3, 8, 9), (7, 2, 5, 8)]]
SIZES = {
    "Flatten": ("Flatten", "flatten_param { end_axis: 2 }", 1, [(2, 3, 5, 4)], [(7, 3, 6, 9)]),
    "Reshape": (
        "Reshape",
        "reshape_param { shape { dim: -1 } num_axes: 2 }",
        1,
        [(2, 3, 5, 4)],
        [(7, 3, 6, 9)],
    ),
    "ShuffleChannel": (
        "ShuffleChannel",
        "shuffle_channel_param { group: 2 }",
        1,
        *([(2, 6, 5, 4)], [(7, 6, 3, 8)]),
    ),
    "Slice": ("Slice", "slice_param { axis: 2 slice_point: 1 }", 2, [(2, 3, 5, 4)], [(7, 3, 9, 6)]),
    "Crop": (
        "Crop",
        "crop_param { offset: 1 }",
        1,
        [(2, 3, 8, 9), (2, 3, 4, 5)],
        [(7, 3, 9, 12), (7, 3, 6, 11)],
    ),
    "ArgMax": ("ArgMax", "argmax_param { axis: 3 }", 1, [(2, 3, 4, 5)], [(7, 3, 6, 9)]),
    "Upsample": ("Upsample", "upsample_param { pad_out_w: true }", 1, [(2, 3, 4, 5)] * 2, [(7, 3, 6, 9)] * 2),
    "Upsample nearest": ("Upsample", "upsample_param { scale: 3 }", 1, [(2, 3, 4, 5)], [(7, 3, 6, 9)]),
    "Flip": ("Flip", "", 1, [(2, 3, 4, 5)], [(7, 3, 6, 9)]),
    "Mean": (
        "Mean",
        "mean_param { operation: ADD value: 2 value: 3 value: 4 }",
        1,
        *([(2, 3, 4, 5)], [(7, 3, 6, 9)]),
    ),
    "DenseBlock": ("DenseBlock", DENSE_BLOCK, 1, [(2, 3, 4, 5)], [(7, 3, 6, 9)]),
    "Upsample by scales": (
        "Upsample",
        "upsample_param { scale: 3 }",
        1,
        [(2, 3, 4, 5)] * 2,
        [(7, 3, 6, 9)] * 2,
    ),
    "Interp by factors": (
        "Interp",
        "interp_param { zoom_factor: 3 shrink_factor: 2 pad_end: -1 }",
        1,
        *([(2, 3, 4, 5)], [(7, 3, 6, 9)]),
    ),
    "Interp by bottom": ("Interp", "", 1, *BOTTOM_SIZE),
    "Interp to a size": (
        "Interp",
        "interp_param { height: 6 width: 5 }",
        1,
        *([(2, 3, 4, 5)], [(7, 3, 8, 9)]),
    ),
    "Im2col": ("Im2col", "convolution_param { kernel_size: 2 }", 1, [(2, 3, 4, 5)], [(7, 3, 6, 9)]),
}


def inputs(type_, shapes) -> list[np.ndarray]:
    arrays = [draw(index, *shape) for index, shape in enumerate(shapes)]
    if any(name in type_ for name in LABELS):
        arrays[0] = np.tanh(arrays[0])  # cosines
        arrays[1] = np.arange(arrays[1].size, dtype=np.float32).reshape(shapes[1]) % 3
    if type_ == "BatchReindex" or (
        type_ == "Upsample" and len(shapes) == 2 and shapes[0] == shapes[1]
    ):  # the second bottom holds integers
        limit = shapes[0][0] if type_ == "BatchReindex" else 4
        arrays[1] = np.arange(arrays[1].size, dtype=np.float32).reshape(shapes[1]) % limit
    return arrays


def assert_runs_elsewhere(type_, params, tops, built, given, uses) -> None:
    net, arrays = build(type_, built, params, tops), inputs(type_, given)
    # The reference is the same layer built for the shapes that are given.
    expected = run(build(type_, given, params, tops), arrays)
    for use in uses:
        for found, wanted in zip(use(net, arrays), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=use.__name__)
    shapes = net.blob_shapes({f"in{index}": shape for index, shape in enumerate(given)})
    assert [shapes[f"top{index}"] for index in range(tops)] == [top.shape for top in expected]


@pytest.mark.parametrize(("type_", "params", "tops", "built", "given"), BATCHES.values(), ids=BATCHES)
def test_another_batch(type_, params, tops, built, given) -> None:
    assert_runs_elsewhere(type_, params, tops, built, given, (run, run_onnx, run_source))


def run_onnx_of_any_size(net, arrays) -> list[np.ndarray]:
    return run_onnx(net, arrays, dynamic_size=True)


@pytest.mark.parametrize(("type_", "params", "tops", "built", "given"), SIZES.values(), ids=SIZES)
def test_another_size(type_, params, tops, built, given) -> None:
    assert_runs_elsewhere(type_, params, tops, built, given, (run, run_onnx_of_any_size, run_source))


@pytest.mark.parametrize(("type_", "params", "tops", "built", "given"), BATCHES.values(), ids=BATCHES)
def test_export_with_a_dynamic_batch_axis(type_, params, tops, built, given) -> None:
    net = build(type_, built, params, tops)
    arrays = {f"in{index}": torch.from_numpy(value) for index, value in enumerate(inputs(type_, built))}
    # Lengths of 1 would be fixed by torch itself.
    sizes = {name: {0: torch.export.Dim.AUTO} for name in arrays}
    exported = torch.export.export(net, (arrays,), dynamic_shapes={"given": sizes}, strict=False)
    others = {f"in{index}": torch.from_numpy(value) for index, value in enumerate(inputs(type_, given))}
    for name, value in exported.module()(others).items():
        torch.testing.assert_close(value, net(others)[name])
