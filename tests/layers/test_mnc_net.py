"""A training net of five stages, as MNC's, with one convolution: it passes the audit, trains, and each layer learns."""

from __future__ import annotations

import torch

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net


def op(name, type_, bottoms, tops, body=""):
    lines = [f'bottom: "{bottom}"' for bottom in bottoms.split()] + [f'top: "{top}"' for top in tops.split()]
    return f'layer {{ name: "{name}" type: "{type_}" {" ".join(lines)} {body} }}\n'


def python(name, module, cls, bottoms, tops, settings="", propagate=""):
    param = f'python_param {{ module: "pylayer.{module}" layer: "{cls}" param_str: "{settings}" }}'
    return op(name, "Python", bottoms, tops, f"{' '.join(f'propagate_down: {p}' for p in propagate)} {param}")


def conv(name, bottom, count, kernel, stride=1):
    size = f"num_output: {count} kernel_size: {kernel} stride: {stride} pad: {(kernel - 1) // 2 if stride == 1 else 0}"
    return op(
        name,
        "Convolution",
        bottom,
        name,
        f'convolution_param {{ {size} weight_filler {{ type: "xavier" }} }}',
    )


def dense(name, bottom, shared, count):
    names = f'param {{ name: "{shared}_w" }} param {{ name: "{shared}_b" }}'
    filler = 'weight_filler { type: "gaussian" std: 0.03 }'
    return op(
        name, "InnerProduct", bottom, name, f"{names} inner_product_param {{ num_output: {count} {filler} }}"
    )


def stage(end):
    """Write the mask, the two scores and the boxes of the regions of one stage, with their losses."""
    half = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
    warping = "roi_warping_param { pooled_w: 6 pooled_h: 6 spatial_scale: 0.0625 } propagate_down: 1 propagate_down: 1"
    text = (
        op("warped@", "ROIWarping", "conv rois@", "warped@", warping)
        + dense("mask_pred@", "warped@", "mask_pred", 441)
        + op("loss_mask@", "SigmoidCrossEntropyLoss", "mask_pred@ mask_targets@ mask_weight@", "loss_mask@")
        + op("mask_output@", "Sigmoid", "mask_pred@", "mask_output@")
        + python(
            "mask@", "mask_layer", "MaskLayer", "mask_output@ gt_masks info@", "mask@ seg_labels@", "", "100"
        )
        + op(
            "small@",
            "MaskResize",
            "mask@",
            "small@",
            "mask_resize_param { output_height: 6 output_width: 6 }",
        )
        + op("masked@", "MaskPooling", "warped@ small@", "masked@", "propagate_down: 1 propagate_down: 1")
        + op("halved@", "Pooling", "masked@", "halved@", half)
        + dense("seg@", "halved@", "seg", 21)
        + dense("cls@", "halved@", "cls", 21)
        + op("loss_cls@", "SoftmaxWithLoss", "cls@ labels@", "loss_cls@")
        + op("loss_seg@", "SoftmaxWithLoss", "seg@ seg_labels@", "loss_seg@")
        + dense("boxes@", "halved@", "boxes", 84)
        + op("loss_boxes@", "SmoothL1Loss", "boxes@ targets@ inner@ outer@", "loss_boxes@")
    )
    return text.replace("@", end)


NET = (
    python("d", "mnc_data_layer", "MNCDataLayer", "", "data im_info gt_boxes gt_masks mask_info", "'num_classes': 21")
    + conv("conv", "data", 6, 16, 16) + conv("rpn_cls", "conv", 18, 3) + conv("rpn_box", "conv", 36, 3)
    + op("pairs", "Reshape", "rpn_cls", "pairs", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } }")
    + op("prob", "Softmax", "pairs", "prob")
    + op("scores", "Reshape", "prob", "scores", "reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } }")
    + python(
        "proposal", "proposal_layer", "ProposalLayer", "scores rpn_box im_info", "found index",
        "{ 'feat_stride': 16, 'use_clip': 1, 'clip_base': 512 }", "010",
    )
    + python(
        "roi-data", "proposal_target_layer", "ProposalTargetLayer", "found gt_boxes im_info gt_masks mask_info index",
        "rois labels targets inner outer mask_targets mask_weight info fg_inds bg_inds",
        "{'num_classes': 21, 'bp_all': 1}", "100000",
    )
    + python(
        "rpn-data", "anchor_target_layer", "AnchorTargetLayer", "rpn_cls gt_boxes im_info fg_inds bg_inds",
        "rpn_labels rpn_targets rpn_inner rpn_outer", "{'feat_stride': 16}",
    )
    + op("loss_rpn", "SoftmaxWithLoss", "pairs rpn_labels", "loss_rpn", "loss_param { ignore_label: -1 }")
    + op("loss_rpn_box", "SmoothL1Loss", "rpn_box rpn_targets rpn_inner rpn_outer", "loss_rpn_box")
    + stage("")
    + op("seg_prob", "Softmax", "seg", "seg_prob")
    + python(
        "bridge", "stage_bridge_layer", "StageBridgeLayer", "rois boxes seg_prob gt_boxes gt_masks im_info mask_info",
        "rois2 labels2 mask_targets2 mask_weight2 info2 targets2 inner2 outer2",
        "{ 'feat_stride': 16, 'use_clip': 1, 'clip_base': 512 }", "1100000",
    )
    + stage("2")
)  # fmt: skip


def test_the_five_stages_train():
    assert not audit(parse_net(NET), phase="TRAIN").problems
    net = ir.load_net(
        parse_net(NET), phase="TRAIN", seed=1,
        input_shapes={"data": (1, 3, 224, 288), "gt_boxes": (2, 5), "gt_masks": (2, 61, 71), "mask_info": (2, 2)},
    )  # fmt: skip
    masks = torch.zeros(2, 61, 71)
    masks[0, 20:61, :50] = 1
    masks[1, :, ::2] = 1
    images = torch.randn(1, 3, 224, 288, generator=torch.Generator().manual_seed(0))
    given = {
        "data": images, "im_info": torch.tensor([[224.0, 288, 2]]), "gt_masks": masks,
        "gt_boxes": torch.tensor([[40.0, 30, 160, 150, 3], [120, 60, 260, 180, 7]]),
        "mask_info": torch.tensor([[61.0, 61], [61, 71]]),
    }  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = net.loss(given)
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
