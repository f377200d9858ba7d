"""The states that a net's rules distinguish: its phases, and the stages that its text names (DIGITS' all-in-one nets)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from ..schema import caffe_pb2 as pb
from .dummy_inputs import computed_elsewhere, unwritten_bottoms
from .phase_rules import is_included, net_state

_FIRST = ("deploy",)  # the stage of a net that is used, not trained
_MOST = 8  # sets of stages that are tried; DIGITS' nets name three


@dataclass(frozen=True)
class State:
    """A phase with stages: the positions of its layers in the net, and the blobs that they lack: those of other states."""

    phase: str
    stages: tuple[str, ...]
    layers: tuple[int, ...]
    lacks: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()  # blobs that none of its layers writes
    feeds: tuple[str, ...] = ()  # tops of its layers without bottoms

    def __str__(self) -> str:
        return state_text(self.phase, self.stages)


def state_text(phase: str, stages: Iterable[str]) -> str:
    """Return a phase and its stages in words."""
    named = [repr(stage) for stage in stages]
    return f"phase {phase}" + (f", stage{'s' if named[1:] else ''} {', '.join(named)}" if named else "")


def states_of(
    net: pb.NetParameter, phases: Iterable[str] = ("TEST", "TRAIN"), level: int = 0, stages: tuple[str, ...] = ()
) -> list[State]:  # fmt: skip
    """Return the different states that have layers: each phase with the given stages, or else with none and each rule's."""
    found: dict[tuple[int, ...], State] = {}
    tried = [stages] if stages else [(), *_stages(net)]
    for phase, named in product(phases, tried):
        state = net_state(phase, level, (*net.state.stage, *named))
        kept = tuple(index for index, layer in enumerate(net.layer) if is_included(layer, state))
        if kept:
            read = unwritten_bottoms(net.layer[index] for index in kept)
            elsewhere = computed_elsewhere(net, state)
            lacks = tuple(blob for blob in read if blob in elsewhere)
            feeds = tuple(
                top for index in kept if not net.layer[index].bottom for top in net.layer[index].top
            )
            found.setdefault(kept, State(phase, named, kept, lacks, tuple(read), feeds))
    return list(found.values())


def _stages(net: pb.NetParameter) -> list[tuple[str, ...]]:
    """Return the stages that the rules name together, that of a net that is used first, in the order of the text."""
    named = [tuple(rule.stage) for layer in net.layer for rule in (*layer.include, *layer.exclude)]
    named = [stages for stages in dict.fromkeys(named) if stages]
    return sorted(named, key=lambda stages: stages != _FIRST)[:_MOST]
