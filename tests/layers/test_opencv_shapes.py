"""OpenCV 4's own Caffe reader as a second reference, for the layers it reads (Caffe's recordings lack several).

Left out: Log, where it ignores the parameters (the recordings show Caffe does not); Bias, Reduction, ArgMax,
BatchReindex, Upsample and Interp with shrink_factor, which it does not read; Tile, Axpy and an even Slice,
which it reads and then refuses to run.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from one_layer import build, draw, layer_text, run

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net

if not hasattr(cv2.dnn, "readNetFromCaffe"):
    pytest.skip("OpenCV 5 no longer reads Caffe nets", allow_module_level=True)

GAUSSIAN = 'weight_filler { type: "gaussian" } bias_filler { type: "gaussian" }'
X = (2, 6, 4, 5)
READ = {
    "InnerProduct": ("InnerProduct", [X], f"inner_product_param {{ num_output: 7 {GAUSSIAN} }}", 1),
    "InnerProduct axis": (
        "InnerProduct",
        [X],
        f"inner_product_param {{ num_output: 7 axis: 2 {GAUSSIAN} }}",
        1,
    ),
    "Flatten": ("Flatten", [X], "flatten_param { axis: 1 end_axis: 2 }", 1),
    "Reshape": ("Reshape", [X], "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }", 1),
    "Reshape axis": ("Reshape", [X], "reshape_param { shape { dim: 3 dim: -1 } axis: 1 num_axes: 1 }", 1),
    "Concat": ("Concat", [X, (2, 1, 4, 5)], "", 1),
    "Concat last": ("Concat", [X, (2, 6, 4, 1)], "concat_param { axis: -1 }", 1),
    "Slice": ("Slice", [X], "slice_param { slice_point: 1 slice_point: 4 }", 3),
    "Crop": ("Crop", [(2, 6, 8, 9), X], "crop_param { axis: 2 offset: 1 offset: 3 }", 1),
    "Crop channels": ("Crop", [(2, 6, 8, 9), (2, 3, 4, 5)], "crop_param { axis: 1 offset: 1 }", 1),
    "Permute": ("Permute", [X], "permute_param { order: 0 order: 2 order: 3 order: 1 }", 1),
    "ShuffleChannel": ("ShuffleChannel", [X], "shuffle_channel_param { group: 3 }", 1),
    "Interp to a size": ("Interp", [X], "interp_param { height: 9 width: 7 }", 1),
    "Interp by zoom": ("Interp", [X], "interp_param { zoom_factor: 3 }", 1),
    "Eltwise coeff": ("Eltwise", [X] * 3, "eltwise_param { coeff: 1 coeff: -2 coeff: 0.5 }", 1),
    "Eltwise max": ("Eltwise", [X] * 3, "eltwise_param { operation: MAX }", 1),
    "Eltwise product": ("Eltwise", [X] * 2, "eltwise_param { operation: PROD }", 1),
    "Scale": ("Scale", [X], 'scale_param { axis: 2 filler { type: "gaussian" } bias_term: true }', 1),
    "Scale of two bottoms": ("Scale", [X, (2, 6)], "scale_param { axis: 0 }", 1),
    "Power": ("Power", [X], "power_param { power: 2 scale: 0.5 shift: 1 }", 1),
    "Exp": ("Exp", [X], "exp_param { base: 3 scale: 0.5 shift: 1 }", 1),
}


@pytest.mark.parametrize(("type_", "shapes", "params", "tops"), READ.values(), ids=READ)
def test_opencv_agrees(type_, shapes, params, tops, tmp_path) -> None:
    net = build(type_, shapes, params, tops)
    arrays = [draw(index, *shape) for index, shape in enumerate(shapes)]
    text = layer_text(type_, shapes, params, tops)
    path = tmp_path / "net.caffemodel"
    blobs = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    write_caffemodel(path, parse_net(text), blobs)
    reference = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.fromfile(path, np.uint8))
    for index, array in enumerate(arrays):
        reference.setInput(array, f"in{index}")
    for found, expected in zip(run(net, arrays), reference.forwardAndRetrieve(["op"])[0], strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
