"""Known models: the manifest, files recognized by their digests, and nets by their layers."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from ilgnet_repro import known
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import DataError
from ilgnet_repro.known import Identity, KnownModel, assumed, assumed_note, find_model, identify, known_models
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.zoo import alexnet, googlenet, squeezenet
from ilgnet_repro.zoo.catalogue import build, builders

LENGTHS = {"sha1": 40, "sha256": 64, "sha384": 96}
ROWS = {model.name: model for model in known_models()}


# ---------------------------------------------------------------------------------------- the manifest


def test_names_and_digests_stand_once():
    assert len(ROWS) == len(known_models())
    for field in ("files", "digests"):
        all_values = [value for model in known_models() for value in getattr(model, field)]
        assert len(set(all_values)) == len(all_values)


@pytest.mark.parametrize("model", ROWS.values(), ids=ROWS)
def test_a_row_is_whole(model):
    assert model.title and model.files
    assert model.size is None or model.size > 1_000_000
    for digest in model.digests:
        kind, _, value = digest.partition(":")
        assert re.fullmatch(f"[0-9a-f]{{{LENGTHS[kind]}}}", value)
    for file in model.files:
        assert re.fullmatch(r"[\w.-]+\.caffemodel", file)
    assert model.preprocessing is not None or model.note or not model.builder
    assert not (model.preprocessing and model.note)
    assert model.page == "" or model.page.startswith(("https://", "http://dl.caffe."))
    assert not model.labels or model.classes == len(model.labels)


@pytest.mark.parametrize(
    "model", [model for model in ROWS.values() if model.nets], ids=lambda model: model.name
)
def test_rows_count_the_layers_of_their_nets(model):
    nets = [known.build_net(builder) for builder in model.nets]
    assert model.net_layers == tuple(sum(bool(layer.bottom) for layer in net.layer) for net in nets)


@pytest.mark.parametrize("name", [name for name, model in ROWS.items() if model.builder])
def test_a_builder_fits_what_the_row_says_of_its_net(name):
    model = ROWS[name]
    net = known.build_net(model.builder)
    graph = build_graph(net)
    (shape,) = net.layer[0].input_param.shape
    assert model.builder in {
        f"{builder.__module__}:{builder.__qualname__}" for builder in builders().values()
    }
    if model.preprocessing is not None:
        assert tuple(shape.dim[1:]) == (3, *model.preprocessing.size)
    if model.score is not None:
        assert model.score.output in graph.outputs
        if model.labels:  # a net of scores has none
            assert model.labels[model.score.index] == model.score.meaning


def test_a_name_that_is_no_models():
    assert find_model("ava3-weights") is None


def test_the_module_names_no_model():
    text = Path(known.__file__).read_text(encoding="utf-8").casefold()
    assert not [word for word in ("ilgnet,", "ava1", "ava2", "loss1", "squeezenet", "227") if word in text]


# -------------------------------------------------------------------------------------- files by digest

CONTENT = b"weights of twenty-four b"
OTHER = b"weights of the same size"
SHA256, SHA1 = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha1(CONTENT).hexdigest()
SIZED = KnownModel("sized", "Sized", ("sized.caffemodel",), size=24, digests=(f"sha256:{SHA256}",))
SIZED_SHA1 = KnownModel(
    "old", "Old", ("old.caffemodel",), size=24, digests=("sha1:" + "0" * 40, f"sha1:{SHA1}")
)
NAMED = KnownModel("named", "Named", ("named.caffemodel",), digests=(f"sha1:{SHA1}",))
BARE = KnownModel("bare", "Bare", ("bare.caffemodel",))
SUM, OTHER_SUM = SHA256, hashlib.sha256(OTHER).hexdigest()

FILES = {  # models, name, content, sha256 requested -> digest, model, suspected
    "the size and the digest are a model's": ((SIZED,), "mine.bin", CONTENT, False, SUM, SIZED, None),
    "the digest published is a SHA-1": ((SIZED_SHA1,), "mine.bin", CONTENT, False, SUM, SIZED_SHA1, None),
    "only the size is a model's: fine-tuned": ((SIZED,), "tuned.bin", OTHER, False, OTHER_SUM, None, None),
    "name and size but another digest": ((SIZED,), "sized.caffemodel", OTHER, False, OTHER_SUM, None, SIZED),
    "the name but another size: not read": ((SIZED,), "sized.caffemodel", OTHER[1:], False, None, None, SIZED),
    "no size is known: by name": ((NAMED,), "named.caffemodel", CONTENT, False, SUM, NAMED, None),
    "no size is known: another name": ((NAMED,), "mine.bin", CONTENT, False, None, None, None),
    "no digest is known: suspected": ((BARE,), "bare.caffemodel", CONTENT, False, None, None, BARE),
    "nothing alike": ((SIZED, NAMED, BARE), "mine.bin", b"x", False, None, None, None),
    "nothing similar, but requested": ((BARE,), "mine.bin", CONTENT, True, SUM, None, None),
    "an empty file": ((SIZED,), "mine.bin", b"", True, hashlib.sha256(b"").hexdigest(), None, None),
}  # fmt: skip


@pytest.mark.parametrize(
    ("models", "name", "content", "asked", "sha256", "model", "suspected"), FILES.values(), ids=FILES
)
def test_a_file_is_identified(tmp_path, monkeypatch, models, name, content, asked, sha256, model, suspected):
    monkeypatch.setattr(known, "known_models", lambda: models)
    if sha256 is None:
        monkeypatch.setattr(known, "file_digests", lambda *_: pytest.fail("hashed without need"))
    (tmp_path / name).write_bytes(content)
    assert identify(tmp_path / name, sha256=asked) == Identity(name, len(content), sha256, model, suspected)


def _pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read (No such file or directory)"),
        (lambda path: path.mkdir(), "is not a file; give the weights"),
        (_pipe, "is not a file; give the weights"),
    ],
    ids=["absent", "folder", "pipe"],
)
def test_what_is_no_file(tmp_path, make, message):
    path = tmp_path / "x.caffemodel"
    make(path)
    with pytest.raises(DataError) as caught:
        identify(path, sha256=True)
    assert str(caught.value) == f"{path}: {message}"


# ---------------------------------------------------------------------------------------- nets by layers


def _changed(net, change):
    change(next(layer for layer in net.layer if layer.HasField("convolution_param")), net)
    return net


def _with_old_input(net):
    """The same net with its input stated at the top, as older texts have it."""
    shape = net.layer[0].input_param.shape[0]
    net.input.append(net.layer[0].top[0])
    net.input_dim.extend(shape.dim)
    del net.layer[0]
    return net


def _without_size(net):
    net.layer[0].ClearField("input_param")
    return net


def _of_size(net, side):
    net.layer[0].input_param.shape[0].dim[2:] = (side, side)
    return net


def _of_batch(net, count):
    net.layer[0].input_param.shape[0].dim[0] = count
    return net


SAME = {
    "another batch": (lambda: _of_batch(googlenet.deploy(), 7), "bvlc_googlenet"),
    "the training net": (googlenet.train_val, "bvlc_googlenet"),
    "an input at the top": (lambda: _with_old_input(squeezenet.deploy()), "squeezenet_v1.1"),
    "no size stated": (lambda: _without_size(squeezenet.deploy()), "squeezenet_v1.1"),
    "AlexNet": (alexnet.deploy, "bvlc_alexnet"),
    "GoogLeNet": (googlenet.deploy, "bvlc_googlenet"),
    "ResNet-50": (lambda: build("resnet50"), "ResNet-50"),
}
DIFFERENT = {
    "more outputs": lambda: _changed(
        alexnet.deploy(), lambda conv, _: setattr(conv.convolution_param, "num_output", 64)
    ),
    "another kernel": lambda: _changed(
        alexnet.deploy(), lambda conv, _: conv.convolution_param.kernel_size.__setitem__(0, 7)
    ),
    "another name": lambda: _changed(alexnet.deploy(), lambda conv, _: setattr(conv, "name", "conv_1")),
    "another type": lambda: _changed(alexnet.deploy(), lambda _, net: setattr(net.layer[2], "type", "PReLU")),
    "a layer more": lambda: _changed(
        alexnet.deploy(),
        lambda _, net: net.layer.add(name="more", type="ReLU", bottom=["prob"], top=["prob"]),
    ),
    "a layer less": lambda: _changed(alexnet.deploy(), lambda _, net: net.layer.pop()),
    "another size of input": lambda: _of_size(squeezenet.deploy(), 224),
    "no layers": lambda: parse_net('name: "GoogleNet"'),
}


@pytest.mark.parametrize(("make", "name"), SAME.values(), ids=SAME)
def test_a_net_with_the_layers_of_a_model(make, name):
    assert assumed(make()).name == name


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_a_net_with_other_layers(make):
    assert assumed(make()) is None


NOTES = {
    "mean": (
        find_model("bvlc_googlenet"),
        "preprocessing is assumed from the net's layers (BVLC GoogLeNet: image resized to 256x256, centre crop of "
        "224x224, BGR minus 104, 117, 123); if these weights were trained otherwise, state the preprocessing",
    ),
    "scale": (
        KnownModel("x", "X", (), preprocessing=Preprocessing((9, 7), mean_value=(3.5,), scale=0.5)),
        "preprocessing is assumed from the net's layers (X: image resized to 9x7, BGR minus 3.5, times 0.5); "
        "if these weights were trained otherwise, state the preprocessing",
    ),
    "none": (
        find_model("ResNet-50"),
        "by the net's layers this is ResNet-50: its mean is an image, ResNet_mean.binaryproto; "
        "give it with --mean-file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "note"), NOTES.values(), ids=NOTES)
def test_what_is_assumed_is_said(model, note):
    assert assumed_note(model) == note
