"""Solver states: Caffe's bytes in, the same bytes out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from wire_bytes import blob, chunk, floats, number, shape

from ilgnet_repro.caffe.solverstate import read_solverstate, write_solverstate
from ilgnet_repro.errors import FormatError
from ilgnet_repro.schema import caffe_pb2


def test_recorded_states_are_read_and_written_byte_for_byte(golden, tmp_path):
    paths = sorted((golden / "pipeline" / "solvers").glob("*.solverstate"))
    assert len(paths) > 20
    for path in paths:
        expected = caffe_pb2.SolverState.FromString(path.read_bytes())
        state = read_solverstate(path)
        assert (state.iter, state.learned_net, state.current_step) == (
            expected.iter,
            expected.learned_net,
            expected.current_step,
        )
        arrays = [found.array() for found in state.history]
        for array, wanted in zip(arrays, expected.history, strict=True):
            np.testing.assert_array_equal(array.ravel(), np.float32(wanted.data))
            assert array.shape == tuple(wanted.shape.dim)
        write_solverstate(tmp_path / "out", state.iter, state.learned_net, arrays, state.current_step)
        assert (tmp_path / "out").read_bytes() == path.read_bytes(), path.name


REFUSED = {
    "a caffemodel": (
        chunk(1, "net") + chunk(100, chunk(1, "a")),
        "is a Caffe weights file (.caffemodel), not a solver state; give the .solverstate of the same snapshot",
    ),
    "negative iteration": (number(1, -1), "has no iteration"),
    "values": (
        number(1, 5) + chunk(3, blob(floats(1), 2)),
        "history 0: shape 2 needs 2 values, the file has 1",
    ),
    "truncated": (number(1, 5) + chunk(3, shape(2))[:-1], "is truncated or damaged"),
    "text": (b"iter: 5\n", "is text, not a solver state; give the .solverstate of a snapshot"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, data, message):
    path = tmp_path / "x.solverstate"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_solverstate(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.solverstate: ")
