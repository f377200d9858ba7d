"""InnerDistance, and the fields of happynear's Caffe for it: fillers, Accuracy of distances, limits of Scale."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import assert_all_uses, build, gradients, run

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError
from ilgnet_repro.runtime.fold import fold
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.schema import caffe_pb2 as pb

F32 = np.float32
ROWS = draw(4, 6, seed=1)


def by_loop(items, rows, power):
    """The distance of each item to each row, value by value."""
    top = np.zeros((len(items), len(rows)))
    for m, item in enumerate(items.astype(np.float64)):
        for n, row in enumerate(rows.astype(np.float64)):
            for a, b in zip(item, row, strict=True):
                top[m, n] += abs(a - b) ** power
    return top


def distance_net(fields, shape=(3, 6), blobs=(ROWS,)):
    return one_layer(f'type: "InnerDistance" inner_distance_param {{ {fields} }}', shape, blobs=list(blobs))


@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 3)], ids=["2d", "3d"])
@pytest.mark.parametrize(
    ("fields", "power"), [("", 2), ('distance_type: "L2"', 2), ('distance_type: "L1"', 1)]
)
def test_inner_distance(shape, fields, power):
    x = draw(*shape)
    expected = by_loop(x.reshape(3, 6), ROWS, power).astype(F32)
    assert_all_uses(distance_net(f"num_output: 4 {fields}", shape), [x], [expected])


def test_items_on_several_axes():
    x = draw(3, 2, 6)
    expected = by_loop(x.reshape(6, 6), ROWS, 2).reshape(3, 2, 4).astype(F32)
    assert_all_uses(distance_net("num_output: 4 axis: 2", x.shape), [x], [expected])


@pytest.mark.parametrize("stated", ["bias_term: true", 'bias_filler { type: "constant" }'])
def test_the_bias_of_older_versions(stated):
    x, bias = draw(3, 6), draw(4, seed=2)
    expected = (by_loop(x, ROWS, 2) + bias).astype(F32)
    assert_all_uses(distance_net(f"num_output: 4 {stated}", blobs=[ROWS, bias]), [x], [expected])
    without = distance_net(f"num_output: 4 bias_term: false {stated if 'filler' in stated else ''}")
    assert len(without.params["op"]) == 1


def test_rows_of_length_one():
    x = draw(3, 6)
    unit = np.array([row / np.sqrt((row.astype(np.float64) ** 2).sum() + 1e-6) for row in ROWS])
    expected = by_loop(x, unit, 2).astype(F32)
    assert_all_uses(distance_net("num_output: 4 normalize: true"), [x], [expected])
    body = 'type: "InnerDistance" inner_distance_param { num_output: 4 normalize: true }'
    trained = one_layer(body, (3, 6), blobs=[ROWS], phase="TRAIN")
    np.testing.assert_allclose(run(trained, [x])[0], expected, rtol=1e-5)
    np.testing.assert_allclose(trained.params["op"][0].detach().numpy(), unit, rtol=1e-5)  # stored


def test_weights_as_bottom_and_their_gradients():
    x, rows, diff = draw(3, 2, 3), draw(4, 6, 1, 1, seed=1), draw(3, 4, seed=3)
    net = build("InnerDistance", [x.shape, rows.shape])
    flat, centers = x.reshape(3, 6), rows.reshape(4, 6)
    assert_all_uses(net, [x, rows], [by_loop(flat, centers, 2).astype(F32)])
    assert not net.params.get("op")
    apart = flat[:, None] - centers[None]
    wanted = [2 * (diff[..., None] * apart).sum(1), -2 * (diff[..., None] * apart).sum(0)]
    for found, expected in zip(gradients(net, [x, rows], diff), wanted, strict=True):
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_only_the_own_center_moves():
    x, rows, labels, diff = draw(3, 6), draw(4, 6, seed=1), F32([1, 3, 1]), draw(3, 4, seed=3)
    net = build(
        "InnerDistance", [x.shape, rows.shape, (3,)], "inner_distance_param { update_center_only: true }"
    )
    np.testing.assert_allclose(run(net, [x, rows, labels])[0], by_loop(x, rows, 2), rtol=1e-5)
    of_x, of_rows = gradients(net, [x, rows, labels], diff)[:2]
    apart = x[:, None] - rows[None]
    own = labels[:, None] == np.arange(4)
    np.testing.assert_allclose(of_x, 2 * (diff[..., None] * apart).sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_rows, -2 * ((diff * own)[..., None] * apart).sum(0), rtol=1e-4, atol=1e-5)


REFUSED = [
    ("num_output: 4 transpose: true", "transpose mixes rows and columns in the fork; store one row per output"),
    ('num_output: 4 distance_type: "cos"', "distance_type 'cos' is unknown; use L1 or L2"),
    ("", "num_output is 0 or absent; state the number of outputs"),
    (
        "num_output: 4 update_center_only: true",
        "has 1 bottoms; with update_center_only it takes items, weights and labels, otherwise items, or items and weights",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[row[1].split()[0] for row in REFUSED])
def test_refuses(fields, message):
    with pytest.raises(LayerError, match=re.escape(f"op (InnerDistance): {message}")):
        build("InnerDistance", [(3, 6)], f"inner_distance_param {{ {fields} }}")


def test_l1_is_not_trained():
    body = 'type: "InnerDistance" inner_distance_param { num_output: 4 distance_type: "L1" }'
    message = "op (InnerDistance): distance_type L1 has no true gradient in the fork; train with L2"
    with pytest.raises(LayerError, match=re.escape(message)):
        one_layer(body, (3, 6), phase="TRAIN")


def test_refuses_rows_of_another_length():
    message = "op (InnerDistance): weights [4, 5] must have one row per output, of 6 values"
    with pytest.raises(LayerError, match=re.escape(message)):
        build("InnerDistance", [(3, 6), (4, 5)])


# ---------------------------------------------------------------------- fields of other layers


def test_a_parameter_is_filled():
    text = (
        'layer { name: "op" type: "Parameter" top: "top0" parameter_param { shape { dim: 5 dim: 3 } '
        'blob_filler { type: "gaussian_unitball" } } }'
    )
    net = CaffeNet(load_graph(parse_net(text)), seed=3)
    rows = net.params["op"][0].detach().numpy()
    np.testing.assert_allclose((rows**2).sum(1), np.ones(5), rtol=1e-5)
    assert len(np.unique(rows)) == 15


def test_accuracy_of_distances():
    distances = F32([[1, 2, 3], [5, 4, 6], [2, 9, 1], [3, 1, 2]])
    labels = F32([0, 0, 2, 2])  # right, second, right, second
    for top_k, right in ((1, 0.5), (2, 1)):
        fields = f"accuracy_param {{ min_is_better: true top_k: {top_k} }}"
        assert_all_uses(build("Accuracy", [(4, 3), (4,)], fields), [distances, labels], [F32(right)])
    plain = build("Accuracy", [(4, 3), (4,)], "accuracy_param { min_is_better: false }")
    assert run(plain, [distances, labels])[0] == 0


def test_accuracy_of_distances_is_not_ctpns():
    message = "op (Accuracy): min_is_better goes with one ignore_label and two tops at most; remove it"
    with pytest.raises(LayerError, match=re.escape(message)):
        build("Accuracy", [(4, 3), (4,)], "accuracy_param { min_is_better: true }", tops=3)


LIMITS = {
    "min_value: 0.5": [0.5, 0.5, 3],
    "max_value: 2": [-1, 0.25, 2],
    "min_value: 0 max_value: 1": [0, 0.25, 1],
}


@pytest.mark.parametrize(("fields", "used"), LIMITS.items(), ids=LIMITS)
def test_factors_within_limits(fields, used):
    x, factors = draw(2, 3, 4), F32([-1, 0.25, 3])
    expected = (x * F32(used)[:, None]).astype(F32)
    body = f'type: "Scale" scale_param {{ {fields} }}'
    assert_all_uses(one_layer(body, x.shape, blobs=[factors]), [x], [expected])
    given = build("Scale", [x.shape, (3,)], f"scale_param {{ {fields} }}")
    assert_all_uses(given, [x, factors], [expected])
    trained = one_layer(body, x.shape, blobs=[factors], phase="TRAIN")
    top = trained(torch.from_numpy(x))["top0"]
    top.sum().backward()
    blob = trained.params["op"][0]
    np.testing.assert_array_equal(blob.detach().numpy(), F32(used))  # stored
    np.testing.assert_allclose(blob.grad.numpy(), x.sum((0, 2)), rtol=1e-4)


def test_limited_factors_are_not_folded():
    text = (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [2, 3, 5, 4] } } }'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 2 kernel_size: 1 } }'
        'layer { name: "s" type: "Scale" bottom: "c" top: "s" scale_param { min_value: 2 } }'
    )
    net = CaffeNet(load_graph(parse_net(text)), seed=3)
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    made = fold(net, pb.NetParameter(), arrays)
    assert [node.type for node in made.graph.layers] == ["Input", "Convolution", "Scale"]


def test_refuses_limits_that_cross():
    with pytest.raises(LayerError, match=re.escape("op (Scale): min_value 2 must not exceed max_value 1")):
        build("Scale", [(2, 3)], "scale_param { min_value: 2 max_value: 1 }")


@pytest.mark.parametrize("fields", ["positive_weight: 0.5 negative_weight: 2", "positive_weight: 3", ""])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1)], ids=["2d", "4d"])
def test_label_specific_rescale(fields, shape):
    x, labels, diff = draw(*shape), F32([2, 0, 3]), draw(*shape, seed=4)
    factor = {key: float(value) for key, value in re.findall(r"(\w+)_weight: ([\d.]+)", fields)}
    own = (labels[:, None] == np.arange(4)).reshape(shape)
    factors = np.where(own, factor.get("positive", 1), factor.get("negative", 1))
    body = f'type: "LabelSpecificRescale" label_specific_rescale_param {{ {fields} %s }}'
    net = one_layer(body % "", shape, (3,), phase="TRAIN")
    assert_all_uses(net, [x, labels], [(x * factors).astype(F32)])
    np.testing.assert_allclose(gradients(net, [x, labels], diff)[0], diff * factors, rtol=1e-6)
    assert_all_uses(one_layer(body % "", shape, (3,)), [x, labels], [x])
    tested = one_layer(body % "rescale_test: true", shape, (3,))
    assert_all_uses(tested, [x, labels], [(x * factors).astype(F32)])


def test_later_fields_of_label_specific_rescale_are_refused_by_name():
    with pytest.raises(
        LayerError, match=r"op \(LabelSpecificRescale\): field label_specific_rescale_param.for_ip"
    ):
        build("LabelSpecificRescale", [(3, 4), (3,)], "label_specific_rescale_param { for_ip: true }")


def test_a_softmax_over_voxels():
    text = (
        'input: "data" input_shape { dim: [2, 3, 4, 5, 6] } '
        'layers { name: "op" type: VOXEL_SOFTMAX bottom: "data" top: "top0" }'
    )
    x = draw(2, 3, 4, 5, 6)
    net = CaffeNet(load_graph(parse_net(text)), seed=3)
    powers = np.exp(x.astype(np.float64))
    top = net({"data": torch.from_numpy(x)})["top0"].detach().numpy()
    np.testing.assert_allclose(top, powers / powers.sum(1, keepdims=True), rtol=1e-5)


STATED = 'inner_product_param {{ distance_type: "{}" }}'
KIND = 'softmax_param {{ normalize_type: "{}" }}'


def test_fields_of_normface_that_state_the_default():
    """NormFace's texts state them in messages that the layer does not read, or as Caffe's own softmax."""
    x, rows, labels = draw(3, 6), ROWS, F32([2, 0, 3])
    distance = build("InnerDistance", [x.shape, rows.shape], STATED.format("L2"))
    assert_all_uses(distance, [x, rows], [by_loop(x, rows, 2).astype(F32)])
    loss = build("SoftmaxWithLoss", [(3, 6), (3,)], KIND.format("Softmax"))
    wanted = np.mean([np.log(np.exp(row).sum()) - row[int(n)] for row, n in zip(x, labels, strict=True)])
    assert_all_uses(loss, [x, labels], [np.asarray(wanted, F32)])
    unit = build("Normalize", [(3, 6)], KIND.format("L2"))
    assert_all_uses(unit, [x], [(x / np.sqrt((x**2).sum(1, keepdims=True) + 1e-6)).reshape(3, 6, 1, 1)])


@pytest.mark.parametrize(
    ("type_", "field", "message"),
    [
        (
            "InnerDistance",
            STATED.format("L1"),
            "inner_product_param.distance_type 'L1' is not read; state inner_dist",
        ),
        (
            "SoftmaxWithLoss",
            KIND.format("L1"),
            "softmax_param.normalize_type 'L1' is not supported; use Softmax",
        ),
    ],
)
def test_other_values_of_these_fields_are_refused(type_, field, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        build(type_, [(3, 6), (3, 6) if type_ == "InnerDistance" else (3,)], field)
