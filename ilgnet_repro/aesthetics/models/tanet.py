"""TANet: Theme-Aware Network for image aesthetics (He et al., IJCAI 2022, "Rethinking Image Aesthetics Assessment").

Three branches on a 224 x 224 image, 10 values each, and a head on the 30 of them:

- theme: ResNet-18 trained on Places365 and frozen; its 365 logits are the input of a target network whose last layer the
  logits themselves parametrize;
- colour: the image averaged to 12 x 12, and how alike each two of the 144 places are;
- aesthetics: MobileNet v2.

Trained on TAD66K with the squared error of score / 10 (one output, sigmoid), on AVA with the EMD (10 outputs, softmax);
Adam.  13.88 M parameters, 2.52 M of them trained.  Published: TAD66K SRCC 0.513, LCC 0.531, MSE 0.016; AVA SRCC 0.758,
LCC 0.765, EMD 0.047.

Where this differs from the published code: there, the theme branch multiplies a batch's targets by the weights of the
whole batch, so that a prediction depends on its batch-mates, and makes a new BatchNorm in each call; here each image
has its own weights, and the normalization is a layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...known import ScoreAt
from ...runtime.model import Model
from .backbones import MobileNetV2, ResNet18, about_images
from .nima import mean_of

BRANCHES = ("aesthetics", "theme", "colour")
THEMES = 365
BINS = 10
PLACES = 12  # per side of the colour branch


class ThemeTarget(nn.Module):
    """N x 365 logits to N x 10: a layer of 100 units, each scaled and shifted by what the logits say of the theme."""

    def __init__(self, units: int = 100) -> None:
        super().__init__()
        self.weight = nn.Linear(THEMES, units)
        self.bias = nn.Linear(THEMES, 1)
        self.dense = nn.Linear(THEMES, units)
        self.normalize = nn.BatchNorm1d(units)
        self.activation = nn.PReLU()
        self.dropout = nn.Dropout(0.5)

    def weights(self, logits: Tensor) -> Tensor:
        """Return the weights that the theme gives the target's units, N x 100."""
        found: Tensor = self.weight(logits)
        return found

    def forward(self, logits: Tensor) -> Tensor:
        target = self.dropout(self.activation(self.normalize(self.dense(logits))))
        shares = (target * self.weights(logits) + self.bias(logits)).softmax(1)
        return F.adaptive_avg_pool1d(shares[:, None], BINS)[:, 0]


def self_similarity(x: Tensor) -> Tensor:
    """Return the cosine of the colours of each two of 12 x 12 places: N x C x H x W to N x 144 x 144."""
    colours = F.adaptive_avg_pool2d(x, PLACES).flatten(2)
    unit = F.normalize(colours, dim=1)
    return unit.transpose(1, 2) @ unit


class TANet(Model):
    """``data`` is "tad66k" or "ava"; ``branches`` are those to use, for the ablation.

    Takes N x 3 x 224 x 224; returns ``score``, N x 1 (TAD66K: 0 to 1, a tenth of the score; AVA: 1 to 10), and for AVA
    ``distribution``, N x 10.
    """

    name = "tanet"

    def __init__(self, data: str = "tad66k", branches: tuple[str, ...] = BRANCHES) -> None:
        is_ava = data == "ava"
        score = (
            ScoreAt("score", 0, "mean score", "distribution") if is_ava else ScoreAt("score", 0, "score / 10")
        )
        widths = {"distribution": BINS, "score": 1} if is_ava else {"score": 1}
        super().__init__(about_images(score), (3, 224, 224), widths, data=data, branches=tuple(branches))
        self.data, self.branches = data, tuple(branches)
        if "theme" in branches:
            self.places = ResNet18(classes=THEMES).requires_grad_(False)
            self.theme = ThemeTarget()
        if "colour" in branches:
            self.colour = nn.Sequential(
                nn.ReLU(), nn.Dropout(0.75), nn.Linear(PLACES**4, BINS), nn.Softmax(dim=1)
            )
        if "aesthetics" in branches:
            self.mobilenet = MobileNetV2(classes=BINS)
            self.mobilenet.classifier = nn.Sequential(
                nn.ReLU(), nn.Dropout(0.75), nn.Linear(self.mobilenet.channels, BINS)
            )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Dropout(0.75), nn.Linear(BINS * len(branches), BINS if data == "ava" else 1)
        )

    def train(self, mode: bool = True) -> TANet:
        """Switch the mode; the frozen theme network keeps its statistics."""
        super().train(mode)
        if "theme" in self.branches:
            self.places.eval()
        return self

    def theme_weights(self, x: Tensor) -> Tensor:
        """Return the weights of the theme's 100 units, N x 100."""
        return self.theme.weights(self.places(x))

    def explained(self, x: Tensor) -> dict[str, Tensor]:
        return {"weights of the theme": self.theme_weights(x)} if "theme" in self.branches else {}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        parts = []
        if "aesthetics" in self.branches:
            parts.append(self.mobilenet(x))
        if "theme" in self.branches:
            parts.append(self.theme(self.places(x)))
        if "colour" in self.branches:
            parts.append(self.colour(self_similarity(x).flatten(1)))
        found = self.head(torch.cat(parts, 1))
        if self.data == "tad66k":
            return {"score": found.sigmoid()}
        distribution = found.softmax(1)
        return {"distribution": distribution, "score": mean_of(distribution)}
