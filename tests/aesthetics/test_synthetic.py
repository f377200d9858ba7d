"""The task that docs/training.md trains on: its images, labels, nets and solvers."""

from __future__ import annotations

import numpy as np
import pytest

from ilgnet_repro.aesthetics.synthetic_task import SIDE, draw_image, make_task
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.train.loop import Trainer
from ilgnet_repro.train.observe import Observer
from ilgnet_repro.train.solver import read_settings


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("task"), images=160, val=40)


def test_the_same_seed_draws_the_same_images():
    first, second, other = (draw_image(np.random.default_rng(seed), True) for seed in (1, 1, 2))
    assert first[0].shape == (SIDE, SIDE, 3) and first[0].dtype == np.uint8
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    assert not np.array_equal(first[0], other[0])


def test_rows_and_labels(task):
    labels = {
        name: [row.datum().label for row in LmdbReader(task / f"{name}_lmdb")]
        for name in ("train", "val", "hue")
    }
    assert {name: len(held) for name, held in labels.items()} == {"train": 120, "val": 40, "hue": 120}
    assert set(labels["train"]) == set(labels["val"]) == {0, 1}
    assert 0.35 < np.mean(labels["train"]) < 0.65
    assert set(labels["hue"]) == set(range(6))
    train, hue = (LmdbReader(task / f"{name}_lmdb")[7] for name in ("train", "hue"))
    assert train.key == hue.key and np.array_equal(train.image()[0], hue.image()[0])


def test_the_trunk_learns_and_its_layers_are_copied(task, monkeypatch):
    monkeypatch.chdir(task)
    settings = read_settings("trunk_solver.prototxt").with_(max_iter=12, snapshot=0)
    losses: list[float] = []

    class Ear(Observer):
        def on_forward(self, trainer, forward):
            losses.append(forward.loss)

    trunk = Trainer(settings, observers=[Ear()])
    trunk.solve()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    net = Trainer(read_settings("solver.prototxt", weights=["trunk_iter_12.caffemodel"])).net
    shared = set(net.params) & set(trunk.net.params)
    assert len(shared) == 20 and "temp1" not in shared
    for name in shared:
        for mine, theirs in zip(net.params[name], trunk.net.params[name], strict=True):
            assert bool((mine == theirs).all())
