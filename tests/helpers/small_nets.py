"""Small nets with seeded weights, as a Caffe user would have them on disk."""

from pathlib import Path

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.net import CaffeNet

SMALL_TEXT = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def write_weights(path: Path, text: str = SMALL_TEXT, seed: int = 5) -> CaffeNet:
    """Write seeded weights for a net and return it."""
    message = parse_net(text)
    net = CaffeNet(build_graph(message), seed=seed)
    write_caffemodel(
        path, message, {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    )
    return net


def write_net(folder: Path, name: str, text: str = SMALL_TEXT) -> None:
    """Write a net's prototxt, and seeded weights beside it."""
    write_weights(folder / f"{name}.caffemodel", text)
    (folder / f"{name}.prototxt").write_text(text)


SHARED_TEXT = """
name: "shared"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
  inner_product_param { num_output: 3 bias_term: false weight_filler { type: "gaussian" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
  inner_product_param { num_output: 3 bias_term: false } }
"""


FULLY_CONVOLUTIONAL = """
name: "any size"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 21 dim: 26 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "pool" top: "up" convolution_param {
  num_output: 2 kernel_size: 8 stride: 4 weight_filler { type: "xavier" } } }
layer { name: "score" type: "Crop" bottom: "up" bottom: "data" top: "score" crop_param { axis: 2 offset: 0 } }
layer { name: "all" type: "Pooling" bottom: "pool" top: "all" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "all" top: "ip" inner_product_param {
  num_output: 3 weight_filler { type: "xavier" } } }
"""


def net_of(text: str, seed: int = 3) -> CaffeNet:
    return CaffeNet(build_graph(parse_net(text)), seed=seed)
