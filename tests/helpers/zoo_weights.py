"""Nets of the zoo with drawn weights, whole or with an eighth of the channels, for tests of the writers."""

from __future__ import annotations

from math import prod, sqrt

import numpy as np

from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.zoo.catalogue import build

NETS = (
    "googlenet", "alexnet", "resnet50", "mobilenet", "mobilenet_v2", "squeezenet", "vgg16", "vgg19", "ssd300",
    "mobilenet_ssd", "fcn8s",
)  # fmt: skip


def narrow_text(name: str) -> pb.NetParameter:
    """A net of the zoo with an eighth of the channels, wherever their number is a multiple of 32.

    A last Softmax is left out: its probabilities of 0 and 1 would hide differences.
    """
    net = pb.NetParameter()
    net.CopyFrom(build(name))
    if net.layer[-1].type == "Softmax":
        del net.layer[-1]
    for layer in net.layer:
        for param in (layer.convolution_param, layer.inner_product_param):
            if param.num_output >= 32 and param.num_output % 32 == 0:
                param.num_output //= 8
        group = layer.convolution_param.group
        if layer.HasField("convolution_param") and group > 2 and group % 32 == 0:
            layer.convolution_param.group //= 8
    return net


def drawn_net(text: pb.NetParameter, seed: int = 11) -> CaffeNet:
    """The net with weights that keep the values of all layers at similar magnitudes."""
    graph = build_graph(text)
    specs = plan_net(graph).blobs
    random = np.random.default_rng(seed)
    return CaffeNet(graph, {name: [_draw(spec, random) for spec in blobs] for name, blobs in specs.items()})


def _draw(spec, random: np.random.Generator) -> np.ndarray:
    shape = spec.shape
    if spec.name == "weight" and len(shape) > 1:
        return random.standard_normal(shape, np.float32) * np.float32(sqrt(2 / prod(shape[1:])))
    low, high = {
        "weight": (0.8, 1.2), "variance": (0.5, 1.5), "fourth_blob": (0.5, 1.5), "scale_factor": (1, 1),
        "scale": (0.9, 1.1), "slope": (0.1, 0.3),
    }.get(spec.name, (-0.1, 0.1))  # fmt: skip
    return random.uniform(low, high, shape).astype(np.float32)
