"""Layer types of forks that are known but not implemented: what each computes, and where that is described.

Types that only feed a net are not listed: they become inputs.
"""

from __future__ import annotations

_MSCNN = "zhaoweicai/mscnn"
_CASCADE = "zhaoweicai/cascade-rcnn"
_DEEPLAB = "DeepLab v2, src/caffe/layers"
_RISTRETTO = "pmgysel/caffe, branch ristretto"
_SURGERY = "yiwenguo/Dynamic-Network-Surgery"
_FLOWNET = "lmb-freiburg/flownet2, src/caffe/layers"
_HAPPYNEAR = "happynear/caffe-windows, src/caffe/layers"
_MNC = "daijifeng001/caffe-mnc, src/caffe/layers"
_SYNOPSYS = "foss-for-synopsys-dwc-arc-processors/synopsys-caffe, src/caffe/layers"
_STN = "daerduoCarey/SpatialTransformerLayer, src/caffe/layers"

# Type: what it computes, and the repository and file that define it.
_KNOWN: dict[str, tuple[str, str]] = {
    # Detection.
    "DetectionGroupLoss": (
        "the loss of region proposals, with sampling",
        f"{_CASCADE}, src/caffe/layers/detection_group_loss_layer.cpp",
    ),
    "DetectionGroupAccuracy": (
        "accuracy of region proposals",
        f"{_CASCADE}, src/caffe/layers/detection_group_accuracy_layer.cpp",
    ),
    "HardMining": ("selects the hardest regions", f"{_CASCADE}, src/caffe/layers/hard_mining_layer.cpp"),
    "BBoxAccuracy": ("mean overlap of regressed boxes", f"{_CASCADE}, src/caffe/layers/bbox_accuracy_layer.cpp"),
    "FrcnnOutput": ("detections per class", f"{_CASCADE}, src/caffe/layers/frcnn_output_layer.cpp"),
    "ScaleRoute": ("assigns regions to pyramid levels", f"{_CASCADE}, src/caffe/layers/scale_route_layer.cpp"),
    "SqueezeDetLoss": ("the loss of SqueezeDet", "opencv_contrib, modules/dnn_objdetect"),
    **dict.fromkeys(
        ("FrcnnProposal", "FrcnnProposalTarget", "FrcnnAnchorTarget", "FrcnnOhem"),
        ("Faster R-CNN's layers, whose settings are in a JSON file", "makefile/frcnn, src/caffe/FRCNN"),
    ),
    "YoloV2Loss": (
        "another loss for YOLO 2",
        "eric612/Caffe-YOLOv3-Windows, src/caffe/layers/yolo_v2_loss_layer.cpp",
    ),
    "GaussianYolov3": (
        "YOLO 3's loss with a variance per coordinate",
        "eric612/MobileNet-YOLO, src/caffe/layers/gaussian_yolov3_layer.cpp",
    ),
    "AssistedExcitation": (
        "adds the true boxes to features while training",
        "eric612/MobileNet-YOLO, src/caffe/layers/assisted_excitation_layer.cpp",
    ),
    "Yolo": ("splits YOLO's map for a vendor's decoder", "the vendor's converter (Huawei Ascend, Cambricon)"),
    "PassThrough": ("moves blocks into channels", "the vendor's converter (HiSilicon)"),
    "DeformablePSROIPooling": (
        "position-sensitive pooling with offsets",
        "msracver/Deformable-ConvNets, deformable_psroi_pooling",
    ),
    "ModulatedDeformableConvolution": (
        "deformable convolution with a mask",
        "zhanglonghao1992/Deformable-ConvNets-caffe, modulated_deformable_conv_layer.cu",
    ),
    # Segmentation.
    "DenseCRF": ("mean field of a fully connected CRF", f"{_DEEPLAB}/densecrf_layer.cpp"),
    "MultiStageMeanfield": (
        "CRF as a recurrent net",
        "torrvision/crfasrnn, caffe/src/caffe/layers/multi_stage_meanfield.cpp",
    ),
    "DomainTransform": ("edge-aware filtering", f"{_DEEPLAB}/domain_transform_layer.cpp"),
    "UniqueLabel": ("labels that occur in an image", f"{_DEEPLAB}/unique_label_layer.cpp"),
    "MatWrite": ("writes blobs to .mat files", f"{_DEEPLAB}/mat_write_layer.cpp"),
    "IOUAccuracy": ("intersection over union by class", "tidsp/caffe-jacinto, src/caffe/layers/iou_accuracy_layer.cpp"),
    # Geometry and motion.
    "STLoss": ("penalty of a transformation that leaves the image", f"{_STN}/st_loss_layer.cpp"),
    "PowerFile": ("adds values from a file", f"{_STN}/power_file_layer.cpp"),
    "LpqLoss": ("a loss (sum |d|^p)^q over flow", f"{_FLOWNET}/lpq_loss_layer.cpp"),
    "FlowAugmentation": ("transforms flow as its images were", f"{_FLOWNET}/flow_augmentation_layer.cu"),
    "GenerateAugmentationParameters": (
        "draws parameters of an augmentation",
        f"{_FLOWNET}/generate_augmentation_parameters_layer.cpp",
    ),
    "BatchReduction": ("reduces groups of the batch", "yjxiong/caffe, src/caffe/layers/batch_reduction_layer.cpp"),
    # Faces and metric learning.
    "Covariance": (
        "x times its transpose, over H·W as N×C²×1×1 in one fork and over C·H·W as N×C×C×1 in another, which neither the "
        "text nor the weights distinguish, or, with covariance_param, of the clips of a video",
        "shenfalong/styletransfer, src/caffe/layers/operator/covariance_layer.cu; happynear/caffe-windows, "
        "src/caffe/layers/covariance_layer.cpp; greatmanqss/DVC, src/caffe/layers/covariance_layer.cpp",
    ),
    "SoftTruncation": ("a bounded activation", f"{_HAPPYNEAR}/soft_truncation_layer.cpp"),
    "PairwiseLoss": ("a loss over pairs of a batch", f"{_HAPPYNEAR}/pairwise_layer.cpp"),
    # Quantized and pruned nets.
    **dict.fromkeys(
        ("ConvolutionRistretto", "DeconvolutionRistretto", "FcRistretto", "LRNRistretto"),
        ("quantizes weights and activations in each pass", f"{_RISTRETTO}, src/caffe/ristretto/layers"),
    ),
    **dict.fromkeys(
        ("CConvolution", "CInnerProduct"),
        ("weights pruned by masks that are learned too", f"{_SURGERY}, src/caffe/layers"),
    ),
    # Converters to one vendor's Caffe.
    **dict.fromkeys(
        (
            *("BatchToSpaceND", "SpaceToBatchND", "StridedSlice", "Gather", "ExpandDims", "Squeeze", "Stack"),
            *("ResizeBilinear", "ResizeNearestNeighbor", "Pad", "Unstack", "Reciprocal", "Sqrt", "Pow"),
        ),
        ("an operator of TensorFlow, as a converter writes it", _SYNOPSYS),
    ),
}  # fmt: skip


def known_fork_layer(type_: str) -> str:
    """Return what a type that is not implemented computes and where that is described, or ""."""
    if type_ not in _KNOWN:
        return ""
    what, where = _KNOWN[type_]
    return f"{what} ({where})"
