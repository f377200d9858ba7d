"""A small fluent writer of nets: every method adds one layer and returns the name of its top.

The words are Caffe's (``num_output``, ``bottom``, ``lr_mult``), so that a net built here reads like the
prototxt it becomes.  A field left at None stays unset in the message, as it would in hand-written text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ilgnet_repro.schema import caffe_pb2

Fields = Mapping[str, Any]

XAVIER: Fields = {"type": "xavier"}
MSRA: Fields = {"type": "msra"}

# What nearly every Caffe net sets: biases learn twice as fast and do not decay.
WEIGHT_AND_BIAS: Sequence[Fields] = ({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0})
# New layers on top of trained ones learn ten times as fast.
NEW_WEIGHT_AND_BIAS: Sequence[Fields] = ({"lr_mult": 10, "decay_mult": 1}, {"lr_mult": 20, "decay_mult": 0})


def constant(value: float) -> Fields:
    """The filler that sets every value alike."""
    return {"type": "constant", "value": value}


def gaussian(std: float) -> Fields:
    """The filler that draws from a normal distribution of mean 0."""
    return {"type": "gaussian", "std": std}


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def listed(value: int | Sequence[int] | None) -> list[int] | None:
    """A repeated field from one number or several."""
    return [value] if isinstance(value, int) else None if value is None else list(value)


class NetBuilder:
    """Collects layers; ``net`` is the message so far."""

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
        """Add a layer of any type and return its first top (its own name unless ``tops`` says otherwise).

        ``phase`` writes an ``include`` rule; ``fields`` are the layer's own, such as ``crop_param={...}``.
        """
        tops = name if tops is None else tops
        tops = [tops] if isinstance(tops, str) else list(tops)
        message = caffe_pb2.LayerParameter(
            name=name,
            type=type_,
            bottom=[bottoms] if isinstance(bottoms, str) else list(bottoms),
            top=tops,
            **given(
                include=None if phase is None else [{"phase": phase}],
                param=param,
                loss_weight=None if loss_weight is None else [loss_weight],
            ),
            **fields,
        )
        self.net.layer.append(message)
        return tops[0] if tops else name

    def in_place(self, type_: str, name: str, blob: str, **fields: Any) -> str:
        """Add a layer that writes over its bottom."""
        return self.layer(type_, name, blob, tops=blob, **fields)

    # ------------------------------------------------------------------------------------------ data

    def input(self, name: str, *shape: int) -> str:
        """An input blob of shape N, C, H, W."""
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
        """An LMDB of images and labels: tops ``data`` and ``label``; returns ``data``."""
        transform = given(mirror=mirror, crop_size=crop_size, mean_file=mean_file, mean_value=mean_value)
        data = given(source=source, batch_size=batch_size, backend="LMDB", shuffle=shuffle)
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
        """A square convolution; ``type_`` may be Deconvolution or DepthwiseConvolution."""
        fields = given(
            num_output=num_output,
            bias_term=None if bias else False,
            pad=listed(pad),
            kernel_size=listed(kernel_size),
            group=group,
            stride=listed(stride),
            dilation=listed(dilation),
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
        """A dense layer over everything behind the batch axis."""
        fields = given(num_output=num_output, weight_filler=weight_filler, bias_filler=bias_filler)
        return self.layer("InnerProduct", name, bottom, tops=top, param=param, inner_product_param=fields)

    # ------------------------------------------------------------------------------------ the others

    def relu(self, name: str, blob: str) -> str:
        """ReLU in place."""
        return self.in_place("ReLU", name, blob)

    def dropout(self, name: str, blob: str, ratio: float) -> str:
        """Dropout in place."""
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
        """``pool`` is MAX or AVE; without a kernel size it covers the whole image."""
        whole = True if kernel_size is None else None
        fields = given(pool=pool, pad=pad, kernel_size=kernel_size, stride=stride, global_pooling=whole)
        return self.layer("Pooling", name, bottom, pooling_param=fields)

    def lrn(self, name: str, bottom: str) -> str:
        """Local response normalisation as AlexNet and GoogLeNet use it."""
        fields = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
        return self.layer("LRN", name, bottom, lrn_param=fields)

    def concat(self, name: str, bottoms: Sequence[str]) -> str:
        """Concatenation over channels."""
        return self.layer("Concat", name, bottoms)

    def softmax(self, name: str, bottom: str) -> str:
        """Probabilities over channels."""
        return self.layer("Softmax", name, bottom)

    def loss(self, name: str, bottom: str, *, top: str, weight: float | None = None) -> str:
        """SoftmaxWithLoss against the blob ``label``."""
        return self.layer("SoftmaxWithLoss", name, (bottom, "label"), tops=top, loss_weight=weight)

    def accuracy(
        self, name: str, bottom: str, *, top_k: int | None = None, phase: str | None = "TEST"
    ) -> str:
        """The share of rows whose label is among the ``top_k`` highest scores."""
        fields: dict[str, Any] = {} if top_k is None else {"accuracy_param": {"top_k": top_k}}
        return self.layer("Accuracy", name, (bottom, "label"), phase=phase, **fields)
