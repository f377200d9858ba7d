"""Recorded solvers on a GPU: losses, tests and weights in float64 and float32; skipped without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_traces import LOSSES, check_arrays, check_trace, take_blobs
from train_cases import NAMES, SENSITIVE, SOLVERS, read_log, run, settings_of

from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train.loop import Options

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
# Their trace needs Caffe's own order of sums, which is that of its CPU code.
IN_CAFFES_ORDER = {"sgd_l1", "sgd_clip"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_CAFFES_ORDER])
def test_a_run_in_float64_is_caffes_run(name, tmp_path):
    caffe = read_log(SOLVERS / f"{name}.log")
    ours, trainer = run(settings_of(name, tmp_path), options=Options(precision="float64", device="cuda"))
    check_trace(ours, caffe)
    theirs = pb.NetParameter.FromString((SOLVERS / f"{name}_iter_20.caffemodel").read_bytes())
    mine = [blob.detach().cpu().numpy().ravel() for blobs in trainer.net.params.values() for blob in blobs]
    check_arrays(mine, take_blobs(theirs), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_float32_starts_as_caffes(name, tmp_path):
    caffe = read_log(SOLVERS / f"{name}.log")
    ours, _ = run(settings_of(name, tmp_path), options=Options(device="cuda"))
    last = min(SENSITIVE.get(name, 20), 8)
    np.testing.assert_allclose(
        [ours.losses[i] for i in range(last)], [caffe.losses[i] for i in range(last)], **LOSSES
    )
    assert sorted(ours.losses) == list(range(20))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_stays_near(precision, tmp_path):
    name = "sgd_step" if "sgd_step" in NAMES else NAMES[0]
    caffe = read_log(SOLVERS / f"{name}.log")
    ours, _ = run(settings_of(name, tmp_path), options=Options(precision=precision, device="cuda"))
    np.testing.assert_allclose(ours.losses[0], caffe.losses[0], rtol=0.02)
    assert all(np.isfinite(list(ours.losses.values())))


def test_settings_of_tf32_are_the_callers_after_a_step(tmp_path):
    before = torch.backends.cudnn.conv.fp32_precision
    run(settings_of(NAMES[0], tmp_path), options=Options(device="cuda"))
    assert torch.backends.cudnn.conv.fp32_precision == before
