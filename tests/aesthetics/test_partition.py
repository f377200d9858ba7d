"""Partitions: the published counts from a synthetic AVA.txt, labels by fractions, seeds, orders, refusals."""

import argparse
import csv
import json
from fractions import Fraction

import numpy as np
import pytest
from ava_text import HIGH, LOW, table_of, write_ava

from ilgnet_repro.aesthetics.ava import AvaTable, read_ava
from ilgnet_repro.aesthetics.ava_partition import (
    partition_ava1,
    partition_ava2,
    read_excluded,
    write_partition,
)
from ilgnet_repro.aesthetics.partition_scores import read_scores, scores_of, write_scores
from ilgnet_repro.cli import partition as command
from ilgnet_repro.errors import DataError


def exact_means(table):
    return {
        int(identity): Fraction(sum(score * count for score, count in enumerate(votes, 1)), sum(votes))
        for identity, votes in zip(table.ids.tolist(), table.votes.tolist(), strict=True)
    }


def pairs(table, split):
    return list(zip(table.ids[split.rows].tolist(), split.labels.tolist(), strict=True))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An AVA.txt of the size and class sizes of the authors' one, read back."""
    return read_ava(write_ava(table_of(LOW, HIGH), tmp_path_factory.mktemp("ava") / "AVA.txt"))


def test_ava1_has_the_published_counts(published):
    made = partition_ava1(published, seed=1)
    assert (made.train.class_sizes, made.val.class_sizes) == ((70_673, 164_856), (4_000, 16_000))
    assert (len(made.train), len(made.val), made.dropped) == (235_529, 20_000, 0)
    assert not set(made.train.rows.tolist()) & set(made.val.rows.tolist())


def test_ava2_has_the_published_counts(published):
    made = partition_ava2(published, seed=1)
    assert (len(made.train), len(made.val)) == (25_553, 25_553)
    assert np.add(made.train.class_sizes, made.val.class_sizes).tolist() == [25_553, 25_553]
    assert not set(made.train.rows.tolist()) & set(made.val.rows.tolist())
    # Halved as a whole: about even classes, from which only a bug could deviate by 1,000 (12 deviations).
    assert abs(made.train.class_sizes[0] - 12_776) < 1_000


@pytest.mark.parametrize(
    ("delta", "limit"),
    [(0, Fraction(0)), (0.1, Fraction(1, 10)), (0.5, Fraction(1, 2)), (1.5, Fraction(3, 2))],
    ids=["0", "0.1", "0.5", "1.5"],
)
def test_ava1_labels_and_delta_by_fractions(delta, limit):
    table = table_of(700, 900)
    made = partition_ava1(table, seed=5, delta=delta, val_sizes=(40, 60))
    means, val = exact_means(table), dict(pairs(table, made.val))
    assert val == dict(pairs(table, partition_ava1(table, seed=5, val_sizes=(40, 60)).val))
    wanted = {
        identity: int(mean > 5)
        for identity, mean in means.items()
        if identity not in val and not abs(mean - 5) < limit
    }
    assert dict(pairs(table, made.train)) == wanted
    assert all(label == (means[identity] > 5) for identity, label in val.items())
    assert made.dropped == len(means) - len(val) - len(wanted)


def single(ids_and_votes):
    votes = np.zeros((len(ids_and_votes), 10), np.int32)
    for row, (_, counts) in enumerate(ids_and_votes):
        for score, count in counts.items():
            votes[row, score - 1] = count
    ids = np.array([identity for identity, _ in ids_and_votes])
    return AvaTable("AVA.txt", ids, votes, np.zeros((len(ids), 2), np.int32), np.zeros(len(ids), np.int32))


@pytest.mark.parametrize(
    ("votes", "delta", "label"),
    [
        ({5: 7}, 0, 0),
        ({5: 30, 6: 1}, 0, 1),
        ({5: 6, 4: 1}, 0, 0),
        ({5: 27, 4: 3}, 0.1, 0),  # 4.9: exactly delta away stays, though 5 - 4.9 < 0.1 in float64
        ({5: 28, 4: 2}, 0.1, None),
        ({5: 27, 6: 3}, 0.1, 1),
    ],
    ids=["exactly-5", "just-above", "below", "at-delta", "within-delta", "at-delta-above"],
)
def test_the_cut_and_the_edge_of_delta(votes, delta, label):
    table = single([(11, votes), (12, {1: 3})])
    made = partition_ava1(table, seed=0, delta=delta, val_sizes=(0, 0))
    assert dict(pairs(table, made.train)).get(11) == label


def test_ava2_takes_the_extreme_tenths_and_breaks_ties_by_id():
    means = {
        identity: {score: 1}
        for identity, score in zip(range(1, 21), [4] * 5 + [5] * 11 + [7] * 4, strict=True)
    }
    table = single(list(means.items())[::-1])
    made = partition_ava2(table, seed=2)
    chosen = dict(pairs(table, made.train) + pairs(table, made.val))
    assert chosen == {1: 0, 2: 0, 19: 1, 20: 1}


@pytest.mark.parametrize("make", [partition_ava1, partition_ava2], ids=["ava1", "ava2"])
def test_the_lists_depend_on_seed_and_images_and_not_on_the_order_of_rows(make):
    table = table_of(5_000, 17_000)
    turned = table.take(np.arange(len(table))[::-1])
    first, again, other = make(table, 7), make(turned, 7), make(table, 8)
    assert pairs(table, first.train) == pairs(turned, again.train)
    assert pairs(table, first.val) == pairs(turned, again.val)
    assert set(pairs(table, first.val)) != set(pairs(table, other.val))


@pytest.mark.parametrize("order", ["class", "shuffled"])
@pytest.mark.parametrize("make", [partition_ava1, partition_ava2], ids=["ava1", "ava2"])
def test_orders_hold_the_same_rows(make, order):
    table = table_of(5_000, 17_000)
    default, made = make(table, 7), make(table, 7, order=order)
    for name in ("train", "val"):
        split = getattr(made, name)
        assert set(pairs(table, split)) == set(pairs(table, getattr(default, name)))
        steps = np.flatnonzero(np.diff(split.labels.astype(int)))
        assert (len(steps) == 1 and split.labels[0] == 0) == (order == "class")
        # Inside a class the order is random: neighbours' ids are not related.
        ids = table.ids[split.rows[split.labels == 1]]
        assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda table: partition_ava1(table, 1),
            "AVA.txt: val needs 4000 images of label 0, there are 30; give other val_sizes=",
        ),
        (
            lambda table: partition_ava1(table, 1, val_sizes=(5, -1)),
            "AVA.txt: val needs -1 images of label 1, there are 50; give other val_sizes=",
        ),
        (
            lambda table: partition_ava1(table, 1, val_sizes=(30, 50)),
            "AVA.txt: no training image is left; lower delta= or val_sizes=",
        ),
        (
            lambda table: partition_ava1(table, 1, val_sizes=(1, 1), delta=float("nan")),
            "delta nan: out of range; use a number from 0 up to, not including, 5",
        ),
        (
            lambda table: partition_ava1(table, 1, val_sizes=(1, 1), delta=-0.1),
            "delta -0.1: out of range; use a number from 0 up to, not including, 5",
        ),
        (
            lambda table: partition_ava1(table, -1, val_sizes=(1, 1)),
            "seed -1: out of range; use 0 to 4294967295",
        ),
        (lambda table: partition_ava2(table, 2**32), "seed 4294967296: out of range; use 0 to 4294967295"),
        (lambda table: partition_ava2(table, 1, order="x"), "order 'x': unknown; use class or shuffled"),
        (
            lambda table: partition_ava2(table.take(np.arange(4)), 1),
            "AVA.txt: 4 images have no tenth; AVA2 needs at least five",
        ),
    ],
    ids=["class-small", "negative", "none-left", "nan", "delta<0", "seed<0", "seed-large", "order", "four"],
)
def test_refusals(call, message):
    with pytest.raises(DataError) as error:
        call(table_of(30, 50))
    assert str(error.value) == message


def ilgnet(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.run(parser.parse_args(["partition", *map(str, words)]))


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_the_command_writes_lists_and_scores(tmp_path, capsys, suffix):
    table = table_of(300, 400)
    ava, out, scores = (
        write_ava(table, tmp_path / "AVA.txt"),
        tmp_path / "lists",
        tmp_path / f"scores{suffix}",
    )
    words = ["ava1", ava, "--out", out, "--seed", 4, "--val-sizes", 30, 50, "--scores", scores, "--json"]
    assert ilgnet(*words) == 0
    report = json.loads(capsys.readouterr().out)
    means = exact_means(table)
    lists = {name: (out / f"{name}.txt").read_text().splitlines() for name in ("train", "val")}
    assert {name: report[name]["rows"] for name in lists} == {"train": 620, "val": 80}
    assert report["train"]["class_sizes"] == [270, 350]
    for line in lists["train"] + lists["val"]:
        image, label = line.split(" ")
        assert int(label) == (means[int(image.removesuffix(".jpg"))] > 5)
    read = read_scores(scores)
    assert [f"{identity}.jpg" for identity in read.ids] == [
        line.split()[0] for line in lists["train"] + lists["val"]
    ]
    assert int(read.in_val.sum()) == 80 and not read.in_val[:620].any()
    assert read.means.tolist() == [float(means[identity]) for identity in read.ids.tolist()]
    assert read.distributions.sum(axis=1) == pytest.approx(np.ones(700))
    by_id = dict(zip(table.ids.tolist(), table.votes.tolist(), strict=True))
    assert read.votes.tolist() == [by_id[identity] for identity in read.ids.tolist()]
    if suffix == ".csv":
        with open(scores, newline="") as file:
            first = next(csv.DictReader(file))
        identity = int(first["picture"].removesuffix(".jpg"))
        assert [int(first[f"votes_{score}"]) for score in range(1, 11)] == by_id[identity]


def test_excluded_images_are_left_out(tmp_path, capsys):
    table = table_of(60, 80)
    ava, bad = write_ava(table, tmp_path / "AVA.txt"), tmp_path / "bad.txt"
    gone = table.ids[:3].tolist()
    bad.write_text(f"{gone[0]}.jpg missing\n{gone[1]}\n\nimages/{gone[2]}.jpg corrupt\n")
    words = ["ava1", ava, "--out", tmp_path, "--seed", 4, "--val-sizes", 3, 5, "--exclude", bad]
    assert ilgnet(*words) == 0
    listed = [line.split(".")[0] for name in ("train", "val") for line in (tmp_path / f"{name}.txt").open()]
    assert sorted(map(int, listed)) == sorted(set(table.ids.tolist()) - set(gone))
    bad.write_text("12.jpg\nportrait.jpg\n")
    with pytest.raises(DataError) as error:
        read_excluded(bad)
    assert str(error.value) == f"{bad}:2: 'portrait' is not an image id; write ID or ID.jpg"


def test_existing_lists_are_kept_unless_forced(tmp_path):
    table = table_of(60, 80)
    made = partition_ava2(table, 1)
    (tmp_path / "val.txt").write_text("mine")
    with pytest.raises(DataError) as error:
        write_partition(made, table, tmp_path)
    assert str(error.value) == f"{tmp_path / 'val.txt'}: is there already; give another out= or force=True"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val.txt"]
    write_partition(made, table, tmp_path, replace=True)
    assert (tmp_path / "val.txt").read_bytes() == b"".join(
        b"%d.jpg %d\n" % pair for pair in pairs(table, made.val)
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"", ":1: not the header of a scores file; it is picture,split,label,mean,std,…"),
        ("s.csv", None, ":3: not image, split, label, mean, std and ten counts"),
        ("s.npz", b"PK", ": not a scores file ("),
        ("absent.csv", None, ": cannot be read (No such file or directory)"),
    ],
    ids=["no-header", "bad-row", "not-a-zip", "absent"],
)
def test_bad_scores_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "s.csv":
        table = table_of(60, 80)
        write_scores(scores_of(partition_ava2(table, 1), table), path)
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], lines[2].replace("train", "trial"), *lines[3:]]))
    with pytest.raises(DataError) as error:
        read_scores(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_an_unknown_ending_of_a_scores_file(tmp_path):
    table = table_of(60, 80)
    with pytest.raises(DataError) as error:
        write_scores(scores_of(partition_ava2(table, 1), table), tmp_path / "s.pkl")
    assert str(error.value) == f"{tmp_path / 's.pkl'}: unknown kind of scores file; end it in .csv or .npz"
