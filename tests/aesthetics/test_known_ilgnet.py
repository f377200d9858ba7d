"""ILGNet among the known models: its rows, its layers, and what is assumed of a net that has them."""

from __future__ import annotations

import pytest

from ilgnet_repro.about import About, about_net
from ilgnet_repro.aesthetics import ilgnet
from ilgnet_repro.aesthetics.releases import releases
from ilgnet_repro.caffe.prototxt import parse_net, read_net
from ilgnet_repro.gradcam import _kinds
from ilgnet_repro.known import Identity, ScoreAt, assumed, find_model
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.zoo.catalogue import build


@pytest.mark.parametrize(
    "release", [row for row in releases() if row.kind == "weights"], ids=lambda row: row.name
)
def test_the_authors_weights_are_rows_with_the_figures_of_the_other_manifest(release):
    model = find_model(release.name)
    assert (model.files, model.size) == ((release.path.rpartition("/")[2],), release.size)
    assert model.digests == (f"sha256:{release.sha256}",)
    means = {
        "ava1-weights": (91.00, 99.46, 107.85),
        "ava2-weights": (90.05, 98.59, 107.51),
    }  # of the authors' files
    assert model.preprocessing.mean_value == means[release.name]
    assert model.score == ScoreAt("loss1/loss", 1, "high quality")
    assert model.labels == ("low quality", "high quality")


SAME = {"deploy": ilgnet.deploy, "train": ilgnet.train, "the test net on AVA1": ilgnet.val_ava1}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_a_net_with_the_layers_of_ilgnet(make):
    assert assumed(make()).name == "ava1-weights"


@pytest.mark.parametrize("name", ["ilgnet_without_local", "googlenet_whole"])
def test_a_net_with_other_layers(name):
    assert assumed(build(name)) is None


@pytest.mark.parametrize("name", ["deploy", "train", "val"])
def test_the_authors_own_texts(authors, name):
    assert assumed(read_net(authors / f"{name}.prototxt")).name == "ava1-weights"


# ------------------------------------------------------------------------------------- what is known about a net

AVA1, AVA2 = find_model("ava1-weights"), find_model("ava2-weights")
SHA = "ab" * 32
MINE = Identity("mine.caffemodel", 12)
SUFFIX = "if these weights were trained otherwise, state the preprocessing"
BY_LAYERS = (
    "preprocessing is assumed from the net's layers (ILGNet, AVA1: image resized to 227x227, BGR minus 91, 99.46, "
    f"107.85); {SUFFIX}"
)
BY_NAME = (
    "preprocessing is assumed from the net's layers and the file's name (ILGNet, AVA2: image resized to 227x227, BGR "
    f"minus 90.05, 98.59, 107.51); {SUFFIX}"
)
KNOWN = {  # file -> model, assumed, notes
    "a release": (Identity("x", 1, SHA, AVA2), AVA2, False, ()),
    "a file with its layers": (MINE, AVA1, True, (BY_LAYERS,)),
    "no file": (None, AVA1, True, (BY_LAYERS,)),
    "its layers and its name": (Identity(AVA2.files[0], 12, SHA, None, AVA2), AVA2, True, (BY_NAME,)),
}


@pytest.mark.parametrize(("identity", "model", "is_assumed", "notes"), KNOWN.values(), ids=KNOWN)
def test_what_is_known_of_ilgnet(identity, model, is_assumed, notes):
    about = about_net(ilgnet.deploy(), identity, net="G", outputs=("loss1/loss",))
    assert about.preprocessing.mean_value == model.preprocessing.mean_value
    assert (about.assumed, about.model, about.notes) == (is_assumed, model.name, notes)
    assert (about.labels, about.score) == (model.labels, model.score)


def test_assumptions_are_repeated_when_the_written_file_is_loaded():
    about = about_net(ilgnet.deploy(), MINE, outputs=("loss1/loss",))
    assert About.from_metadata(about.to_metadata()).notes == (BY_LAYERS,)
    known = about_net(ilgnet.deploy(), Identity("x", 1, SHA, AVA2), outputs=("loss1/loss",))
    assert About.from_metadata(known.to_metadata()).notes == ()


def test_the_name_without_the_layers_says_nothing():
    net = parse_net(
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }'
    )
    about = about_net(net, Identity(AVA2.files[0], 12, None, None, AVA2))
    assert (about.preprocessing, about.model, about.notes) == (None, "", ())


def test_a_score_is_of_an_output():
    assert about_net(ilgnet.val(), outputs=("loss1/top-1",)).score is None


def test_with_a_missing_mean_file_the_assumed_preprocessing_stays_and_both_are_reported():
    about = about_net(ilgnet.val(), MINE)
    assert about.notes[0].startswith("data (Data): its preprocessing is not read: mean_file ")
    assert about.notes[1:] == (BY_LAYERS,)
    assert about.preprocessing.mean_value == AVA1.preprocessing.mean_value


def test_stated_preprocessing_leaves_labels_and_score_assumed():
    stated = Preprocessing((9, 7), mean_value=(10.0, 20.0, 30.5), scale=0.5)
    about = about_net(ilgnet.deploy(), MINE, outputs=("loss1/loss",)).stating(stated)
    assert (about.preprocessing, about.assumed, about.model) == (stated, False, "")
    assert about.notes == ("labels and score are assumed from those of ava1-weights",)
    assert (about.labels, about.score) == (AVA1.labels, AVA1.score)
    known = about_net(ilgnet.deploy(), Identity("x", 1, SHA, AVA2), outputs=("loss1/loss",)).stating(stated)
    assert (known.assumed, known.model, known.notes) == (False, "ava2-weights", ())


def test_its_branches_are_two_local_ones_and_a_global_one() -> None:
    (join,) = (layer for layer in ilgnet.deploy().layer if layer.name == "temp")
    assert _kinds("temp", list(join.bottom)) == {"temp1": "local", "temp2": "local", "temp3": "global"}
