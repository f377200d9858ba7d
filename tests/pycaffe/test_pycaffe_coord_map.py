"""`caffe.coord_map`: where layers place their outputs, by formulas and by running the Crop that results."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro import pycaffe as caffe
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.pycaffe import coord_map
from ilgnet_repro.pycaffe import layers as L
from ilgnet_repro.pycaffe import params as P
from ilgnet_repro.pycaffe.coord_map import (
    AxisMismatchException,
    UndefinedMapException,
    compose,
    conv_params,
    coord_map_from_to,
    crop,
    crop_params,
    inverse,
)


def net(*, kernel: Any = 3, stride: Any = 1, pad: Any = 0, up: int = 2, up_pad: int = 0) -> Any:
    """A convolution, a pooling by 2 and a deconvolution by ``up``, and a blob that is connected to none of them."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[2, 3, 40, 30]))
    n.apart = L.Input(shape=dict(dim=[2, 3, 9, 8]))
    n.conv = L.Convolution(n.data, num_output=4, kernel_size=kernel, stride=stride, pad=pad)
    n.pool = L.Pooling(n.conv, pool=P.Pooling.MAX, kernel_size=2, stride=2, pad=0)
    n.up = L.Deconvolution(
        n.pool, convolution_param=dict(num_output=4, kernel_size=2 * up, stride=up, pad=up_pad)
    )
    return n


# Layer: its map as (axis, scale, shift).
MAPS: dict[str, tuple[Any, tuple[Any, list[float], list[float]]]] = {
    "convolution": (L.Convolution(kernel_size=5, stride=2, pad=1), (1, [0.5], [-0.5])),
    "dilated": (L.Convolution(kernel_size=3, dilation=4, pad=2), (1, [1], [-2])),
    "by axes": (L.Convolution(kernel_size=[3, 5], stride=[1, 2], pad=[0, 3]), (1, [1, 0.5], [-1, 0.5])),
    "pooling": (L.Pooling(kernel_size=3, stride=2), (1, [0.5], [-0.5])),
    "a pooling's message": (L.Pooling(pooling_param=dict(kernel_size=2, stride=2)), (1, [0.5], [-0.25])),
    "deconvolution": (L.Deconvolution(convolution_param=dict(kernel_size=4, stride=2, pad=1)), (1, [2], [0.5])),
    "deconvolution without its message": (L.Deconvolution(kernel_size=4, stride=2, pad=1), (1, [2], [0.5])),
    "im2col": (L.Im2col(convolution_param=dict(kernel_size=3, axis=2)), (2, [1], [-1])),
    "crop": (L.Crop(axis=2, offset=[3, 4]), (1, [1], [-3, -4])),
    "crop without offset": (L.Crop(axis=3), (2, [1], [0])),
    "relu": (L.ReLU(), (None, [1], [0])),
    "eltwise": (L.Eltwise(), (None, [1], [0])),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_the_map_of_a_layer(name: str) -> None:
    top, (axis, scale, shift) = MAPS[name]
    found = coord_map.coord_map(top.fn)
    assert found[0] == axis
    assert np.atleast_1d(found[1]).tolist() == scale
    assert np.atleast_1d(found[2]).tolist() == shift


def test_parameters_of_windows_and_crops() -> None:
    axis, *arrays = conv_params(L.Convolution(kernel_size=3, dilation=2).fn)
    assert (axis, [one.tolist() for one in arrays]) == (1, [[1], [5], [0]])
    axis, offset = crop_params(L.Crop(crop_param=dict(offset=[1, 2])).fn)
    assert (axis, offset.tolist()) == (2, [1, 2])


def test_maps_compose_and_invert() -> None:
    assert compose((None, 1, 0), (1, 2, 3)) == (1, 2, 3)
    assert compose((1, 2, 3), (None, 1, 0)) == (1, 2, 3)
    assert compose((1, 2, 3), (1, 4, 5)) == (1, 8, 13)
    assert inverse((1, 2, 3)) == (1, 0.5, -1.5)
    with pytest.raises(AxisMismatchException, match="after axis 1 and after axis 2 cannot be composed"):
        compose((1, 2, 3), (2, 1, 0))


def test_pads_shift_and_cancel_out() -> None:
    _, scale, shift = coord_map_from_to(*ends(net()))
    assert scale.tolist() == [1]
    for pad in (1, 4):
        assert coord_map_from_to(*ends(net(pad=pad)))[2].tolist() == (shift - pad).tolist()
        assert coord_map_from_to(*ends(net(up_pad=pad)))[2].tolist() == (shift + pad).tolist()
        assert coord_map_from_to(*ends(net(pad=pad, up_pad=pad)))[2].tolist() == shift.tolist()


def ends(n: Any) -> tuple[Any, Any]:
    return n.up, n.data


def test_each_axis_has_its_own() -> None:
    whole = [coord_map_from_to(*ends(net(kernel=k, stride=s, pad=p))) for k, s, p in ((3, 1, 0), (5, 2, 4))]
    both = coord_map_from_to(*ends(net(kernel=[3, 5], stride=[1, 2], pad=[0, 4])))
    assert both[1].tolist() == [*whole[0][1], *whole[1][1]]
    assert both[2].tolist() == [*whole[0][2], *whole[1][2]]


def test_layers_in_between_that_move_nothing() -> None:
    n = net()
    expected = coord_map_from_to(n.up, n.data)
    n.relu = L.ReLU(n.up)
    n.same = L.Convolution(n.relu, num_output=2, kernel_size=1)
    for top in (n.relu, n.same):
        assert coord_map_from_to(top, n.data) == expected


def test_both_sides_of_a_sum_and_a_source_that_is_not_the_input() -> None:
    n = net()
    n.sum = L.Eltwise(n.up, L.Convolution(n.up, num_output=4, kernel_size=1))
    assert coord_map_from_to(n.sum, n.data) == coord_map_from_to(n.up, n.data)
    other = L.Convolution(n.conv, num_output=2, kernel_size=5, pad=2)
    assert coord_map_from_to(n.up, other)[2].tolist() == coord_map_from_to(n.up, n.conv)[2].tolist()


def test_a_crop_moves_by_its_offset_and_its_second_bottom_only_gives_the_size() -> None:
    n = net()
    _, _, shift = coord_map_from_to(n.up, n.data)
    n.cut = L.Crop(n.up, n.apart, axis=2, offset=7)
    _, _, cut = coord_map_from_to(n.cut, n.data)
    assert cut.tolist() == (shift + 7).tolist()
    with pytest.raises(RuntimeError):
        coord_map_from_to(n.cut, n.apart)


@pytest.mark.parametrize(("kernel", "pad", "up_pad"), [(3, 5, 0), (3, 6, 0), (5, 8, 1), (1, 3, 0)])
def test_the_crop_is_where_an_impulse_is(kernel: int, pad: int, up_pad: int) -> None:
    """A net that only shifts: an impulse of the input comes out of the Crop at its own place."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 21, 18]))
    n.conv = L.Convolution(n.data, num_output=1, kernel_size=kernel, pad=pad, bias_term=False)
    n.up = L.Deconvolution(n.conv, num_output=1, kernel_size=3, pad=up_pad, bias_term=False)
    n.out = crop(n.up, n.data)
    built = ir.load_net(parse_net(str(n.to_proto())), seed=1)
    for name, size in (("conv", kernel), ("up", 3)):
        weight = built.params[name][0]
        weight.data.zero_()
        weight.data[0, 0, size // 2, size // 2] = 1
    image = np.zeros((1, 1, 21, 18), np.float32)
    image[0, 0, 8, 11] = 1
    assert np.array_equal(built(data=image)["out"].detach().numpy(), image)
    assert list(n.out.fn.params["crop_param"]["offset"]) == [pad + 1 - kernel // 2 - up_pad]
    assert n.out.fn.params["crop_param"]["axis"] == 2


def test_nets_of_three_spatial_axes() -> None:
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[2, 3, 20, 20, 20]))
    n.conv = L.Convolution(n.data, num_output=4, kernel_size=[3, 3, 3], stride=[1, 1, 1], pad=[0, 1, 2])
    n.pool = L.Pooling(n.conv, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.up = L.Deconvolution(n.pool, num_output=4, kernel_size=4, stride=2)
    axis, scale, shift = coord_map_from_to(n.up, n.data)
    assert (axis, scale.tolist()) == (1, [1, 1, 1])
    assert (shift - shift[0]).tolist() == [0, -1, -2]


def test_a_crop_of_what_is_aligned_already() -> None:
    n = net()
    n.relu = L.ReLU(n.data)
    assert crop(n.relu, n.data).fn.params == {"crop_param": {"axis": 2, "offset": [0]}}


def deeper(**options: Any) -> Any:
    n = net(**options)
    n.dense = L.InnerProduct(n.up, num_output=3)
    return n


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not connected": (
        lambda: ((n := net()), coord_map_from_to(n.up, n.apart)), RuntimeError,
        "Could not compute map between tops; are they connected by spatial layers?"),
    "through a dense layer": (
        lambda: ((n := deeper()), coord_map_from_to(n.dense, n.data)), RuntimeError, "Could not compute map"),
    "a dense layer's own map": (
        lambda: coord_map.coord_map(deeper().dense.fn), UndefinedMapException, "InnerProduct: has no map of coordinates"),
    "global pooling": (
        lambda: coord_map.coord_map(L.Pooling(global_pooling=True).fn), UndefinedMapException,
        "Pooling: has no kernel_size"),
    "two scales": (lambda: crop(*ends(net(up=4))), AssertionError, "scale mismatch on crop (a = [0.5])"),
    "a negative offset": (
        lambda: crop(*ends(net(up_pad=5))), AssertionError, "cannot crop negative width (b = [5.])"),
    "half a pixel": (lambda: crop(*ends(net(kernel=4, pad=9))), AssertionError, "cannot crop noninteger width (b = ["),
    "sides by name": (
        lambda: coord_map.coord_map(L.Convolution(kernel_h=3, kernel_w=2).fn), AssertionError,
        "cropping does not support legacy _h/_w params (kernel_h, kernel_w)"),
    "sides by name in the message": (
        lambda: coord_map.coord_map(L.Pooling(pooling_param=dict(kernel_size=3, stride_h=2)).fn), AssertionError,
        "cropping does not support legacy _h/_w params (stride_h)"),
    "axes that do not match": (
        lambda: ((n := net()), coord_map_from_to(L.Crop(n.up, n.apart, axis=3), n.data)), AxisMismatchException,
        "after axis 2 and after axis 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    work, kind, message = REFUSED[name]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        work()
    assert isinstance(caught.value, IlgnetError)
