"""Which layers belong to a net's state: the include and exclude rules of Caffe's `FilterNet`."""

from __future__ import annotations

from ..errors import GraphError
from ..schema import caffe_pb2 as pb

PHASES = {"TRAIN": pb.TRAIN, "TEST": pb.TEST}


def net_state(phase: str, level: int = 0, stages: tuple[str, ...] = ()) -> pb.NetState:
    """Return the state that rules are held against; ``phase`` is TRAIN or TEST."""
    if phase not in PHASES:
        raise GraphError(f"phase {phase!r} is unknown; use TRAIN or TEST")
    return pb.NetState(phase=PHASES[phase], level=level, stage=stages)


def meets(rule: pb.NetStateRule, state: pb.NetState) -> bool:
    """Tell whether every condition that ``rule`` states holds in ``state``."""
    if rule.HasField("phase") and rule.phase != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    stages = set(state.stage)
    return stages.issuperset(rule.stage) and stages.isdisjoint(rule.not_stage)


def is_included(layer: pb.LayerParameter, state: pb.NetState) -> bool:
    """Apply a layer's rules: any matching include lets it in, any matching exclude keeps it out."""
    if layer.include and layer.exclude:
        raise GraphError(
            f"{layer.name} ({layer.type}): has both include and exclude rules; Caffe takes only one kind"
        )
    if layer.include:
        return any(meets(rule, state) for rule in layer.include)
    return not any(meets(rule, state) for rule in layer.exclude)
