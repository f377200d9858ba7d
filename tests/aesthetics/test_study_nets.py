"""The study's nets and solvers among the texts that are shipped."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from zoo_counter import count, learned

from ilgnet_repro.caffe.prototxt import read_net, read_solver
from ilgnet_repro.manifest import listed
from ilgnet_repro.zoo import catalogue
from ilgnet_repro.zoo.catalogue import build

SHIPPED = Path(__file__).parents[2] / "prototxt"
TEXTS = catalogue.texts()


def test_every_listed_net_is_in_the_catalogue() -> None:
    assert set(listed("nets")) <= set(catalogue.builders())
    assert "ilgnet" in listed("nets")


def test_no_other_file_is_shipped_under_prototxt():
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


PARAMETERS = {
    "ilgnet": 150_938_082,
    "ilgnet_train": 150_938_082,
    "ilgnet_val": 150_938_082,
}
SHAPES = [
    ("ilgnet", "conv1/7x7_s2", (1, 64, 114, 114)),
    ("ilgnet", "inception_3a/output", (1, 256, 28, 28)),
    ("ilgnet", "inception_3b/output", (1, 480, 28, 28)),
    ("ilgnet", "inception_4a/output", (1, 512, 14, 14)),
    ("ilgnet", "loss1/ave_pool", (1, 512, 4, 4)),
    ("ilgnet", "temp", (1, 1024)),
    ("ilgnet", "loss1/loss", (1, 2)),
    ("ilgnet_train", "loss1/classifier_cjy", (48, 2)),
    ("ilgnet_val_ava1", "loss1/classifier_cjy", (50, 2)),
    ("resnet_inception", "pooling2/output", (1, 256, 28, 28)),
    ("resnet_inception", "pool4/6x6_s1", (1, 1024, 8, 8)),
    ("resnet_inception", "prob", (1, 2)),
    ("googlenet_third", "prob", (1, 2)),
    ("googlenet_two_thirds", "loss2/conv", (1, 128, 4, 4)),
    ("googlenet_whole", "pool5/7x7_s1", (1, 1024, 1, 1)),
    ("ilgnet_without_local", "temp_cjy", (1, 1024)),
    ("ilgnet_without_inception", "plain_4a/3x3", (1, 512, 14, 14)),
]
HEADS = {
    "googlenet_third_train_val": {"loss1": 1},
    "googlenet_two_thirds_train_val": {"loss1": 0.3, "loss2": 1},
    "googlenet_whole_train_val": {"loss1": 0.3, "loss2": 0.3, "loss3": 1},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_published(name):
    assert learned(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "blob", "shape"), SHAPES, ids=[f"{s[0]}-{s[1]}" for s in SHAPES])
def test_blob_shape(name, blob, shape):
    assert count(build(name))[0][blob] == shape


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_their_weights(name):
    losses = [layer for layer in build(name).layer if layer.type == "SoftmaxWithLoss"]
    found = {layer.name.split("/")[0]: layer.loss_weight[0] for layer in losses}
    assert found == pytest.approx(HEADS[name])


def test_cuts_of_googlenet_grow_by_the_modules_between_them():
    """Trunk parameters only: heads differ.  A module's own count is the sum over its six convolutions."""

    def trunk(name):
        _, params = count(build(name))
        blobs = (b for layer, b in params.items() if not layer.startswith("loss"))
        return sum(prod(shape) for blob in blobs for shape in blob)

    def module(inputs, *outputs):
        one, three_reduce, three, five_reduce, five, pool = outputs
        return (
            (inputs + 1) * (one + three_reduce + five_reduce + pool)
            + (9 * three_reduce + 1) * three
            + (25 * five_reduce + 1) * five
        )

    second = (
        module(512, 160, 112, 224, 24, 64, 64)
        + module(512, 128, 128, 256, 24, 64, 64)
        + module(512, 112, 144, 288, 32, 64, 64)
    )
    third = (
        module(528, 256, 160, 320, 32, 128, 128)
        + module(832, 256, 160, 320, 32, 128, 128)
        + module(832, 384, 192, 384, 48, 128, 128)
    )
    assert trunk("googlenet_two_thirds") - trunk("googlenet_third") == second
    assert trunk("googlenet_whole") - trunk("googlenet_two_thirds") == third


@pytest.mark.parametrize("module", ["3a", "3b", "4a"])
def test_plain_block_is_as_large_as_its_inception_module(module):
    def size(name, prefix):
        blobs = [b for layer, b in count(build(name))[1].items() if layer.startswith(f"{prefix}_{module}/")]
        assert blobs
        return sum(prod(shape) for blob in blobs for shape in blob)

    inception = size("ilgnet", "inception")
    assert abs(size("ilgnet_without_inception", "plain") - inception) < 0.01 * inception


def test_without_local_lacks_only_the_two_local_heads():
    names = {layer.name for layer in build("ilgnet").layer}
    left = {layer.name for layer in build("ilgnet_without_local").layer}
    gone = {f"temp{i}{part}" for i in (1, 2) for part in ("", "_relu", "_drop")} | {"temp"}
    assert names - left == gone
    assert left <= names
