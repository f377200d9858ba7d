"""Whole nets as ONNX, folded and not: the zoo's, and a Faster R-CNN, in standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from zoo_weights import NETS, drawn_net, narrow_text

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.export.onnx_graph import build_onnx
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.fold import fold
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.onnx_net import open_session

# Layers that folding takes out, for the nets that have any.
FOLDED = {"resnet50": 106, "mobilenet": 54, "mobilenet_v2": 106}


def agree(model: onnx.ModelProto, net: CaffeNet, inputs: dict[str, torch.Tensor]) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    session = open_session(model.SerializeToString())
    names = {entry.name for entry in session.get_inputs()}
    found = session.run(None, {key: value.numpy() for key, value in inputs.items() if key in names})
    with torch.inference_mode():
        expected = net(inputs)
    for entry, value in zip(session.get_outputs(), found, strict=True):
        wanted = expected[entry.name].numpy()
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", NETS)
def test_nets_of_the_zoo(name: str) -> None:
    text = narrow_text(name)
    net = drawn_net(text)
    inputs = {key: value / 50 for key, value in seeded_inputs(net).items()}
    agree(build_onnx(net), net, inputs)
    arrays = {layer: [blob.detach().numpy() for blob in blobs] for layer, blobs in net.params.items()}
    result = fold(net, text, arrays)
    assert len(result.folded) == FOLDED.get(name, 0)
    if result.folded:
        model = build_onnx(CaffeNet(result.graph, result.arrays))
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        agree(model, net, inputs)


FASTER_RCNN = """
name: "small Faster R-CNN"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 96 dim: 128 } } }
layer { name: "im_info" type: "Input" top: "im_info" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 8 kernel_size: 7 stride: 16 pad: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "rpn_score" type: "Convolution" bottom: "conv" top: "rpn_score" convolution_param {
  num_output: 18 kernel_size: 1 } }
layer { name: "rpn_box" type: "Convolution" bottom: "conv" top: "rpn_box" convolution_param {
  num_output: 36 kernel_size: 1 } }
layer { name: "rpn_reshape" type: "Reshape" bottom: "rpn_score" top: "rpn_reshape" reshape_param {
  shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "rpn_prob" type: "Softmax" bottom: "rpn_reshape" top: "rpn_prob" }
layer { name: "rpn_back" type: "Reshape" bottom: "rpn_prob" top: "rpn_back" reshape_param {
  shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }
layer { name: "proposal" type: "Python" bottom: "rpn_back" bottom: "rpn_box" bottom: "im_info" top: "rois"
  python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "'feat_stride': 16" } }
layer { name: "roi_pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "roi_pool" roi_pooling_param {
  pooled_w: 3 pooled_h: 2 spatial_scale: 0.0625 } }
layer { name: "fc" type: "InnerProduct" bottom: "roi_pool" top: "fc" inner_product_param { num_output: 16 } }
layer { name: "cls_score" type: "InnerProduct" bottom: "fc" top: "cls_score" inner_product_param { num_output: 4 } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "fc" top: "bbox_pred" inner_product_param { num_output: 16 } }
layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }
"""


def test_faster_rcnn_in_standard_operators_and_in_python(tmp_path) -> None:
    net = drawn_net(parse_net(FASTER_RCNN))
    generator = torch.Generator().manual_seed(4)
    inputs = {
        "data": torch.randn(1, 3, 96, 128, generator=generator),
        "im_info": torch.tensor([[96.0, 128.0, 1.0]]),
    }
    with torch.inference_mode():
        assert net(inputs)["cls_prob"].shape[0] > 10
    agree(build_onnx(net), net, inputs)
    source = build_source(net)
    path = tmp_path / "rcnn.py"
    path.write_text(source.text)
    from ilgnet_repro.export.to_python import load_module
    from ilgnet_repro.runtime.safetensors_file import write_safetensors

    write_safetensors(tmp_path / "rcnn.safetensors", source.state, {})
    written = load_module(path, tmp_path / "rcnn.safetensors", "Net")
    for blob, value in written(**inputs).items():
        torch.testing.assert_close(value, net(inputs)[blob].detach(), rtol=1e-4, atol=1e-5)
