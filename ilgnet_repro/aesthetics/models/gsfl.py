"""GSFL-Net: group-based shared feature learning (Li and Monga, IEEE Transactions on Image Processing 2020).

A head on any features: an autoencoder splits them into what classes of a group share and what distinguishes them, and
only the latter is classified.  Published on VGG-16 with compact bilinear pooling (8,192 features): 166.6 M parameters
in training, 65.9 M at inference, where the shared encoder and the decoder are not needed.

The loss is the cross-entropy, + 0.01 x the squared error of the decoded features, + 0.1 x the squared distance of the
discriminative part to its class's centre, + 0.1 x that of the shared part to its group's centre.  Centres move by
c - 0.01 Σ(c - x) / (1 + n) after each step; groups are found by k-means (5).

Where this differs from the public code: there, the shared term takes the group of the first row for every row, a sigmoid
ends the decoder, which cannot give signed features back, and the model is selected on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...about import About
from ...errors import DataError
from ...runtime.model import Model
from ..losses import decomposition_loss

HIDDEN = 4096


def encoder(features: int, hidden: int) -> nn.Sequential:
    """Dropout, dense, dropout, dense, ReLU."""
    return nn.Sequential(
        nn.Dropout(0.5), nn.Linear(features, hidden), nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()
    )


class Gsfl(Model):
    """Takes N x ``features``; returns ``logits``, N x ``classes``, and in training what `loss` needs too.

    ``groups`` is the number of groups; `set_groups` says which class is in which.  ``is_decomposed=False`` leaves the
    shared part and the decoder out: the same head without the decomposition, to compare with.
    """

    name = "gsfl"
    input_name = "features"
    classes_of_groups: Tensor
    class_centres: Tensor
    group_centres: Tensor

    def __init__(
        self,
        features: int = 8192,
        classes: int = 200,
        groups: int = 5,
        *,
        hidden: int = HIDDEN,
        is_decomposed: bool = True,
    ) -> None:
        if not 1 <= groups <= classes:
            raise DataError(f"gsfl: {groups} groups of {classes} classes; give 1 to {classes}")
        super().__init__(
            About(), (features,), {"logits": classes}, features=features, classes=classes, groups=groups,
            hidden=hidden, is_decomposed=is_decomposed,
        )  # fmt: skip
        self.features, self.hidden, self.is_decomposed = features, hidden, is_decomposed
        self.discriminative = encoder(features, hidden)
        self.classifier = nn.Linear(hidden, classes)
        if is_decomposed:
            self.shared = encoder(features, hidden)
            self.decoder = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features))
            self.register_buffer("classes_of_groups", torch.tensor([one % groups for one in range(classes)]))
            self.register_buffer("class_centres", torch.zeros(classes, hidden))
            self.register_buffer("group_centres", torch.zeros(groups, hidden))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        own = self.discriminative(features)
        found = {"logits": self.classifier(own)}
        if self.training and self.is_decomposed:
            shared = self.shared(features)
            found |= {"discriminative": own, "shared": shared, "decoded": self.decoder(own + shared)}
        return found

    def set_groups(self, groups: Sequence[int] | Tensor) -> None:
        """State each class's group, one number a class from 0; see `find_groups`."""
        stated = torch.as_tensor(groups, device=self.classes_of_groups.device)
        if stated.shape != self.classes_of_groups.shape or not (
            int(stated.min()) >= 0 and int(stated.max()) < len(self.group_centres)
        ):
            raise DataError(
                f"gsfl: groups {list(stated.shape)} for {len(self.classes_of_groups)} classes; give one number from 0 to "
                f"{len(self.group_centres) - 1} for each"
            )
        self.classes_of_groups.copy_(stated)

    def loss(self, found: dict[str, Tensor], features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms of the loss by name (`losses.decomposition_loss`). ``labels``: N, int64."""
        if not self.is_decomposed:
            return {"classification": F.cross_entropy(found["logits"], labels)}
        own, group = self.class_centres[labels], self.group_centres[self.classes_of_groups[labels]]
        return decomposition_loss(found, features, labels, own, group)

    @torch.no_grad()
    def move_centres(self, found: dict[str, Tensor], labels: Tensor) -> None:
        """Move the centres towards a batch's features: c - 0.01 Σ(c - x) / (1 + n), after each step."""
        groups = self.classes_of_groups[labels]
        for centres, values, rows in (
            (self.class_centres, found["discriminative"], labels),
            (self.group_centres, found["shared"], groups),
        ):
            offsets = torch.zeros_like(centres).index_add_(0, rows, centres[rows] - values.detach())
            counts = torch.bincount(rows, minlength=len(centres))[:, None]
            centres -= 0.01 * offsets / (1 + counts)

    def for_inference(self) -> Gsfl:
        """Return the same head without the shared encoder and the decoder, which inference does not need."""
        if not self.is_decomposed:
            return self
        made = Gsfl(self.features, self.classifier.out_features, 1, hidden=self.hidden, is_decomposed=False)
        made.discriminative.load_state_dict(self.discriminative.state_dict())
        made.classifier.load_state_dict(self.classifier.state_dict())
        return made.eval()


def find_groups(features: Tensor, labels: Tensor, classes: int, groups: int, *, seed: int = 0) -> list[int]:
    """Return each class's group by k-means on the classes' mean features (N x F, and N labels of the training rows).

    Raises DataError where a class has no row.
    """
    from sklearn.cluster import KMeans

    counts = torch.bincount(labels, minlength=classes)
    if bool((counts == 0).any()):
        raise DataError(f"gsfl: class {int(counts.argmin())} has no row; its group cannot be found")
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(
        0, labels, features.double()
    )
    means = (sums / counts[:, None]).numpy()
    return [int(group) for group in KMeans(groups, n_init=10, random_state=seed).fit_predict(means)]


class CompactBilinear(nn.Module):
    """Compact bilinear pooling (Gao et al., 2016): N x C x H x W to N x ``size``, signed square root, unit length.

    The outer product of the features at each place, sketched: two random hashes of the channels, convolved by the FFT.
    """

    hashes: Tensor
    signs: Tensor

    def __init__(self, channels: int = 512, size: int = 8192, *, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self.register_buffer("hashes", torch.randint(size, (2, channels), generator=generator))
        self.register_buffer("signs", torch.randint(2, (2, channels), generator=generator) * 2.0 - 1)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        spectra = []
        for hashes, signs in zip(self.hashes, self.signs, strict=True):
            sketch = places.new_zeros(*places.shape[:2], self.size).index_add(2, hashes, places * signs)
            spectra.append(torch.fft.rfft(sketch))
        pooled = torch.fft.irfft(spectra[0] * spectra[1], self.size).sum(1)
        return F.normalize(pooled.sign() * pooled.abs().sqrt(), dim=1)
