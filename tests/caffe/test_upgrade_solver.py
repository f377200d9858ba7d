"""Old solvers are upgraded as in Caffe."""

from __future__ import annotations

import pytest

from ilgnet_repro.caffe.prototxt import parse_solver
from ilgnet_repro.caffe.upgrade import upgrade_solver
from ilgnet_repro.errors import FormatError

SOLVERS = {
    "enum": ("solver_type: NESTEROV base_lr: 1", 'type: "Nesterov" base_lr: 1'),
    "default enum": ("solver_type: SGD", 'type: "SGD"'),
    "modern": ('type: "Adam"', 'type: "Adam"'),
    "neither": ("base_lr: 1", "base_lr: 1"),
    "nets inside": (
        'net_param { layers { name: "r" type: RELU } } test_net_param { input: "x" } fog: 1',
        'net_param { layer { name: "r" type: "ReLU" } } '
        'test_net_param { layer { name: "input" type: "Input" top: "x" } }',
    ),
}


@pytest.mark.parametrize(("old", "modern"), SOLVERS.values(), ids=SOLVERS)
def test_solver(old, modern):
    solver = parse_solver(old)
    before = solver.SerializeToString()
    found = upgrade_solver(solver)
    assert [field.path for field in found.fork_field] == [field.path for field in solver.fork_field]
    found.ClearField("fork_field")
    assert found == parse_solver(modern)
    assert solver.SerializeToString() == before


def test_a_solver_with_two_types_is_refused():
    with pytest.raises(FormatError, match="solver: type Adam and solver_type are both given; keep only type"):
        upgrade_solver(parse_solver('type: "Adam" solver_type: SGD'))
