"""Arrays of any kind, and batches of no images, on every kind of net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from layer_nets import one_layer
from PIL import Image
from small_nets import SMALL_TEXT

import ilgnet_repro as ir
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.reading.preprocessing import Preprocessing

KINDS = ("exact", "fast", "int8", "onnx", "pt2", "onnx for two images")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("nets")
    net = ir.load_net(parse_net(SMALL_TEXT), seed=3)
    net.about = net.about.stating(Preprocessing(size=(9, 7), mean_value=(1, 2, 3)))
    files = {"int8": "net.safetensors", "onnx": "net.onnx", "pt2": "net.pt2"}
    for kind, name in files.items():
        ir.save(net, folder / name, **({"precision": "int8"} if kind == "int8" else {}))
    model = onnx.load(folder / "net.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, folder / "two.onnx")
    loaded = {kind: ir.load(folder / name) for kind, name in files.items()}
    return {"exact": net, "fast": ir.fast(net), **loaded, "onnx for two images": ir.load(folder / "two.onnx")}


WHOLE = np.random.default_rng(5).integers(0, 2, (2, 3, 9, 7))  # 0 and 1: exact in every type, a bool included


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    x.setflags(write=False)
    return x


class Converts:
    """What is an array by NumPy's protocol only."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return WHOLE.astype(np.float32)


FORMS = {
    **{kind: (lambda x, kind=kind: x.astype(kind)) for kind in ("?", "u1", "i1", "u2", "i4", "u8", "f2", "f8", "g")},
    **{f"{kind}, bytes swapped": (lambda x, kind=kind: x.astype(kind)) for kind in (">f4", ">f8", ">i2")},
    "read backwards": lambda x: np.ascontiguousarray(x[::-1, :, :, ::-1])[::-1, :, :, ::-1],
    "a view of channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every second value": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "read only": read_only,
    "lists": lambda x: x.tolist(),
    "a list of arrays": list,
    "a list of tensors": lambda x: list(torch.from_numpy(x)),
    "tensors that need gradients": lambda x: [torch.from_numpy(one).float().requires_grad_() for one in x],
    "NumPy's protocol": lambda x: Converts(),
    "masked": np.ma.masked_array,
    **{
        str(kind): (lambda x, kind=kind: torch.from_numpy(x).to(kind))
        for kind in (torch.bool, torch.uint8, torch.uint16, torch.int32, torch.bfloat16, torch.float16, torch.float64)
    },
    "a sparse tensor": lambda x: torch.from_numpy(x).float().to_sparse(),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_any_kind(nets: dict[str, Any], kind: str, form: Any) -> None:
    with torch.no_grad():
        wanted = nets[kind](torch.from_numpy(WHOLE).float())["prob"]
        found = nets[kind](form(WHOLE))["prob"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


IMAGE = Image.fromarray(np.zeros((9, 7, 3), np.uint8))
REFUSED = {
    "a PIL image": (IMAGE, "input 'data' is a Image; give a tensor or an array, such as net.prepare(images) returns"),
    "PIL images": (
        [IMAGE, IMAGE],
        "input 'data' is a list of Image; give a tensor or an array, such as net.prepare(images) returns",
    ),
    "a path": (
        Path("cat.jpg"),
        f"input 'data' is a {type(Path()).__name__}; give a tensor or an array, such as net.prepare(images) returns",
    ),
    "paths": (
        ["a.jpg", "b.jpg"],
        "input 'data' is a list of str; give a tensor or an array, such as net.prepare(images) returns",
    ),
    "the device meta": (
        torch.zeros(2, 3, 9, 7, device="meta"),
        "input 'data' is on the device meta, which holds no values; give a tensor with values",
    ),
    "objects": (np.zeros((2, 3, 9, 7), object), "input 'data' is a ndarray without numbers; give a tensor or an array"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_array(nets: dict[str, Any], kind: str, name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(ir.IlgnetError) as caught:
        nets[kind](value)
    assert str(caught.value) == message


PREPARED = {
    "a PIL image": IMAGE,
    "an array read backwards": np.zeros((9, 7, 3), np.uint8)[::-1, ::-1],
    "a read-only array": np.frombuffer(bytes(9 * 7 * 3), np.uint8).reshape(9, 7, 3),
    "a grey array": np.zeros((9, 7), np.uint8),
}


@pytest.mark.parametrize("image", PREPARED.values(), ids=PREPARED)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_kind(nets: dict[str, Any], kind: str, image: Any) -> None:
    found = nets[kind].prepare([image, image])
    assert found.shape == (2, 3, 9, 7)
    assert torch.equal(found[0, :, 4, 4], torch.tensor([-1.0, -2.0, -3.0]))
    (first, second) = ir.score([image, image], nets[kind])
    assert first.outputs == second.outputs
    assert (first.path, second.path) == ("image 1", "image 2")


# ---------------------------------------------------------------------- no images


@pytest.mark.parametrize("kind", KINDS)
def test_no_images(nets: dict[str, Any], kind: str) -> None:
    net = nets[kind]
    x = net.prepare([])
    assert x.shape == (0, 3, 9, 7)
    for given in (x, np.zeros((0, 3, 9, 7), np.uint8)):
        (found,) = net(given, blobs="prob").values()
        assert found.shape == (0, *net(torch.zeros(2, 3, 9, 7))["prob"].shape[1:])
    assert net.as_tensor("prob")(x).shape == found.shape
    assert ir.score([], net) == []


LARGE = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 1152 } } }
layer { name: "o" type: "InnerProduct" bottom: "x" top: "o" inner_product_param { num_output: 1008 } }"""


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8"])
def test_no_images_through_large_weights(precision: str) -> None:
    fast = ir.fast(ir.load_net(parse_net(LARGE), seed=3), precision)
    assert fast(torch.zeros(0, 1152))["o"].shape == (0, 1008)


# Body, the bottoms' shapes, and the top's shape for no images.
EMPTY = {
    "ArgMax": ('type: "ArgMax" argmax_param { top_k: 2 out_max_val: true }', [(2, 3, 5, 4)], (0, 2, 2, 1)),
    "ArgMax of scores": ('type: "ArgMax"', [(3,)], (0, 1, 1)),
    "MVN": ('type: "MVN"', [(2, 3, 5, 4)], (0, 3, 5, 4)),
    "MVN across channels": (
        'type: "MVN" mvn_param { across_channels: true normalize_variance: false }', [(2, 3, 5, 4)], (0, 3, 5, 4),
    ),
    "Reshape": ('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 6 } }', [(2, 3, 5, 4)], (0, 10, 6)),
    "Reshape, the batch inferred": ('type: "Reshape" reshape_param { shape { dim: -1 dim: 12 } }', [(2, 3, 4)], (0, 12)),
    "Flatten": ('type: "Flatten" flatten_param { axis: 2 }', [(2, 3, 5, 4)], (0, 3, 20)),
    "InnerProduct of rows": ('type: "InnerProduct" inner_product_param { num_output: 7 axis: 2 }', [(2, 3, 5)], (0, 3, 7)),
    "DetectionOutput": (
        'type: "DetectionOutput" detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.4 } }',
        [(2, 16), (2, 12), (1, 2, 16)], (1, 1, 0, 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_a_layer_without_images(name: str, tmp_path: Path) -> None:
    body, shapes, expected = EMPTY[name]
    net = one_layer(body, *shapes)
    given = {
        f"in{index}": np.zeros((0, *shape[1:]) if shape[0] != 1 else shape, np.float32)
        for index, shape in enumerate(shapes)
    }
    assert net(given)["top0"].shape == expected
    assert ir.fast(net)(given)["top0"].shape == expected
    ir.save(net, tmp_path / "net.onnx")
    assert ir.load(tmp_path / "net.onnx")(given)["top0"].shape == expected


def test_a_recurrent_layer_needs_a_step() -> None:
    net = one_layer('type: "RNN" recurrent_param { num_output: 3 }', (4, 2, 5), (4, 2))
    with pytest.raises(ir.LayerError) as caught:
        net(in0=np.zeros((0, 2, 5)), in1=np.zeros((0, 2)))
    assert str(caught.value).startswith(
        "op (RNN): the values have no time steps; give at least one (inputs: in0 0x2x5"
    )
    assert net(in0=np.zeros((4, 0, 5)), in1=np.zeros((4, 0)))["top0"].shape == (4, 0, 3)
