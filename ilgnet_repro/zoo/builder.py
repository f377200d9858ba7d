"""`NetBuilder`: builds a NetParameter layer by layer; every method adds one layer and returns the name of its top.

The names are Caffe's (``num_output``, ``bottom``, ``lr_mult``), so that a net built here reads like its prototxt.
A field left at None is not set in the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ilgnet_repro.schema import caffe_pb2

Fields = Mapping[str, Any]

XAVIER: Fields = {"type": "xavier"}
MSRA: Fields = {"type": "msra"}

# As in nearly every Caffe net: biases have twice the learning rate and no weight decay.
WEIGHT_AND_BIAS: Sequence[Fields] = ({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0})
# For new layers on top of trained ones: ten times the learning rate.
NEW_WEIGHT_AND_BIAS: Sequence[Fields] = ({"lr_mult": 10, "decay_mult": 1}, {"lr_mult": 20, "decay_mult": 0})


def constant(value: float) -> Fields:
    """Return the filler that sets every value to ``value``."""
    return {"type": "constant", "value": value}


def gaussian(std: float) -> Fields:
    """Return the filler that draws from a normal distribution with mean 0."""
    return {"type": "gaussian", "std": std}


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def as_list(value: int | Sequence[int] | None) -> list[int] | None:
    """Return the values of a repeated field from one number or several."""
    return [value] if isinstance(value, int) else None if value is None else list(value)


class NetBuilder:
    """Builds ``net``, a NetParameter, layer by layer."""

    def __init__(self, name: str) -> None:
        self.net = caffe_pb2.NetParameter(name=name)

    def layer(
        self,
        type_: str,
        name: str,
        bottoms: str | Sequence[str] = (),
        *,
        tops: str | Sequence[str] | None = None,
        phase: str | None = None,
        param: Sequence[Fields] | None = None,
        loss_weight: float | None = None,
        **fields: Any,
    ) -> str:
        """Add a layer of any type and return its first top (the layer's name if ``tops`` is not given).

        ``phase`` writes an ``include`` rule; ``fields`` are further fields of the layer, such as ``crop_param={...}``.
        """
        tops = name if tops is None else tops
        tops = [tops] if isinstance(tops, str) else list(tops)
        message = caffe_pb2.LayerParameter(
            name=name,
            type=type_,
            bottom=[bottoms] if isinstance(bottoms, str) else list(bottoms),
            top=tops,
            **without_none(
                include=None if phase is None else [{"phase": phase}],
                param=param,
                loss_weight=None if loss_weight is None else [loss_weight],
            ),
            **fields,
        )
        self.net.layer.append(message)
        return tops[0] if tops else name

    def in_place(self, type_: str, name: str, blob: str, **fields: Any) -> str:
        """Add an in-place layer."""
        return self.layer(type_, name, blob, tops=blob, **fields)

    # ------------------------------------------------------------------------------------------ data

    def input(self, name: str, *shape: int) -> str:
        """Add an input blob of shape N, C, H, W."""
        return self.layer("Input", name, input_param={"shape": [{"dim": shape}]})

    def data(
        self,
        source: str,
        *,
        batch_size: int,
        crop_size: int,
        mirror: bool,
        mean_file: str | None = None,
        mean_value: Sequence[float] | None = None,
        phase: str | None = None,
        shuffle: bool | None = None,
    ) -> str:
        """Add an LMDB of images and labels, with tops ``data`` and ``label``; return ``data``."""
        transform = without_none(
            mirror=mirror, crop_size=crop_size, mean_file=mean_file, mean_value=mean_value
        )
        data = without_none(source=source, batch_size=batch_size, backend="LMDB", shuffle=shuffle)
        return self.layer(
            "Data", "data", tops=("data", "label"), phase=phase, transform_param=transform, data_param=data
        )

    # ------------------------------------------------------------------------------- learned layers

    def convolution(
        self,
        name: str,
        bottom: str,
        num_output: int,
        kernel_size: int,
        *,
        stride: int | None = None,
        pad: int | None = None,
        dilation: int | None = None,
        group: int | None = None,
        bias: bool = True,
        weight_filler: Fields | None = None,
        bias_filler: Fields | None = None,
        param: Sequence[Fields] | None = None,
        top: str | None = None,
        type_: str = "Convolution",
    ) -> str:
        """Add a square convolution; ``type_`` may be Deconvolution or DepthwiseConvolution."""
        fields = without_none(
            num_output=num_output,
            bias_term=None if bias else False,
            pad=as_list(pad),
            kernel_size=as_list(kernel_size),
            group=group,
            stride=as_list(stride),
            dilation=as_list(dilation),
            weight_filler=weight_filler,
            bias_filler=bias_filler,
        )
        return self.layer(type_, name, bottom, tops=top, param=param, convolution_param=fields)

    def inner_product(
        self,
        name: str,
        bottom: str,
        num_output: int,
        *,
        weight_filler: Fields | None = None,
        bias_filler: Fields | None = None,
        param: Sequence[Fields] | None = None,
        top: str | None = None,
    ) -> str:
        """Add a dense layer over all axes after the batch axis."""
        fields = without_none(num_output=num_output, weight_filler=weight_filler, bias_filler=bias_filler)
        return self.layer("InnerProduct", name, bottom, tops=top, param=param, inner_product_param=fields)

    # ------------------------------------------------------------------------------------ other layers

    def relu(self, name: str, blob: str) -> str:
        """Add an in-place ReLU."""
        return self.in_place("ReLU", name, blob)

    def dropout(self, name: str, blob: str, ratio: float) -> str:
        """Add an in-place Dropout."""
        return self.in_place("Dropout", name, blob, dropout_param={"dropout_ratio": ratio})

    def pooling(
        self,
        name: str,
        bottom: str,
        pool: str,
        kernel_size: int | None = None,
        *,
        stride: int | None = None,
        pad: int | None = None,
    ) -> str:
        """Add a pooling; ``pool`` is MAX or AVE. Without a kernel size it is global."""
        whole = True if kernel_size is None else None
        fields = without_none(
            pool=pool, pad=pad, kernel_size=kernel_size, stride=stride, global_pooling=whole
        )
        return self.layer("Pooling", name, bottom, pooling_param=fields)

    def lrn(self, name: str, bottom: str) -> str:
        """Add local response normalisation with the parameters of AlexNet and GoogLeNet."""
        fields = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
        return self.layer("LRN", name, bottom, lrn_param=fields)

    def concat(self, name: str, bottoms: Sequence[str]) -> str:
        """Add a concatenation over channels."""
        return self.layer("Concat", name, bottoms)

    def softmax(self, name: str, bottom: str) -> str:
        """Add a softmax over channels."""
        return self.layer("Softmax", name, bottom)

    def loss(self, name: str, bottom: str, *, top: str, weight: float | None = None) -> str:
        """Add a SoftmaxWithLoss with the labels of blob ``label``."""
        return self.layer("SoftmaxWithLoss", name, (bottom, "label"), tops=top, loss_weight=weight)

    def accuracy(
        self, name: str, bottom: str, *, top_k: int | None = None, phase: str | None = "TEST"
    ) -> str:
        """Add an Accuracy: the fraction of rows whose label is among the ``top_k`` highest scores."""
        fields: dict[str, Any] = {} if top_k is None else {"accuracy_param": {"top_k": top_k}}
        return self.layer("Accuracy", name, (bottom, "label"), phase=phase, **fields)
