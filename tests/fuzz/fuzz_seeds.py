"""Valid files to damage: golden ones, and nets of each generation written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.schema import caffe_pb2

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# Nets of each generation, and with fields of forks.
NETS = [
    """name: "v1" input: "data" input_dim: [2, 3, 13, 11]
layers { name: "conv1/7x7_s2" type: CONVOLUTION bottom: "data" top: "conv1" blobs_lr: 1 blobs_lr: 2
  weight_decay: 1 weight_decay: 0 param: "w" param: "b" blob_share_mode: PERMISSIVE
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "xavier" } } }
layers { name: "relu" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool" type: POOLING bottom: "conv1" top: "pool" pooling_param { pool: AVE kernel_size: 2 } }
layers { name: "temp1" type: INNER_PRODUCT bottom: "pool" top: "temp1" inner_product_param { num_output: 5 } }
layers { name: "loss" type: SOFTMAX bottom: "temp1" top: "loss" include { phase: TEST } }""",
    """layers { name: "data" type: DATA top: "data" top: "label" data_param { source: "a" mean_file: "m"
  batch_size: 4 crop_size: 227 mirror: false backend: LMDB } }
layers { name: "bn" type: BN bottom: "data" top: "bn" bn_param { bn_mode: INFERENCE
  weird { a: 1 b: "x" } } }
layers { name: "up" type: UPSAMPLE bottom: "bn" top: "up" upsample_param { scale: 2 }
  other: [1, 2.5, -3] }""",
    """name: "v0" input: "data" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 8
layers { layer { name: "p" type: "padding" pad: 2 } bottom: "data" top: "p" }
layers { layer { name: "c" type: "conv" num_output: 4 kernelsize: 5 stride: 2 biasterm: false
  weight_filler { type: "gaussian" std: 0.01 } blobs_lr: 1. blobs_lr: 2. } bottom: "p" top: "c" }
layers { layer { name: "n" type: "lrn" local_size: 5 alpha: 0.0001 beta: 0.75 } bottom: "c" top: "n" }
layers { layer { name: "i" type: "innerproduct" num_output: 6 } bottom: "n" top: "i" }""",
    """input: "data" input_shape { dim: 1 dim: 3 dim: 9 dim: 8 } # a comment
layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" param { lr_mult: 0 } param { lr_mult: 0 }
  param { lr_mult: 0 } batch_norm_param { use_global_stats: true eps: 1e-5 momentum: .9 } }
layer { name: "clip" type: "Clip" bottom: "bn" top: "clip" clip_param < min: -1 max: 1 > }
layer { name: "det" type: "Fork" bottom: "clip" top: "out" fork_param { list: [ 1, 2 ]
  nested { a: 'b' "c" } }
  transform_param { resize_param { prob: 1 } } include { phase: TEST fog: "thick"
  not_stage: "\\303\\244" } }""",
]


def seeds() -> dict[str, list[bytes]]:
    """Real files by kind: golden ones, and the nets above."""
    nets, models = [net.encode() for net in NETS], []
    for path in sorted((GOLDEN / "layers").glob("*.npz"))[::5]:
        with np.load(path) as case:
            nets.append(str(case["prototxt"]).encode())
            if "caffemodel" in case and case["caffemodel"].size < 20_000:
                models.append(case["caffemodel"].tobytes())
    for text in NETS[:3]:
        net = parse_net(text)
        for layer in net.layers:
            layer.ClearField("fork_field")
            if layer.layer.type == "padding":
                continue
            blob = (layer.layer if layer.HasField("layer") else layer).blobs.add(channels=2, num=1, width=3)
            blob.height = 1
            blob.data.extend(range(6))
            if not (layer.type or layer.HasField("layer")):
                layer.type = caffe_pb2.V1LayerParameter.INNER_PRODUCT
        models.append(net.SerializeToString())
    solvers = GOLDEN / "pipeline" / "solvers"
    return {
        "net": nets,
        "caffemodel": models,
        "solver": [path.read_bytes() for path in sorted(solvers.glob("*.prototxt"))]
        + [b'net_param { layers { name: "d" type: DROPOUT } } solver_type: ADAM ap_version: "11point"'],
        "solverstate": [path.read_bytes() for path in sorted(solvers.glob("*_iter_10.solverstate"))[:4]],
        "binaryproto": [path.read_bytes() for path in sorted((GOLDEN / "pipeline").glob("*.binaryproto"))],
    }
