"""The authors' solvers: SGD with steps, from the ImageNet weights of GoogLeNet."""

from __future__ import annotations

from typing import Any

from ilgnet_repro.schema import caffe_pb2


def _solver(train_net: str, test_net: str, **schedule: Any) -> caffe_pb2.SolverParameter:
    return caffe_pb2.SolverParameter(
        train_net=train_net,
        test_net=[test_net],
        display=20,
        lr_policy="step",
        gamma=0.96,
        momentum=0.9,
        weight_decay=0.0002,
        snapshot_prefix="bvlc_googlenet",
        solver_mode="GPU",
        **schedule,
    )


def ava1(train_net: str = "train.prototxt", test_net: str = "val.prototxt") -> caffe_pb2.SolverParameter:
    """475,000 iterations from 1e-4; each test is 400 batches."""
    return _solver(
        train_net,
        test_net,
        test_iter=[400],
        test_interval=4750,
        base_lr=1e-4,
        stepsize=115_000,
        max_iter=475_000,
        snapshot=4750,
    )


def ava1_own_nets() -> caffe_pb2.SolverParameter:
    """`ava1` for its own nets: it has its own databases and batch size."""
    return ava1("ava1_train.prototxt", "ava1_val.prototxt")


def ava2(train_net: str = "train.prototxt", test_net: str = "val.prototxt") -> caffe_pb2.SolverParameter:
    """533,000 iterations from 1e-5; each test is 533 batches of 48."""
    return _solver(
        train_net,
        test_net,
        test_iter=[533],
        test_interval=533,
        base_lr=1e-5,
        stepsize=13_325,
        max_iter=533_000,
        snapshot=5330,
    )
