"""Layers run at another batch than they were built for: as ONNX, written source and by torch.export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layer_nets import draw, one_layer
from one_layer import dynamic_shapes, run_onnx, run_source

BODIES = {
    "batch_norm": 'type: "BatchNorm"',
    "batch_statistics": 'type: "BatchNorm" batch_norm_param { use_global_stats: false }',
    "bn": 'type: "BN" bn_param { frozen: true }',
    "lrn": 'type: "LRN"',
    "lrn_within": 'type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL }',
    "lrn_without_alpha": 'type: "LRN" lrn_param { alpha: 0 k: 2 }',
    "mvn": 'type: "MVN"',
    "normalize": 'type: "Normalize" norm_param { }',
    "max": 'type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 2 }',
    "average": 'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 2 }',
    "stochastic": 'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 }',
    "pyramid": 'type: "SPP" spp_param { pyramid_height: 2 }',
    "prelu": 'type: "PReLU"',
    "convolution": 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 }',
    "convolution_of_rows": 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 axis: 2 }',
}


@pytest.mark.parametrize("name", BODIES)
def test_any_batch(name):
    net = one_layer(BODIES[name], (2, 3, 6, 7))
    layer = net.layer("op")
    dynamic = dynamic_shapes(layer, [{0: torch.export.Dim("batch", min=1)}])
    exported = torch.export.export(
        layer, (torch.from_numpy(draw(2, 3, 6, 7)),), dynamic_shapes=dynamic
    ).module()
    for batch in (2, 5):
        x = draw(batch, 3, 6, 7, seed=8)
        wanted = layer(torch.from_numpy(x))[0].detach().numpy()
        assert len(wanted) == batch
        found = exported(torch.from_numpy(x))[0].detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run_onnx(net, [x])[0], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run_source(net, [x])[0], wanted, rtol=1e-5, atol=1e-6)
