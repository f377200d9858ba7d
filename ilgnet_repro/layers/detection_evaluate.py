"""DetectionEvaluate: SSD's true and false positives, from which the average precision is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from .support.base import Layer, LayerPlan, Shape
from .support.labels import foreground_labels
from .support.matching import overlaps
from .support.registry import register_layer


@register_layer("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Rows of five values, 1×1×R×5: for each class (-1, class, number of true boxes, -1, -1), then for each detection.

    Bottoms: detections 1×1×D×7 and true boxes 1×1×G×8.  A row of a detection is (image, class, score, true positive,
    false positive), by image, class and descending score; one of a difficult box that does not count has 0 and 0.
    Source: SSD, src/caffe/layers/detection_evaluate_layer.cpp; with `name_size_file`, which it reads sizes from, the
    layer is left out.
    """

    message = "detection_evaluate_param"
    fields = ("num_classes", "background_label_id", "overlap_threshold", "evaluate_difficult_gt")
    bottom_count = (2, 2)
    index_bottoms = (0, 1)
    has_gradient = False
    sized_by_values = True
    counted_axis = 2
    no_onnx = "detections are counted one after another"
    no_source = "detections are counted one after another"

    def setup(self, *ranks: int) -> None:
        self.labels = foreground_labels(self)

    def plan(self, found: Shape, truth: Shape) -> LayerPlan:
        for what, shape, width in (("detections", found, 7), ("true boxes", truth, 8)):
            if len(shape) != 4 or shape[:2] != (1, 1) or shape[3] != width:
                raise self.error(f"{what} {list(shape)} must be 1×1×R×{width}")
        return LayerPlan([(1, 1, len(self.labels) + found[2], 5)])

    def forward(self, found: Tensor, truth: Tensor) -> tuple[Tensor]:
        detections, true = (blob.detach()[0, 0].float().cpu() for blob in (found, truth))
        ended = (true[:, 0].long() == -1).nonzero()[:, 0]
        true = true[: int(ended[0])] if len(ended) else true  # the first row of image -1 ends the list
        counted = true if self.param.evaluate_difficult_gt else true[true[:, 7] == 0]
        rows = [[-1.0, label, float((counted[:, 1] == label).sum()), -1.0, -1.0] for label in self.labels]
        detections = detections[(detections[:, 0].long() != -1) & (detections[:, 1].long() != -1)]
        for blob, what in ((detections, "a detection"), (true, "a true box")):
            if (blob[:, 1].long() == self.param.background_label_id).any():
                raise self.error(
                    f"{what} has background_label_id {self.param.background_label_id} as its label"
                )
        for image in detections[:, 0].long().unique(sorted=True).tolist():
            for label in detections[detections[:, 0].long() == image, 1].long().unique(sorted=True).tolist():
                own = [
                    blob[(blob[:, 0].long() == image) & (blob[:, 1].long() == label)]
                    for blob in (detections, true)
                ]
                rows += self._judged(*own)
        return (torch.tensor(rows).reshape(1, 1, -1, 5).to(found),)

    def _judged(self, detections: Tensor, true: Tensor) -> list[list[float]]:
        """Return the rows of the detections of one image and class; a true box counts once."""
        if len(true):  # without true boxes the order stays
            detections = detections[detections[:, 2].argsort(descending=True, stable=True)]
        table = overlaps(detections[:, 3:7], true[:, 3:7])
        taken: set[int] = set()
        rows = []
        for detection, values in zip(detections.tolist(), table, strict=True):
            best = int(values.argmax()) if len(true) else -1
            positive = negative = 0.0
            if best < 0 or float(values[best]) < self.param.overlap_threshold:
                negative = 1.0
            elif self.param.evaluate_difficult_gt or not true[best, 7]:
                positive, negative = (0.0, 1.0) if best in taken else (1.0, 0.0)
                taken.add(best)
            rows.append([*detection[:3], positive, negative])
        return rows
