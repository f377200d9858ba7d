"""Calls of a net: inputs by name or in place, of any number type, blobs and shapes by name; everything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe_tool.batches import TestFeed
from ilgnet_repro.cli.main import main
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.errors import IlgnetError

TWO = """name: "two"
layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
layer { name: "b" type: "Input" top: "b" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
layer { name: "o" type: "Eltwise" bottom: "a" bottom: "b" top: "o" }"""
LOSS = TWO.replace('"Eltwise"', '"EuclideanLoss"')
MLP = """name: "mlp"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 6 } }"""


def load(text: str, **options):
    return ir.load_net(parse_net(text), seed=3, **options)


@pytest.fixture(scope="module")
def net():
    return load(SMALL_TEXT)


@pytest.fixture(scope="module")
def data():
    return torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


BY_ITSELF = {
    "a tensor": lambda x: x,
    "an array": lambda x: x.numpy(),
    "an array in the other byte order": lambda x: x.numpy().astype(">f4"),
    "an array read backwards": lambda x: np.ascontiguousarray(x.numpy()[..., ::-1])[..., ::-1],
    "lists": lambda x: x.tolist(),
    "a mapping": lambda x: {"data": x},
}


@pytest.mark.parametrize("form", BY_ITSELF.values(), ids=BY_ITSELF)
def test_a_single_input_may_be_passed_without_its_name(net, data, form) -> None:
    wanted = net(data=data)["prob"]
    torch.testing.assert_close(net(form(data))["prob"], wanted, rtol=0, atol=0)
    torch.testing.assert_close(fast_net(net)(form(data))["prob"], wanted)
    assert list(net(form(data), blobs="ip")) == ["ip"]
    torch.testing.assert_close(net.run(form(data)).blobs["prob"], wanted, rtol=0, atol=0)


def test_a_loss_takes_its_inputs_by_name_only() -> None:
    made = load(LOSS)
    a, b = torch.ones(2, 3, 5, 4), torch.zeros(2, 3, 5, 4)
    assert made.loss({"a": a}, b=b).item() == 3 * 5 * 4 / 2
    with pytest.raises(IlgnetError) as caught:
        made.loss(a)
    assert str(caught.value) == "net 'two' has 2 inputs, so each is given by its name; it takes 'a', 'b'"


X = torch.zeros(2, 3, 9, 7)
REFUSED = {
    "an unknown keyword": ({"end": "fc"}, "'end' is not an input of net 'small'; it has 'data'"),
    "a misspelt keyword": ({"dta": X}, "'dta' is not an input of net 'small' (did you mean data?); it has 'data'"),
    "an inner blob": (
        {"pool": X}, "'pool' is a blob that the net computes, not an input of net 'small'; it has 'data'",
    ),
    "an input twice": ({"given": {"data": X}, "data": X}, "input 'data' is given twice; give it once"),
    "None": ({"data": None}, "input 'data' is a NoneType without numbers; give a tensor or an array"),
    "words": ({"data": "cat.jpg"}, "input 'data' is a str; give a tensor or an array, such as net.prepare(images) returns"),
    "ragged lists": ({"data": [[1], [2, 3]]}, "input 'data' is a list without numbers; give a tensor or an array"),
    "complex numbers": ({"data": X + 1j}, "input 'data' holds complex numbers; give real ones"),
    "no batch axis": (
        {"data": X[0]},
        "input 'data' of net 'small' is 3x9x7, of 3 axes; it takes 4, as 1x3x9x7; add the batch axis in front (x[None])",
    ),
    "two axes": (
        {"data": X[0, 0]}, "input 'data' of net 'small' is 9x7, of 2 axes; it takes 4, as 1x3x9x7",
    ),
    "channels last": (
        {"data": X.permute(0, 2, 3, 1)},
        "input 'data' of net 'small' is 2x9x7x3, which is N x H x W x C; it takes N x C x H x W, as 1x3x9x7: "
        "permute it (0, 3, 1, 2)",
    ),
    "another size": (
        {"data": torch.zeros(1, 3, 2, 2)}, "(inputs: data 1x3x2x2; the net was made for data 1x3x9x7)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("form", ["exact", "fast"])
def test_a_wrong_input_is_named(net, form, call, message) -> None:
    call = {"data": X, **call} if "data" not in call and "dta" not in call else dict(call)
    given = call.pop("given", None)
    run = net if form == "exact" else fast_net(net)
    with pytest.raises(IlgnetError) as caught:
        run(given, **call)
    assert str(caught.value) == message or (message[0] == "(" and str(caught.value).endswith(message))


def test_run_and_deviation_refuse_unknown_inputs(net) -> None:
    for use in (lambda: net.run({"data": X, "label": X}), lambda: fast_net(net).deviation(data=X, label=X)):
        with pytest.raises(IlgnetError, match=r"^'label' is not an input of net 'small'; it has 'data'$"):
            use()


def test_channels_last_is_not_taken_for_a_flattened_blob() -> None:
    with pytest.raises(IlgnetError, match="is 2x5x4x3, which is N x H x W x C"):
        load(MLP)(torch.zeros(2, 5, 4, 3))


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        (["pol"], "blob 'pol' is not in net 'small' (did you mean pool?); "
         "it has 'data', 'conv@conv', 'conv', 'pool', 'ip', 'prob'"),
        ([3], "blob 3 is not in net 'small'; it has 'data', 'conv@conv', 'conv', 'pool', 'ip', 'prob'"),
        (3, "blobs=3: give a list of names"),
    ],
)  # fmt: skip
def test_a_wrong_blob_is_named(net, blobs, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        net(data=X, blobs=blobs)
    assert str(caught.value) == message


NO_IMAGE = "'image' is not an input of net 'small'; it has 'data'"
WITH_SHAPES = {
    "load_net": lambda shapes: load(SMALL_TEXT, input_shapes=shapes),
    "blob_shapes": lambda shapes: load(SMALL_TEXT).blob_shapes(shapes),
    "audit": lambda shapes: audit(parse_net(SMALL_TEXT), input_shapes=shapes),
    "caffe test and time": lambda shapes: TestFeed(load(SMALL_TEXT).graph, shapes=shapes),
}


@pytest.mark.parametrize("use", WITH_SHAPES.values(), ids=WITH_SHAPES)
def test_a_shape_for_an_unknown_input_is_refused(use) -> None:
    use({"data": (2, 3, 9, 7)})
    with pytest.raises(IlgnetError) as caught:
        use({"image": (1, 3, 9, 7)})
    assert str(caught.value) == NO_IMAGE


def test_an_invalid_shape_is_refused() -> None:
    with pytest.raises(IlgnetError) as caught:
        load(SMALL_TEXT, input_shapes={"data": (1, 3, 9.5, 7)})
    assert str(caught.value) == (
        "the shape of input 'data' is (1, 3, 9.5, 7); give integers, as (1, 3, 227, 227)"
    )


def test_the_command_line_refuses_a_shape_for_an_unknown_input(tmp_path, capsys) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(SMALL_TEXT)
    assert main(["audit", str(path), "--shape", "dat=1,3,9,7"]) == 1
    assert (
        "'dat' is not an input of net 'small' (did you mean data?); it has 'data'" in capsys.readouterr().err
    )
    assert main(["audit", str(path), "--shape", "data=1,3,9,7", "--shape", "data=2,3,9,7"]) == 1
    assert "--shape data=2,3,9,7: the shape of data is given twice" in capsys.readouterr().err


# ------------------------------------------------------------------ the dtype that a net computes in

KINDS = [np.uint8, np.int16, np.int64, np.bool_, np.float64, np.float16, np.uint16]
WITHOUT_PARAMETERS = {
    "sum": ('type: "Eltwise" bottom: "a" bottom: "b"', lambda a, b: a + b),
    "product": (
        'type: "Eltwise" bottom: "a" bottom: "b" eltwise_param { operation: PROD }',
        lambda a, b: a * b,
    ),
    "scale by a blob": ('type: "Scale" bottom: "a" bottom: "b" scale_param { axis: 0 }', lambda a, b: a * b),
    "power": ('type: "Power" bottom: "a" power_param { scale: 0.25 shift: -1 }', lambda a, b: a / 4 - 1),
    "average": (
        'type: "Pooling" bottom: "a" pooling_param { pool: AVE global_pooling: true }',
        lambda a, b: a.mean((2, 3), keepdims=True),
    ),
    "squares": (
        'type: "Reduction" bottom: "a" reduction_param { operation: SUMSQ }',
        lambda a, b: (a**2).sum(),
    ),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("layer", "formula"), WITHOUT_PARAMETERS.values(), ids=WITHOUT_PARAMETERS)
def test_a_net_without_parameters_computes_in_float32(layer, formula, kind) -> None:
    text = "\n".join(TWO.splitlines()[:3]) + f'\nlayer {{ name: "o" top: "o" {layer} }}'
    made = load(text)
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 200, (2, 3, 5, 4)).astype(kind) for _ in range(2))
    wanted = torch.from_numpy(np.asarray(formula(a.astype(np.float64), b.astype(np.float64)), np.float32))
    for run in (made, fast_net(made)):
        for found in (
            run(a=a, b=b)["o"],
            run(a=torch.from_numpy(a), b=torch.from_numpy(b.astype(np.float32)))["o"],
        ):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-4)


def test_a_net_without_parameters_is_converted() -> None:
    made = load(TWO).double()
    assert made(a=np.ones((2, 3, 5, 4), np.uint8), b=torch.ones(2, 3, 5, 4))["o"].dtype == torch.float64
    made.float()
    assert made(a=torch.ones(2, 3, 5, 4).double(), b=torch.ones(2, 3, 5, 4))["o"].dtype == torch.float32
    with pytest.raises(
        IlgnetError, match=r"net 'two' computes in torch\.float64 on cpu; the fast path takes float32"
    ):
        fast_net(made.double())


def test_dummy_data_has_the_nets_dtype() -> None:
    text = (
        MLP
        + """
    layer { name: "d" type: "DummyData" top: "d" dummy_data_param {
      shape { dim: 2 dim: 6 } data_filler { type: "constant" value: 0.5 } } }
    layer { name: "o" type: "Eltwise" bottom: "ip" bottom: "d" top: "o" }"""
    )
    made = load(text).double()
    found = made(np.ones((2, 3, 5, 4), np.uint8), blobs=["ip", "o"])
    torch.testing.assert_close(found["o"], found["ip"] + 0.5)
    assert found["o"].dtype == torch.float64


def test_an_input_followed_by_an_in_place_layer_keeps_its_name() -> None:
    double = 'layer { name: "p" type: "Power" bottom: "x" top: "x" power_param { scale: 2 } }'
    text = MLP.replace('layer { name: "ip"', f'{double} layer {{ name: "ip"')
    made = load(text, input_shapes={"x": (1, 3, 5, 4)})
    x = torch.ones(1, 3, 5, 4)
    wanted = 2 * x.flatten(1) @ made.params["ip"][0].T
    for run in (made, fast_net(made)):
        torch.testing.assert_close(run(x=x)["ip"], wanted)
        torch.testing.assert_close(run(x)["ip"], wanted)
    assert made.blob_shapes(x=(7, 3, 5, 4))["ip"] == (7, 6)
