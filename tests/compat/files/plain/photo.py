"""photo in PyTorch, written by ilgnet_repro 0.1.0.

    from safetensors.torch import load_file

    with torch.device("meta"):
        net = Photo()
    net.load_state_dict(load_file("photo.weights.safetensors"), assign=True)
    net.requires_grad_(False)
"""

import torch
import torch.nn.functional as F
from torch import nn


def lrn_across_channels(x, size, alpha, beta, k):
    """Divide by (k + alpha / size · sum of squares over neighbouring channels)^beta, as AlexNet
    does.

    F.local_response_norm gives the same values; a sum of shifted slices takes a fifth to a tenth of
    its time on a CPU, and two square roots less than a general power.
    """
    squares = F.pad(x * x, (0, 0, 0, 0, size // 2, size // 2))
    channels = x.shape[1]
    total = squares[:, :channels]
    for shift in range(1, size):
        total = total + squares[:, shift : shift + channels]
    scale = total * (alpha / size) + k
    if beta == 0.75:
        root = scale.rsqrt()
        return x * (root * root.sqrt())
    return x * scale.pow(-beta)


class Photo(nn.Module):
    """From data (1x3x6x6) to a dict of "prob" (1x2); the first axis is the batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=3)
        self.bn_mean = nn.Parameter(torch.empty(4))
        self.bn_variance = nn.Parameter(torch.empty(4))
        self.scale_bias = nn.Parameter(torch.empty(4, 1, 1))
        self.scale_weight = nn.Parameter(torch.empty(4, 1, 1))
        self.ip = nn.Linear(16, 2)

    def forward(self, data):
        conv = self.conv(data)
        bn = F.batch_norm(conv, self.bn_mean, self.bn_variance, eps=1e-05)
        bn = F.relu(bn * self.scale_weight + self.scale_bias)
        pool = F.max_pool2d(bn, 3, 2, ceil_mode=True)
        norm = lrn_across_channels(pool, 3, 0.1, 0.75, 1.0)
        ip = self.ip(norm.flatten(1))
        prob = F.softmax(ip, dim=1)
        return {"prob": prob}
