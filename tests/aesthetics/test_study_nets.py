"""The study's nets and solvers among the texts that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilgnet_repro.caffe.prototxt import read_net, read_solver
from ilgnet_repro.manifest import listed
from ilgnet_repro.zoo import catalogue

SHIPPED = Path(__file__).parents[2] / "prototxt"
TEXTS = catalogue.texts()


def test_every_listed_net_is_in_the_catalogue() -> None:
    assert set(listed("nets")) <= set(catalogue.builders())
    assert "ilgnet" in listed("nets")


def test_nothing_else_is_shipped_under_prototxt():
    found = {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.prototxt")}
    assert found == set(TEXTS)


@pytest.mark.parametrize(
    ("partition", "images", "batch_size"),
    [("AVA1", 20_000, 50), ("AVA2", 25_553, 48)],
    ids=["ava1", "ava2"],
)
def test_shipped_solver_tests_its_own_partition_whole(partition, images, batch_size):
    folder = SHIPPED / "ilgnet"
    solver = read_solver(folder / f"{partition.lower()}_solver.prototxt")
    for file, part in ((solver.train_net, "train"), (solver.test_net[0], "val")):
        data = read_net(folder / file).layer[0]
        assert data.data_param.source.endswith(f"data/{partition}/{part}_lmdb")
        assert f"/{partition}/" in data.transform_param.mean_file
    assert data.data_param.batch_size == batch_size
    assert 0 <= solver.test_iter[0] * batch_size - images < batch_size
