"""Backbones from caffemodels: their features equal the Caffe net's blob, and other networks' files are refused."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from zoo_weights import drawn_net

import ilgnet_repro as ir
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.aesthetics.models.backbones import VGG16, InceptionV2, MobileNetV1, MobileNetV2, ResNet18
from ilgnet_repro.aesthetics.models.caffe_trunks import load_caffe_trunk, start_from_caffe
from ilgnet_repro.aesthetics.synthetic_scores import write_scored_set
from ilgnet_repro.cli._model_runs import _start_from
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError, WeightsError
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.zoo import mobilenet, vgg
from ilgnet_repro.zoo.builder import NetBuilder

slow = pytest.mark.skipif(not os.environ.get("SLOW_MODELS"), reason="files of up to 550 MB; `make models`")
SHAPE = (2, 3, 64, 96)


def without_last(text: pb.NetParameter, first: str) -> pb.NetParameter:
    """The net before the layer ``first``."""
    net = copy.deepcopy(text)
    names = [layer.name for layer in net.layer]
    del net.layer[names.index(first) :]
    return net


def bn_inception() -> pb.NetParameter:
    """BN-Inception as its paper's table and its Caffe text state it."""
    net = NetBuilder("bn_inception")

    def conv(name: str, bottom: str, outputs: int, kernel: int, stride: int = 1) -> str:
        x = net.convolution(name, bottom, outputs, kernel, stride=stride, pad=kernel // 2)
        x = net.layer("BatchNorm", f"{name}/bn", x)
        x = net.in_place("Scale", f"{name}/bn/sc", x, scale_param={"bias_term": True})
        return net.relu(f"{name}_relu", x)

    x = net.pooling(
        "pool1/3x3_s2", conv("conv1/7x7_s2", net.input("data", *SHAPE), 64, 7, 2), "MAX", 3, stride=2
    )
    x = conv("conv2/3x3", conv("conv2/3x3_reduce", x, 64, 1), 192, 3)
    x = net.pooling("pool2/3x3_s2", x, "MAX", 3, stride=2)
    # 1x1; 3x3 with its reduction; double 3x3 with its reduction; projection of the pool.
    for name, plain, (reduced, three), (less, double), projected, pool in (
        ("3a", 64, (64, 64), (64, 96), 32, "AVE"), ("3b", 64, (64, 96), (64, 96), 64, "AVE"),
        ("3c", 0, (128, 160), (64, 96), 0, "MAX"), ("4a", 224, (64, 96), (96, 128), 128, "AVE"),
        ("4b", 192, (96, 128), (96, 128), 128, "AVE"), ("4c", 160, (128, 160), (128, 160), 128, "AVE"),
        ("4d", 96, (128, 192), (160, 192), 128, "AVE"), ("4e", 0, (128, 192), (192, 256), 0, "MAX"),
        ("5a", 352, (192, 320), (160, 224), 128, "AVE"), ("5b", 352, (192, 320), (192, 224), 128, "MAX"),
    ):  # fmt: skip
        stem, stride = f"inception_{name}", 1 if plain else 2
        tops = [conv(f"{stem}/1x1", x, plain, 1)] if plain else []
        tops.append(conv(f"{stem}/3x3", conv(f"{stem}/3x3_reduce", x, reduced, 1), three, 3, stride))
        y = conv(f"{stem}/double_3x3_1", conv(f"{stem}/double_3x3_reduce", x, less, 1), double, 3)
        tops.append(conv(f"{stem}/double_3x3_2", y, double, 3, stride))
        pooled = net.pooling(f"{stem}/pool", x, pool, 3, stride=stride, pad=1 if plain else None)
        tops.append(conv(f"{stem}/pool_proj", pooled, projected, 1) if projected else pooled)
        x = net.concat(f"{stem}/output", tops)
    net.inner_product("fc", net.pooling("global_pool", x, "AVE"), 5)
    return net.net


def written(text: pb.NetParameter, path) -> ir.CaffeNet:
    """Write a net with drawn weights, its statistics as sums of 2.5 batches."""
    net = drawn_net(text)
    for node in net.graph:
        if node.type == "BatchNorm":
            net.layer(node.name).blob("scale_factor").fill_(2.5)
    ir.save(net, path)
    return net


TRUNKS = {
    "MobileNet v1": (MobileNetV1, {}, mobilenet.deploy_v1, "pool6", (103.94, 116.78, 123.68), 0.017),
    "Inception v2": (InceptionV2, {"classes": 5}, bn_inception, "global_pool", (104, 117, 128), 1),
    "VGG-16, convolutions": (
        VGG16, {"dense": False}, lambda: without_last(vgg.deploy_16(), "fc6"), "pool5", (103.939, 116.779, 123.68), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "text", "blob", "mean", "scale"),
    [pytest.param(*case, id=name, marks=slow if "VGG" in name else ()) for name, case in TRUNKS.items()],
)
def test_features_equal_the_nets_blob(kind, options, text, blob, mean, scale, tmp_path) -> None:
    path = tmp_path / "trunk.caffemodel"
    text = text()
    for layer in text.layer:
        if layer.type == "Input":
            layer.input_param.shape[0].dim[:] = SHAPE
    net = written(text, path)
    x = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(4)) * 50
    backbone = kind(**options).eval()
    how, unused = load_caffe_trunk(backbone, path)
    assert (how.order, how.mean_value, how.scale, how.deviation) == ("BGR", mean, scale, ())
    assert set(unused) <= {"fc7", "fc"}
    with torch.inference_mode():
        wanted = net(x * scale, blobs=[blob])[blob]
        wanted = wanted.mean((2, 3)) if blob == "pool5" else wanted.flatten(1)
        found = backbone.features_of(x * scale)
    largest = float(wanted.abs().max())
    assert largest > 0.01
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * largest)


@slow
def test_vggs_dense_features_equal_the_nets_blob(tmp_path) -> None:
    path = tmp_path / "vgg.caffemodel"
    net = written(vgg.deploy_16(), path)
    backbone = VGG16(10).eval()
    with pytest.raises(WeightsError, match=r"blob 0 of layer 'fc8' is 1000x4096, the model needs 10x4096"):
        load_caffe_trunk(backbone, path)
    backbone.classifier[6] = torch.nn.Identity()
    load_caffe_trunk(backbone, path)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        wanted = net(x, blobs=["fc7"])["fc7"]
        found = backbone.features_of(x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("trunks") / "mobilenet.caffemodel"
    ir.save(drawn_net(mobilenet.deploy_v1()), path)
    return path


def test_a_model_states_the_preprocessing_of_its_trunk(mobilenet_file, tmp_path) -> None:
    """The features of a prepared image are those that the Caffe net computes from its own."""
    model = create("nima", backbone="mobilenet_v1")
    start_from_caffe(model, "backbone", mobilenet_file)
    how = model.about.preprocessing
    assert (how.path, how.size, how.resize) == ("crop", (224, 224), (256, 256))
    assert how.order == "BGR" and how.mean_value == (103.94, 116.78, 123.68) and how.scale == 0.017
    image = np.random.default_rng(2).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    centre = image[16:240, 16:240].astype(np.float64)
    wanted = ((centre - how.mean_value) * 0.017).transpose(2, 0, 1)
    np.testing.assert_allclose(model.prepare([image])[0], wanted, atol=1e-5)


REFUSED = {
    "MobileNet v2": (
        MobileNetV2, "the Caffe release of MobileNet v2 expands in conv2_1 and halves the plane at 96 channels, not at 64, "
        "so it does not fit; give the published state dict",
    ),
    "ResNet-18": (
        ResNet18, "the layer names of ResNet-18 in Caffe are not known here; give the published state dict",
    ),
    "another net": (VGG16, "has no layer 'conv1_1'; is it another network's file?"),
    "other names": (InceptionV2, "has no layer 'conv1/7x7_s2'; is it another network's file?"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), REFUSED.values(), ids=REFUSED)
def test_other_networks_are_refused_and_nothing_loaded(kind, message, mobilenet_file) -> None:
    options = {"dense": False} if kind is VGG16 else {}
    backbone = kind(5, **options)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_caffe_trunk(backbone, mobilenet_file)
    assert str(caught.value) == f"{mobilenet_file}: {message}"
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def changed(mobilenet_file, path, change):
    held = pb.NetParameter.FromString(mobilenet_file.read_bytes())
    change(held, {layer.name: copy.deepcopy(layer) for layer in held.layer})
    path.write_bytes(held.SerializeToString())


def add_layer(held, layers):
    held.layer.add(name="conv7", type="Convolution").blobs.extend(layers["fc7"].blobs)


def narrow(held, layers):
    blob = held.layer[[layer.name for layer in held.layer].index("conv1")].blobs[0]
    values = list(blob.data)[: 30 * 27]
    blob.shape.dim[0] = 30
    del blob.data[:]
    blob.data.extend(values)


def drop_scale(held, layers):
    held.layer.remove(next(layer for layer in held.layer if layer.name == "conv5_6/dw/scale"))


def test_a_forks_normalization_is_read_from_one_layer(mobilenet_file, tmp_path) -> None:
    """slope, bias, mean and variance, as the fork's BN stores them: `bn_inception` of the temporal segment networks."""

    def merge(held, layers):
        kept = [layer for layer in held.layer if layer.type not in ("BatchNorm", "Scale")]
        normalizations = [layer for layer in held.layer if layer.type == "BatchNorm"]
        del held.layer[:]
        held.layer.extend(kept)
        for layer in normalizations:
            one = held.layer.add(name=layer.name.replace("/bn", "_bn"), type="BN")
            one.blobs.extend([*layers[layer.name.replace("/bn", "/scale")].blobs, *layer.blobs[:2]])

    wanted, found = MobileNetV1(), MobileNetV1()
    load_caffe_trunk(wanted, mobilenet_file)
    changed(mobilenet_file, tmp_path / "one.caffemodel", merge)
    load_caffe_trunk(found, tmp_path / "one.caffemodel")
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


DAMAGED = {
    "a layer more": (add_layer, "layer 'conv7' is unknown to MobileNetV1; is it another network's file?"),
    "fewer channels": (
        narrow, "blob 0 of layer 'conv1' is 30x3x3x3, the model needs 32x3x3x3; is it another network's file?",
    ),
    "no scale": (
        drop_scale, "has no normalization after layer 'conv5_6/dw' (conv5_6/dw/bn and conv5_6/dw/scale); is it another "
        "network's file?",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_files_that_do_not_fit_are_refused(change, message, mobilenet_file, tmp_path) -> None:
    path = tmp_path / "damaged.caffemodel"
    changed(mobilenet_file, path, change)
    with pytest.raises(WeightsError) as caught:
        load_caffe_trunk(MobileNetV1(), path)
    assert str(caught.value) == f"{path}: {message}"


def test_images_of_two_trunks_are_prepared_once(mobilenet_file) -> None:
    with pytest.raises(WeightsError) as caught:
        start_from_caffe(create("tanet"), "mobilenet", mobilenet_file)
    assert str(caught.value) == (
        f"{mobilenet_file}: images prepared for it do not suit places of the same model; give the published state dict"
    )


@slow
def test_the_command_trains_on_a_caffe_trunk_and_tests_it(mobilenet_file, tmp_path) -> None:
    """The trunk's preprocessing is in the file, and `ilgnet test --model` and `ir.score` apply it."""
    write_scored_set("ava", tmp_path / "set", {"train": 4, "val": 2, "test": 3}, side=40, seed=4)
    given = ["--model", "nima", "--data", "ava", "--folder", str(tmp_path / "set")]
    given += ["--pictures", str(tmp_path / "set" / "images")]
    assert main([
        "train", *given, "--option", "backbone=mobilenet_v1", "--weights", f"backbone={mobilenet_file}", "--size", "32",
        "--resize", "36", "--epochs", "1", "--batch-size", "4", "--out", str(tmp_path / "run"),
    ]) == 0  # fmt: skip
    weights = tmp_path / "run" / "nima.safetensors"
    model = ir.load(weights)
    assert model.about.preprocessing.order == "BGR" and model.about.preprocessing.scale == 0.017
    assert main(["test", *given, "--weights", str(weights), "--out", str(tmp_path / "test")]) == 0
    rows = (tmp_path / "test" / "predictions.csv").read_text().splitlines()[1:]
    images = [next((tmp_path / "set" / "images").rglob(f"{row.split(',')[0]}*")) for row in rows]
    for scored, row in zip(ir.score(images, weights), rows, strict=True):
        assert scored.value == pytest.approx(float(row.split(",")[1]), abs=1e-5)


def test_other_files_of_a_part_are_refused(mobilenet_file, tmp_path) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(b"no weights at all")
    with pytest.raises(IlgnetError, match=r"not weights of a backbone \(\.safetensors, \.caffemodel\)"):
        _start_from(None, f"backbone={path}")
    with pytest.raises(IlgnetError, match=r"not weights of a model of scores \(\.safetensors\)"):
        _start_from(None, str(mobilenet_file))
