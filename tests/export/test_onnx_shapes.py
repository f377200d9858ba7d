"""What an ONNX file declares is what ONNX Runtime returns, at every batch and size that the net takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from golden_cases import NAMES, read_case, tolerance

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.onnx_net import open_session

Dims = dict[str, tuple[int | str | None, ...]]


def net_of(inputs: Mapping[str, tuple[int, ...]], layers: str) -> CaffeNet:
    """Inputs by name and shape, then layers without the word `layer`, one per line."""
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        f"{' '.join(f'dim: {length}' for length in shape)} }} }} }}\n"
        for name, shape in inputs.items()
    )
    text += "".join(f"layer {{ {line} }}\n" for line in layers.strip().splitlines())
    return CaffeNet(build_graph(parse_net(text)), seed=3)


def declared(model: onnx.ModelProto) -> tuple[Dims, Dims]:
    """The shapes of inputs and outputs: numbers, symbols and None."""

    def dims(entries) -> Dims:
        return {
            entry.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in entry.type.tensor_type.shape.dim
            )
            for entry in entries
        }

    return dims(model.graph.input), dims(model.graph.output)


def disagreements(found: Dims, shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[str, int]) -> list:
    """The blobs whose shape the declared one does not allow; open lengths without a name may have any value."""
    return [
        (name, dims, shapes[name])
        for name, dims in found.items()
        if len(dims) != len(shapes[name])
        or any(
            lengths.get(dim, dim) not in (None, length)
            for dim, length in zip(dims, shapes[name], strict=True)
        )
    ]


def assert_true_elsewhere(
    net: CaffeNet, given: Mapping[str, np.ndarray], *, dynamic_size: bool = False, rtol=1e-4, atol=1e-5
) -> None:
    """Run the file on inputs of other shapes: shapes as declared, values as torch's."""
    model = build_onnx(net, dynamic_size=dynamic_size)
    onnx.checker.check_model(model, full_check=True)
    inputs, outputs = declared(model)
    lengths = {
        dim: length
        for name, dims in inputs.items()
        for dim, length in zip(dims, given[name].shape, strict=True)
        if isinstance(dim, str)
    }
    assert not disagreements(inputs, {name: given[name].shape for name in inputs}, lengths)
    with torch.no_grad():
        expected = net({name: torch.from_numpy(value) for name, value in given.items()})
    found = open_session(model.SerializeToString()).run(
        list(expected), {name: given[name] for name in inputs}
    )
    assert not disagreements(
        outputs, {name: value.shape for name, value in zip(expected, found, strict=True)}, lengths
    )
    for (name, wanted), value in zip(expected.items(), found, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=rtol, atol=atol, err_msg=name)


def drawn(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numbered(shape: tuple[int, ...], count: int = 2) -> np.ndarray:
    return (np.arange(np.prod(shape)) % count).reshape(shape).astype(np.float32)


# ---------------------------------------------------------------------- the batch axis

IMAGE = {"x": (2, 3, 4, 5)}
WIDE = (
    'name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 3 order: 0 order: 1 order: 2 }\n'
)
FIRST = 'name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 1 order: 0 }\n'
# Inputs, layers, the declared inputs and outputs, other input shapes.
MOVED = {
    "Permute to the second axis": (IMAGE, WIDE, {"x": ("N", 3, 4, 5)}, {"p": (5, "N", 3, 4)}, {"x": (7, 3, 4, 5)}),
    "Permute to the last axis": (
        IMAGE, 'name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 1 order: 2 order: 3 }',
        {"x": ("N", 3, 4, 5)}, {"p": (3, 4, 5, "N")}, {"x": (7, 3, 4, 5)},
    ),
    "Permute of channels": (
        IMAGE, 'name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 0 order: 2 order: 3 order: 1 }',
        {"x": ("N", 3, 4, 5)}, {"p": ("N", 4, 5, 3)}, {"x": (1, 3, 4, 5)},
    ),
    "merged, then rows": (
        IMAGE, WIDE + 'name: "r" type: "Reshape" bottom: "p" top: "r" reshape_param { shape { dim: -1 } num_axes: 2 }',
        {"x": ("N", 3, 4, 5)}, {"r": (None, 3, 4)}, {"x": (7, 3, 4, 5)},
    ),
    "rows of a CRNN": (
        IMAGE,
        WIDE + 'name: "r" type: "Reshape" bottom: "p" top: "r" reshape_param { shape { dim: 0 dim: 0 dim: -1 } }\n'
        'name: "ip" type: "InnerProduct" bottom: "r" top: "ip" inner_product_param { num_output: 6 axis: 2 }\n'
        'name: "s" type: "Softmax" bottom: "ip" top: "s" softmax_param { axis: 2 }',
        {"x": ("N", 3, 4, 5)}, {"s": (5, "N", 6)}, {"x": (7, 3, 4, 5)},
    ),
    "a recurrent layer after a Permute": (
        {**IMAGE, "cont": (5, 2)}, WIDE + 'name: "l" type: "LSTM" bottom: "p" bottom: "cont" top: "l"'
        ' recurrent_param { num_output: 6 }',
        {"x": ("N", 3, 4, 5), "cont": (5, "N")}, {"l": (5, "N", 6)}, {"x": (7, 3, 4, 5), "cont": (5, 7)},
    ),
    "steps and streams": (
        {"x": (4, 2, 3), "cont": (4, 2), "static": (2, 6)},
        'name: "l" type: "RNN" bottom: "x" bottom: "cont" bottom: "static" top: "l" recurrent_param { num_output: 5 }',
        {"x": ("T", "N", 3), "cont": ("T", "N"), "static": ("N", 6)},
        {"l": ("T", "N", 5)}, {"x": (7, 5, 3), "cont": (7, 5), "static": (5, 6)},
    ),
    "Flatten": (
        IMAGE, 'name: "f" type: "Flatten" bottom: "x" top: "f" flatten_param { axis: 0 end_axis: 1 }',
        {"x": ("N", 3, 4, 5)}, {"f": (None, 4, 5)}, {"x": (7, 3, 4, 5)},
    ),
    "Reshape of several images to one row": (
        {"x": (6, 4)}, 'name: "r" type: "Reshape" bottom: "x" top: "r" reshape_param { shape { dim: -1 dim: 8 } }',
        {"x": ("N", 4)}, {"r": (None, 8)}, {"x": (10, 4)},
    ),
    "Reshape that states the batch": (
        {"x": (2, 3, 4)}, 'name: "r" type: "Reshape" bottom: "x" top: "r" reshape_param { shape { dim: 2 dim: 12 } }',
        {"x": (2, 3, 4)}, {"r": (2, 12)}, {"x": (2, 3, 4)},
    ),
    "Reshape with a new first axis": (
        {"x": (2, 3)}, 'name: "r" type: "Reshape" bottom: "x" top: "r" reshape_param { shape { dim: 1 } num_axes: 0 }',
        {"x": ("N", 3)}, {"r": (1, "N", 3)}, {"x": (7, 3)},
    ),
    "Tile": (
        {"x": (2, 3)}, 'name: "t" type: "Tile" bottom: "x" top: "t" tile_param { axis: 0 tiles: 3 }',
        {"x": ("N", 3)}, {"t": (None, 3)}, {"x": (7, 3)},
    ),
    "Slice": (
        {"x": (6, 3)}, 'name: "s" type: "Slice" bottom: "x" top: "a" top: "b" slice_param { axis: 0 slice_point: 2 }',
        {"x": ("N", 3)}, {"a": (2, 3), "b": (None, 3)}, {"x": (9, 3)},
    ),
    "Slice evenly": (
        {"x": (6, 3)}, 'name: "s" type: "Slice" bottom: "x" top: "a" top: "b" slice_param { axis: 0 }',
        {"x": ("N", 3)}, {"a": (None, 3), "b": (None, 3)}, {"x": (8, 3)},
    ),
    "Reduction of all": (
        {"x": (2, 3)}, 'name: "r" type: "Reduction" bottom: "x" top: "r"', {"x": ("N", 3)}, {"r": ()}, {"x": (7, 3)},
    ),
    "ArgMax over the batch": (
        {"x": (4, 3)}, 'name: "a" type: "ArgMax" bottom: "x" top: "a" argmax_param { axis: 0 top_k: 2 }',
        {"x": ("N", 3)}, {"a": (2, 3)}, {"x": (7, 3)},
    ),
    "Concat": (
        {"a": (2, 3), "b": (4, 3)}, 'name: "c" type: "Concat" bottom: "a" bottom: "b" top: "c" concat_param { axis: 0 }',
        {"a": ("N", 3), "b": ("N_b", 3)}, {"c": (None, 3)}, {"a": (7, 3), "b": (5, 3)},
    ),
    "MVN of images as channels": (
        {"x": (2, 3, 4, 5)},
        'name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 1 order: 0 }\n'
        'name: "m" type: "MVN" bottom: "p" top: "m"',
        {"x": ("N", 3, 4, 5)}, {"m": (3, "N", 4, 5)}, {"x": (7, 3, 4, 5)},
    ),
    "Convolution over several leading axes": (
        {"x": (2, 3, 4, 5, 6)},
        'name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 3 axis: 2 }',
        {"x": ("N", 3, 4, 5, 6)}, {"c": ("N", 3, 2, 3, 4)}, {"x": (7, 3, 4, 5, 6)},
    ),
    "ShuffleChannel of images": (
        {"x": (4, 3)},
        FIRST + 'name: "s" type: "ShuffleChannel" bottom: "p" top: "s" shuffle_channel_param { group: 2 }',
        {"x": ("N", 3)}, {"s": (3, "N", 1, 1)}, {"x": (6, 3)},
    ),
    "windows of images as channels": (
        IMAGE, FIRST + 'name: "i" type: "Im2col" bottom: "p" top: "i" convolution_param { kernel_size: 2 }',
        # Its nodes hold the number of channels, so the batch stays what it is.
        {"x": (2, 3, 4, 5)}, {"i": (3, 8, 3, 4)}, IMAGE,
    ),
    "weights for each image": (
        {"x": (4, 3)}, FIRST + 'name: "i" type: "InnerProduct" bottom: "p" top: "i" inner_product_param { num_output: 2 }',
        {"x": (4, 3)}, {"i": (3, 2)}, {"x": (4, 3)},
    ),
    "a loss": (
        {"x": (2, 3), "label": (2,)}, 'name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "l"',
        {"x": ("N", 3), "label": ("N",)}, {"l": ()}, {"x": (7, 3), "label": (7,)},
    ),
    "two nets in one": (
        {"a": (6, 3), "b": (2, 3)},
        'name: "r" type: "ReLU" bottom: "a" top: "ra"\nname: "q" type: "ReLU" bottom: "b" top: "rb"',
        {"a": ("N", 3), "b": ("N_b", 3)}, {"ra": ("N", 3), "rb": ("N_b", 3)}, {"a": (5, 3), "b": (7, 3)},
    ),
    "three rows for each of the other's": (
        {"a": (6, 4), "b": (2, 12)},
        'name: "r" type: "Reshape" bottom: "a" top: "r" reshape_param { shape { dim: -1 dim: 12 } }\n'
        'name: "e" type: "Eltwise" bottom: "r" bottom: "b" top: "e"',
        {"a": ("N", 4), "b": ("N_b", 12)}, {"e": ("N_b", 12)}, {"a": (15, 4), "b": (5, 12)},
    ),
    "BatchReindex": (
        {"x": (3, 4), "order": (5,)}, 'name: "b" type: "BatchReindex" bottom: "x" bottom: "order" top: "b"',
        {"x": ("N", 4), "order": ("N_order",)}, {"b": ("N_order", 4)}, {"x": (2, 4), "order": (7,)},
    ),
    "Filter, and what follows": (
        {"x": (4, 3), "chosen": (4,)},
        'name: "f" type: "Filter" bottom: "x" bottom: "chosen" top: "f"\n'
        'name: "i" type: "InnerProduct" bottom: "f" top: "i" inner_product_param { num_output: 2 }',
        {"x": ("N", 3), "chosen": ("N",)}, {"i": (None, 2)}, {"x": (7, 3), "chosen": (7,)},
    ),
    "regions": (
        {"x": (2, 3, 8, 9), "rois": (4, 5)},
        'name: "r" type: "ROIPooling" bottom: "x" bottom: "rois" top: "r" roi_pooling_param { pooled_h: 2 pooled_w: 3 }\n'
        'name: "i" type: "InnerProduct" bottom: "r" top: "i" inner_product_param { num_output: 2 }',
        {"x": ("N", 3, 8, 9), "rois": ("N_rois", 5)}, {"i": ("N_rois", 2)}, {"x": (3, 3, 8, 9), "rois": (7, 5)},
    ),
    "regions with channels of their own": (
        {"x": (2, 8, 6, 7), "rois": (4, 5)},
        'name: "r" type: "PSROIPooling" bottom: "x" bottom: "rois" top: "r"'
        ' psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 1 }',
        {"x": ("N", 8, 6, 7), "rois": ("N_rois", 5)}, {"r": ("N_rois", 2, 2, 2)}, {"x": (3, 8, 6, 7), "rois": (7, 5)},
    ),
    "Crop": (
        {"x": (4, 3), "like": (2, 3)}, 'name: "c" type: "Crop" bottom: "x" bottom: "like" top: "c"'
        ' crop_param { axis: 0 offset: 1 offset: 0 }',
        {"x": ("N", 3), "like": ("N_like", 3)}, {"c": ("N_like", 3)}, {"x": (9, 3), "like": (6, 3)},
    ),
}  # fmt: skip
WHOLE = {"order", "chosen", "label"}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "rois":
        corners = np.sort(np.random.default_rng(4).integers(0, 6, (shape[0], 2, 2)), axis=1).reshape(-1, 4)
        return np.concatenate([numbered((shape[0], 1)), corners], 1).astype(np.float32)
    return numbered(shape) if name in WHOLE | {"cont"} else drawn(shape)


@pytest.mark.parametrize(("inputs", "layers", "taken", "given", "others"), MOVED.values(), ids=MOVED)
def test_the_batch_axis_is_declared_where_it_moves(inputs, layers, taken, given, others) -> None:
    net = net_of(inputs, layers)
    assert declared(build_onnx(net)) == (taken, given)
    for shapes in (inputs, others):
        assert_true_elsewhere(net, {name: values(name, shape) for name, shape in shapes.items()})


def test_detections_are_declared_open() -> None:
    net = net_of(
        {"loc": (2, 12), "conf": (2, 9), "priors": (1, 2, 12)},
        'name: "d" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "priors" top: "d" '
        "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.5 } confidence_threshold: 0.1 }",
    )
    taken, given = declared(build_onnx(net))
    assert taken == {"loc": ("N", 12), "conf": ("N", 9), "priors": (1, 2, 12)}
    assert given == {"d": (1, 1, None, 7)}
    for count in (2, 5):
        boxes = np.abs(drawn((1, 2, 12)))
        assert_true_elsewhere(
            net, {"loc": drawn((count, 12)), "conf": np.abs(drawn((count, 9))), "priors": boxes}
        )


# ---------------------------------------------------------------------- sizes

SIZED = {
    "sizes of one input": (
        {"x": (2, 3, 16, 20)},
        'name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 3 pad: 1 stride: 1 pool: AVE }\n'
        'name: "q" type: "Pooling" bottom: "p" top: "q" pooling_param { kernel_size: 2 stride: 2 }\n'
        'name: "s" type: "Silence" bottom: "q"\nname: "r" type: "ReLU" bottom: "p" top: "r"',
        {"x": ("N", 3, "H", "W")}, {"r": ("N", 3, "H", "W")}, {"x": (3, 3, 9, 31)},
    ),
    "sides turned": (
        {"x": (2, 3, 16, 20)},
        'name: "p" type: "Permute" bottom: "x" top: "p" permute_param { order: 3 order: 0 order: 1 order: 2 }',
        {"x": ("N", 3, "H", "W")}, {"p": ("W", "N", 3, "H")}, {"x": (3, 3, 9, 31)},
    ),
    "sides merged": (
        {"x": (2, 3, 16, 20)}, 'name: "f" type: "Flatten" bottom: "x" top: "f" flatten_param { axis: 2 }',
        {"x": ("N", 3, "H", "W")}, {"f": ("N", 3, None)}, {"x": (3, 3, 9, 31)},
    ),
    "two images of two sizes": (
        {"x": (2, 3, 6, 7), "like": (1, 2, 9, 8)}, 'name: "i" type: "Interp" bottom: "x" bottom: "like" top: "i"',
        {"x": ("N", 3, "H", "W"), "like": ("N_like", 2, "H_like", "W_like")}, {"i": ("N", 3, "H_like", "W_like")},
        {"x": (3, 3, 5, 9), "like": (2, 2, 12, 13)},
    ),
    "sizes of 8 only": (
        {"x": (1, 2, 16, 24)},
        'name: "d" type: "Pooling" bottom: "x" top: "d" pooling_param { kernel_size: 8 stride: 8 }\n'
        'name: "u" type: "Deconvolution" bottom: "d" top: "u" convolution_param { num_output: 2 kernel_size: 8 stride: 8 }\n'
        'name: "e" type: "Eltwise" bottom: "x" bottom: "u" top: "e"',
        {"x": ("N", 2, "H", "W")}, {"e": ("N", 2, "H", "W")}, {"x": (3, 2, 40, 8)},
    ),
    "regions": (
        {"x": (2, 8, 6, 7), "rois": (4, 5)},
        'name: "r" type: "PSROIPooling" bottom: "x" bottom: "rois" top: "r"'
        ' psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 1 }',
        {"x": ("N", 8, "H", "W"), "rois": ("N_rois", 5)}, {"r": ("N_rois", 2, 2, 2)}, {"x": (3, 8, 9, 12), "rois": (7, 5)},
    ),
    "a mask": (
        {"x": (2, 3, 9, 11)}, 'name: "p" type: "Pooling" bottom: "x" top: "p" top: "m"'
        ' pooling_param { kernel_size: 3 stride: 2 }',
        {"x": ("N", 3, "H", "W")}, {"p": ("N", 3, None, None), "m": ("N", 3, None, None)}, {"x": (3, 3, 8, 6)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "layers", "taken", "given", "others"), SIZED.values(), ids=SIZED)
def test_sizes_are_declared_where_they_move(inputs, layers, taken, given, others) -> None:
    net = net_of(inputs, layers)
    assert declared(build_onnx(net, dynamic_size=True)) == (taken, given)
    for shapes in (inputs, others):
        arrays = {name: values(name, shape) for name, shape in shapes.items()}
        assert_true_elsewhere(net, arrays, dynamic_size=True)


# ---------------------------------------------------------------------- every recorded case


def longer(given: Mapping[str, np.ndarray], taken: Dims, symbols: set[str]) -> dict[str, np.ndarray]:
    """The inputs with three times the length of some open axes, values repeated: indices stay in range."""
    changed = dict(given)
    for name, dims in taken.items():
        for axis in (axis for axis, dim in enumerate(dims) if dim in symbols):
            changed[name] = np.concatenate([changed[name]] * 3, axis)
    return changed


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_case_at_other_lengths(name: str, tmp_path) -> None:
    case = read_case(name)
    net = case.net(tmp_path)
    if any(layer.no_onnx for _, layer in net.steps(net.outputs)):
        pytest.skip("cannot be written as ONNX")
    dynamic_size = True
    try:
        taken, _ = declared(build_onnx(net, dynamic_size=True))
    except IlgnetError:
        dynamic_size = False
        taken, _ = declared(build_onnx(net))
    symbols = {dim for dims in taken.values() for dim in dims if isinstance(dim, str)}
    for chosen in (symbols, *({symbol} for symbol in sorted(symbols))):
        given = longer(case.inputs, taken, chosen)
        try:
            net.blob_shapes({key: value.shape for key, value in given.items()})
        except IlgnetError:
            continue  # lengths that Caffe does not take together
        assert_true_elsewhere(net, given, dynamic_size=dynamic_size, **tolerance(name))
        return
    assert not symbols, "no open length can be changed"
