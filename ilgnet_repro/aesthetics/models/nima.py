"""NIMA: Neural Image Assessment (Talebi and Milanfar, IEEE Transactions on Image Processing 2018).

A backbone, dropout 0.75, a dense layer to the 10 scores of AVA, and a softmax: the distribution of votes.  Trained with
the earth mover's distance with r = 2 (`losses.emd_loss`) on 256 x 256 images cropped to 224, mirrored at random; the
dense layer at ten times the backbone's rate, SGD with momentum 0.9, rates 3e-7 and 3e-6 x 10, decayed by 0.95 every 10
epochs.  Reported: SRCC and LCC of the mean scores, EMD with r = 1, accuracy of "mean over 5".

Published parameters: MobileNet 3.22 M, VGG-16 134.3 M, Inception v2 10.16 M.  Ours: 3,217,226, 134,301,514 and
10,280,490: the Inception v2 of the paper is TensorFlow's, whose first 7 x 7 convolution is applied channel by channel and
whose convolutions have neither bias nor scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...known import ScoreAt
from ...runtime.model import Model
from .backbones import BACKBONES, about_images

BINS = 10


class Nima(Model):
    """``backbone`` is "mobilenet_v1", "mobilenet_v2", "vgg16" or "inception_v2".

    Takes N x 3 x 224 x 224; returns ``distribution``, N x 10, bin k for score k + 1, and ``score``, N x 1: its mean.
    """

    name = "nima"
    backbones = ("mobilenet_v1", "mobilenet_v2", "vgg16", "inception_v2")

    def __init__(self, backbone: str = "mobilenet_v1") -> None:
        score = ScoreAt("score", 0, "mean score", "distribution")
        built = BACKBONES[backbone](classes=BINS)
        super().__init__(
            about_images(score, resize=256, how=built.how),
            (3, 224, 224),
            {"distribution": BINS, "score": 1},
            backbone=backbone,
        )
        self.backbone = built
        # The classification layer of the backbone gives way to NIMA's own.
        name = next(reversed(dict(self.backbone.named_children())))
        replaced = getattr(self.backbone, name)
        setattr(self.backbone, name, replaced[:-1] if isinstance(replaced, nn.Sequential) else nn.Identity())
        self.dropout = nn.Dropout(0.75)
        self.dense = nn.Linear(self.backbone.channels, BINS)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise GraphError for an input that the model, or its backbone, does not take."""
        super().check_shape(shape)
        self.backbone.check_size(*shape[2:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        distribution = self.dense(self.dropout(self.backbone.features_of(x))).softmax(1)
        return {"distribution": distribution, "score": mean_of(distribution)}


def mean_of(distribution: Tensor) -> Tensor:
    """Return the mean score, N x 1, of N x B shares, bin k for score k + 1."""
    scores = torch.arange(1, distribution.shape[1] + 1, dtype=distribution.dtype, device=distribution.device)
    return (distribution * scores).sum(1, keepdim=True)
