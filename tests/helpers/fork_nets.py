"""Small nets as people built them of forks' layers: Faster R-CNN, R-FCN, a text recognizer, ShuffleNet, PSPNet."""

_TRUNK = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 96 } } }
layer { name: "im_info" type: "Input" top: "im_info" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
  num_output: 8 kernel_size: 5 stride: 4 pad: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv5" type: "Convolution" bottom: "pool1" top: "conv5" convolution_param {
  num_output: 12 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "relu5" type: "ReLU" bottom: "conv5" top: "conv5" }
layer { name: "score" type: "Convolution" bottom: "conv5" top: "score" convolution_param { num_output: 18 kernel_size: 1 } }
layer { name: "delta" type: "Convolution" bottom: "conv5" top: "delta" convolution_param { num_output: 36 kernel_size: 1 } }
layer { name: "two" type: "Reshape" bottom: "score" top: "two" reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "prob" type: "Softmax" bottom: "two" top: "prob" }
layer { name: "nine" type: "Reshape" bottom: "prob" top: "nine" reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }
layer { name: "proposal" type: "Python" bottom: "nine" bottom: "delta" bottom: "im_info" top: "rois"
  python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "'feat_stride': 16" } }
"""
_SHUFFLED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 30 dim: 36 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
  num_output: 12 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "group" type: "Convolution" bottom: "conv1" top: "group" convolution_param {
  num_output: 12 kernel_size: 1 group: 3 } }
layer { name: "shuffle" type: "ShuffleChannel" bottom: "group" top: "shuffle" shuffle_channel_param { group: 3 } }
layer { name: "depth" type: "ConvolutionDepthwise" bottom: "shuffle" top: "depth" convolution_param {
  num_output: 12 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "depth" bottom: "conv1" top: "sum" }
layer { name: "all" type: "Pooling" bottom: "sum" top: "all" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "all" top: "fc" inner_product_param { num_output: 5 } }
"""
_PYRAMID = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 25 dim: 33 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
  num_output: 6 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "bn1" type: "BN" bottom: "conv1" top: "conv1" bn_param { slope_filler { value: 1 } momentum: 0.9 } }
layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool" pooling_param { pool: AVE kernel_size: 7 stride: 5 } }
layer { name: "branch" type: "Convolution" bottom: "pool" top: "branch" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "up" type: "Interp" bottom: "branch" top: "up" interp_param { height: 13 width: 17 } }
layer { name: "join" type: "Concat" bottom: "conv1" bottom: "up" top: "join" }
layer { name: "dilated" type: "Convolution" bottom: "join" top: "dilated" convolution_param {
  num_output: 7 kernel_size: 3 pad: 2 dilation: 2 } }
layer { name: "large" type: "Interp" bottom: "dilated" top: "large" interp_param { zoom_factor: 2 } }
"""
_RECOGNIZER = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 16 dim: 52 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {
  num_output: 6 kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" convolution_param {
  num_output: 8 kernel_h: 8 kernel_w: 3 stride_h: 1 stride_w: 2 } }
layer { name: "steps" type: "Transpose" bottom: "conv2" top: "steps" transpose_param { dim: 3 dim: 0 dim: 1 dim: 2 } }
layer { name: "flat" type: "Reshape" bottom: "steps" top: "flat" reshape_param { shape { dim: 0 dim: 0 dim: -1 } } }
layer { name: "forward" type: "Lstm" bottom: "flat" top: "forward" lstm_param { num_output: 9 } }
layer { name: "turned" type: "Reverse" bottom: "flat" top: "turned" reverse_param { axis: 0 } }
layer { name: "back" type: "Lstm" bottom: "turned" top: "back" lstm_param { num_output: 9 } }
layer { name: "again" type: "Reverse" bottom: "back" top: "again" reverse_param { axis: 0 } }
layer { name: "both" type: "Concat" bottom: "forward" bottom: "again" top: "both" concat_param { axis: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "both" top: "fc" inner_product_param { num_output: 11 axis: 2 } }
"""
FORK_TEXTS = {
    "faster r-cnn": 'name: "faster r-cnn"' + _TRUNK + """
layer { name: "roi" type: "ROIPooling" bottom: "conv5" bottom: "rois" top: "roi" roi_pooling_param {
  pooled_h: 3 pooled_w: 4 spatial_scale: 0.0625 } }
layer { name: "fc6" type: "InnerProduct" bottom: "roi" top: "fc6" inner_product_param { num_output: 16 } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "cls_score" type: "InnerProduct" bottom: "fc6" top: "cls_score" inner_product_param { num_output: 5 } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "fc6" top: "bbox_pred" inner_product_param { num_output: 20 } }
""",
    "r-fcn": 'name: "r-fcn"' + _TRUNK + """
layer { name: "maps" type: "Convolution" bottom: "conv5" top: "maps" convolution_param { num_output: 27 kernel_size: 1 } }
layer { name: "ps" type: "PSROIPooling" bottom: "maps" bottom: "rois" top: "ps" psroi_pooling_param {
  spatial_scale: 0.0625 output_dim: 3 group_size: 3 } }
layer { name: "vote" type: "Pooling" bottom: "ps" top: "vote" pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
""",
    "text recognizer": 'name: "text recognizer"' + _RECOGNIZER,
    "shufflenet": 'name: "shufflenet"' + _SHUFFLED,
    "pspnet": 'name: "pspnet"' + _PYRAMID,
}  # fmt: skip
