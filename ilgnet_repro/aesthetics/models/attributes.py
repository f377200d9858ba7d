"""The multi-task attributes network (arXiv 2305.09373): the overall score and the attributes at once.

VGG-16 without its dense layers, averaged; one shared hidden layer; one linear output each for the overall score and every
attribute.  Trained on all outputs together with the squared error (`losses.attributes_loss`), then fine-tuned with a
lower rate.  AADB: 11 attributes from -1 to 1 beside the score from 0 to 1; EVA: 4 attributes from 1 to 4 beside the
score from 0 to 10.

The paper does not publish the sizes of its head or its loss weights: here the hidden layer has 512 units, and all
weights are 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import DataError
from ...known import ScoreAt
from ...runtime.model import Model
from .backbones import VGG16, about_images

ATTRIBUTES = {
    "aadb": (
        "BalancingElement", "ColorHarmony", "Content", "DoF", "Light", "MotionBlur", "Object", "Repetition",
        "RuleOfThirds", "Symmetry", "VividColor",
    ),
    "eva": ("visual", "composition", "quality", "semantic"),
}  # fmt: skip


class AttributesNet(Model):
    """``data`` is "aadb" or "eva"; ``tasks`` names the outputs, by default the score and every attribute.

    Takes N x 3 x 224 x 224; returns ``score`` and the attributes, N x 1 each, on the data's own scales.
    """

    name = "attributes"

    def __init__(
        self, data: str = "aadb", tasks: tuple[str, ...] | None = None, *, hidden: int = 512
    ) -> None:
        known = ("score", *ATTRIBUTES[data])
        chosen = tuple(tasks) if tasks is not None else known
        for task in chosen:
            if task not in known:
                raise DataError(f"attributes: task {task!r} is not of {data}; choose from {', '.join(known)}")
            if chosen.count(task) > 1:
                raise DataError(f"attributes: task {task!r} is given twice; give it once")
        score = ScoreAt("score", 0, "score") if "score" in chosen else None
        super().__init__(
            about_images(score),
            (3, 224, 224),
            dict.fromkeys(chosen, 1),
            data=data,
            tasks=chosen,
            hidden=hidden,
        )
        self.tasks = chosen
        self.backbone = VGG16(dense=False)
        self.shared = nn.Sequential(nn.Linear(512, hidden), nn.ReLU(), nn.Dropout(0.5))
        self.heads = nn.ModuleDict({task: nn.Linear(hidden, 1) for task in self.tasks})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.shared(self.backbone.features_of(x))
        return {task: self.heads[task](hidden) for task in self.tasks}
