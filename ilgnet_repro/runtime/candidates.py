"""Which of several prototxts fit a weights file, with the notes that loading each of them gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..caffe.graph_build import Choices, choose_graph
from ..caffe.prototxt import read_net
from ..caffe.upgrade import upgrade_net
from ..errors import IlgnetError, WeightsError
from ..layers.support.registry import resolve_kinds
from .calls import shapes_by_name
from .load import layer_notes, with_outputs
from .open_channels import channels_of_weights
from .plan import plan_net
from .weights import WeightsFile, blob_counts, fit_weights


@dataclass(frozen=True)
class Candidate:
    """A prototxt, and the first reason why it does not fit the weights; None where it fits.

    ``notes`` are those of `load` for the same choices, as far as the net could be read.
    """

    path: Path
    error: IlgnetError | None
    notes: tuple[str, ...]


def deploy_candidates(
    model: WeightsFile, prototxts: Sequence[Path], choices: Choices | None = None
) -> list[Candidate]:
    """Return a `Candidate` for each prototxt; one that cannot be read has its error, and the others are still tried."""
    return [_candidate(model, path, choices or Choices()) for path in prototxts]


def _candidate(model: WeightsFile, path: Path, choices: Choices) -> Candidate:
    notes: list[str] = []
    error: IlgnetError | None = None
    try:
        text = resolve_kinds(upgrade_net(read_net(path), notes), blob_counts(model.layers))
        graph = with_outputs(choose_graph(text, choices, notes), notes)
        shapes = shapes_by_name(choices.input_shapes or {}, graph)
        plan = plan_net(graph, shapes | channels_of_weights(graph, shapes, model, notes))
        fit = fit_weights(plan.blobs, model.layers, plan.owners)
        notes += [*fit.notes, *layer_notes(plan)]
        if not fit.is_whole:
            error = WeightsError((fit.misshapen or fit.missing)[0])
    except IlgnetError as raised:
        error = raised
    return Candidate(path, error, tuple(notes))
