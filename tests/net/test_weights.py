"""Weights held against a net by layer name and shape: what fits, and what stops a load, by name."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from ilgnet_repro.errors import WeightsError
from ilgnet_repro.layers.base import BlobSpec
from ilgnet_repro.weights import fit_weights, take_weights


@dataclass
class Blob:
    shape: tuple
    legacy: bool = False

    def array(self) -> np.ndarray:
        return np.arange(np.prod(self.shape, dtype=int), dtype=np.float32).reshape(self.shape)


@dataclass
class Held:
    name: str
    blobs: list = field(default_factory=list)


NET = {
    "data": [],
    "conv": [BlobSpec("weight", (4, 3, 5, 2)), BlobSpec("bias", (4,))],
    "ip": [BlobSpec("weight", (7, 6))],
    "scalar": [BlobSpec("scale", ())],
}
WHOLE = [
    Held("conv", [Blob((4, 3, 5, 2)), Blob((4,))]), Held("ip", [Blob((7, 6))]), Held("scalar", [Blob(())]),
    Held("data"),
]  # fmt: skip
OLD = [
    Held("conv", [Blob((4, 3, 5, 2), legacy=True), Blob((1, 1, 1, 4), legacy=True)]),
    Held("ip", [Blob((1, 1, 7, 6), legacy=True)]), Held("scalar", [Blob((1, 1, 1, 1), legacy=True)]),
]  # fmt: skip


@pytest.mark.parametrize(
    "layers", [WHOLE, OLD, [*WHOLE, Held("extra", [Blob((9,))])]], ids=["modern", "2013", "extra"]
)
def test_what_fits_is_taken_in_the_nets_shapes(layers) -> None:
    arrays = take_weights(NET, layers)
    assert {name: [a.shape for a in blobs] for name, blobs in arrays.items()} == {
        "conv": [(4, 3, 5, 2), (4,)], "ip": [(7, 6)], "scalar": [()],
    }  # fmt: skip


def test_an_extra_layer_is_told() -> None:
    fit = fit_weights(NET, [*WHOLE, Held("extra", [Blob((9,))])])
    assert (fit.extra, fit.is_whole) == (("extra",), True)


def without(name: str) -> list:
    return [layer for layer in WHOLE if layer.name != name]


REFUSED = [
    (
        "missing", without("ip"),
        "w: holds no weights for ip; use the prototxt these weights were made with",
    ),
    (
        "renamed head", [*without("ip"), Held("ip_old", [Blob((7, 6))])],
        "w: holds no weights for ip (the file has ip_old, which the net lacks); "
        "use the prototxt these weights were made with",
    ),
    (
        "misshapen", [*without("ip"), Held("ip", [Blob((6, 7))])],
        "w: layer ip, blob 0 is 6x7 in the file and 7x6 in the net; use the prototxt these weights were made with",
    ),
    (
        "too few blobs", [*without("conv"), Held("conv", [Blob((4, 3, 5, 2))])],
        "w: layer conv has 1 blobs in the file and 2 in the net; use the prototxt these weights were made with",
    ),
    (
        "modern leading ones are not dropped", [*without("ip"), Held("ip", [Blob((1, 1, 7, 6))])],
        "w: layer ip, blob 0 is 1x1x7x6 in the file and 7x6 in the net; "
        "use the prototxt these weights were made with",
    ),
    (
        "old trailing ones are not padding", [*without("ip"), Held("ip", [Blob((7, 6, 1, 1), legacy=True)])],
        "w: layer ip, blob 0 is 7x6x1x1 in the file and 7x6 in the net; "
        "use the prototxt these weights were made with",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(layers, message) -> None:
    with pytest.raises(WeightsError) as caught:
        take_weights(NET, layers, source="w")
    assert str(caught.value) == message


def test_fine_tuning_may_lack_layers_but_not_misshape_them() -> None:
    assert list(take_weights(NET, without("ip"), allow_missing=True)) == ["conv", "scalar"]
    with pytest.raises(WeightsError):
        take_weights(NET, [Held("ip", [Blob((6, 7))])], allow_missing=True)
