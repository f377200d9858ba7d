"""ILGNet written by hand in torch, as without a converter: the baseline of the exported file."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al., 2015)."""

    def __init__(
        self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int
    ) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, one, 1)
        self.three_reduce, self.three = nn.Conv2d(inputs, three[0], 1), nn.Conv2d(*three, 3, padding=1)
        self.five_reduce, self.five = nn.Conv2d(inputs, five[0], 1), nn.Conv2d(*five, 5, padding=2)
        self.pool, self.pooled = nn.AvgPool2d(3, 1, padding=1), nn.Conv2d(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.one(x), self.three(self.three_reduce(x).relu()), self.five(self.five_reduce(x).relu()),
            self.pooled(self.pool(x)),
        ]  # fmt: skip
        return torch.cat([branch.relu() for branch in branches], 1)


class HandwrittenILGNet(nn.Module):
    """The deploy net; layers in Caffe's order, so that blobs load one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.reduce, self.conv2 = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 192, 3, padding=1)
        self.pool, self.norm = nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        self.inception_3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.local_3a = nn.Linear(200704, 256)
        self.inception_3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.local_3b = nn.Linear(376320, 256)
        self.inception_4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.average, self.conv3 = nn.AvgPool2d(5, 3), nn.Conv2d(512, 128, 1)
        self.whole, self.hidden, self.classifier = (
            nn.Linear(2048, 512),
            nn.Linear(1024, 1024),
            nn.Linear(1024, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(self.conv1(x).relu()))
        x = self.pool(self.norm(self.conv2(self.reduce(x).relu()).relu()))
        a = self.inception_3a(x)
        b = self.inception_3b(a)
        c = self.conv3(self.average(self.inception_4a(self.pool(b)))).relu()
        heads = [self.local_3a(a.flatten(1)), self.local_3b(b.flatten(1)), self.whole(c.flatten(1))]
        joined = torch.cat([head.relu() for head in heads], 1)
        return self.classifier(self.hidden(joined).relu()).softmax(1)

    def take(self, blobs: list[Tensor]) -> HandwrittenILGNet:
        """Load Caffe's blobs in Caffe's order."""
        with torch.no_grad():
            for own, given in zip(self.parameters(), blobs, strict=True):
                own.data = given.detach()
        return self
