"""Selects the layers of a net's state by their include and exclude rules, as Caffe's `FilterNet`."""

from __future__ import annotations

from ..errors import GraphError, IlgnetError
from ..schema import caffe_pb2 as pb

PHASES = {"TRAIN": pb.TRAIN, "TEST": pb.TEST}


def net_state(phase: str, level: int = 0, stages: tuple[str, ...] = ()) -> pb.NetState:
    """Return the state that rules are checked against; ``phase`` is TRAIN or TEST."""
    if phase not in PHASES:
        raise GraphError(f"phase {phase!r} is unknown; use TRAIN or TEST")
    try:
        return pb.NetState(phase=PHASES[phase], level=level, stage=stages)
    except UnicodeEncodeError as error:
        raise IlgnetError(f"stages={list(stages)}: is not UTF-8 text; correct it", option="stages") from error
    except ValueError as error:
        raise IlgnetError(f"level={level}: give a number from -2**31 to 2**31 - 1", option="level") from error


def meets(rule: pb.NetStateRule, state: pb.NetState) -> bool:
    """Return whether ``state`` meets every condition of ``rule``."""
    if rule.HasField("phase") and rule.phase != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    stages = set(state.stage)
    return stages.issuperset(rule.stage) and stages.isdisjoint(rule.not_stage)


def is_included(layer: pb.LayerParameter, state: pb.NetState) -> bool:
    """Return whether a layer is in the net: any matching include rule adds it, any matching exclude rule removes it."""
    if layer.include and layer.exclude:
        raise GraphError(
            f"{layer.name} ({layer.type}): has both include and exclude rules; Caffe takes only one kind"
        )
    if layer.include:
        return any(meets(rule, state) for rule in layer.include)
    return not any(meets(rule, state) for rule in layer.exclude)


def settle_rules(net: pb.NetParameter, level: int, stages: tuple[str, ...]) -> pb.NetParameter:
    """Return ``net`` for one level and set of stages: the remaining rules depend only on the phase.

    Needed where the text is saved without the level and stages it was selected for: Caffe takes the level only
    from its caller, so the text without them would be a different net.
    """
    state = net_state("TEST", level, (*net.state.stage, *stages))
    result = pb.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    for layer in net.layer:
        if layer.include and layer.exclude:  # refused when the net is built
            result.layer.add().CopyFrom(layer)
            continue
        met = [rule for rule in (*layer.include, *layer.exclude) if _meets_but_phase(rule, state)]
        phases = [pb.NetStateRule(phase=rule.phase) for rule in met if rule.HasField("phase")]
        is_free = len(phases) < len(met)  # one of them matches in every phase
        if (layer.include and not met) or (layer.exclude and is_free):
            continue
        kept = result.layer.add()
        kept.CopyFrom(layer)
        kept.ClearField("include")
        kept.ClearField("exclude")
        if layer.include and not is_free:
            kept.include.extend(phases)
        elif layer.exclude:
            kept.exclude.extend(phases)
    return result


def _meets_but_phase(rule: pb.NetStateRule, state: pb.NetState) -> bool:
    free = pb.NetStateRule()
    free.CopyFrom(rule)
    free.ClearField("phase")
    return meets(free, state)
