"""The whole ILGNet with the seeded weights that Caffe used: its blobs, scores and `caffe test`, and the fast path.

One file, because these weights take 604 MB and seconds to draw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import FOLDER
from zoo_counter import count

import ilgnet_repro.pycaffe as caffe
from ilgnet_repro.aesthetics import ilgnet
from ilgnet_repro.aesthetics.labelled_images import StoredImages
from ilgnet_repro.aesthetics.protocol_run import run_protocol, scorer
from ilgnet_repro.aesthetics.protocols import PROTOCOLS, Mean, Preparation
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import format_message
from ilgnet_repro.caffe_tool.batches import TestFeed
from ilgnet_repro.caffe_tool.test import caffe_test
from ilgnet_repro.engines.fast import FastNet
from ilgnet_repro.engines.fast import fast as fast_net
from ilgnet_repro.reading.lmdb_read import LmdbReader
from ilgnet_repro.reading.mean import read_mean
from ilgnet_repro.reading.transforms import Transform
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.zoo.seeded import seeded_blobs

GOLDEN = FOLDER.parent

# Largest difference allowed, relative to the largest value of a blob: float32 sums of up to 376,320
# terms, taken in another order than OpenBLAS takes them.
RELATIVE = 1e-4
HIGH = "loss1/loss"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "ilgnet" / "blobs.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def net() -> CaffeNet:
    text = ilgnet.deploy()
    graph = build_graph(text)
    shapes = {name: [spec.shape for spec in specs] for name, specs in plan_net(graph).blobs.items()}
    biases = {"loss1/classifier_cjy": np.loadtxt(GOLDEN / "ilgnet" / "classifier_bias.txt")}
    return CaffeNet(graph, dict(seeded_blobs(text, shapes, biases=biases)))


def sample(blob: np.ndarray) -> np.ndarray:
    flat = blob.reshape(-1)
    return flat if flat.size <= 4096 else flat[:: flat.size // 997]


@pytest.mark.parametrize("image", [0, 1])
def test_every_blob(net, recorded, image: int) -> None:
    names = [key.split("/", 2)[2] for key in recorded if key.startswith(f"sample/{image}/")]
    assert len(names) == 15
    with torch.inference_mode():
        blobs = net(data=torch.from_numpy(recorded[f"in/{image}"]).reshape(1, 3, 227, 227), blobs=names)
    for name in names:
        found = blobs[name].numpy()
        mean, std, largest = recorded[f"stats/{image}/{name}"]
        np.testing.assert_allclose(
            sample(found),
            recorded[f"sample/{image}/{name}"],
            rtol=RELATIVE,
            atol=RELATIVE * largest,
            err_msg=name,
        )
        np.testing.assert_allclose(
            [found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()],
            [mean, std, largest], rtol=RELATIVE, atol=RELATIVE * largest, err_msg=name,
        )  # fmt: skip


def test_the_authors_other_path(net, recorded) -> None:
    data = torch.from_numpy(recorded["transformer_in/0"]).reshape(1, 3, 227, 227)
    with torch.inference_mode():
        high = net(data=data)["loss1/loss"][0, 1].item()
    np.testing.assert_allclose(high, recorded["transformer_high_probability"][0], rtol=RELATIVE, atol=1e-5)


def test_the_steps_of_the_authors_script(net, recorded, golden, authors, tmp_path) -> None:
    """pycaffe's interface: deploy net and weights, Transformer, forward, `loss1/loss`, for the ten recorded images."""
    prototxt = tmp_path / "deploy.prototxt"
    prototxt.write_text(format_message(ilgnet.deploy()))
    authors_net = caffe.Net(str(prototxt), caffe.TEST)
    for (
        name,
        blobs,
    ) in net.params.items():  # as Net(prototxt, caffemodel, caffe.TEST), without a file of 604 MB
        for own, blob in zip(authors_net.params[name], blobs, strict=True):
            own.data[...] = blob.detach().numpy().reshape(own.data.shape)
    blob = caffe.proto.caffe_pb2.BlobProto.FromString(
        (authors / "mean" / "AVA2_mean.binaryproto").read_bytes()
    )
    mean = caffe.io.blobproto_to_array(blob)[0].mean(1).mean(1)

    transformer = caffe.io.Transformer({"data": authors_net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", mean)
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    authors_net.blobs["data"].reshape(1, 3, 227, 227)

    found = []
    rows = iter(LmdbReader(golden / "ilgnet" / "val_lmdb"))
    for _ in recorded["transformer_high_probability"]:
        image = tmp_path / "image.png"
        image.write_bytes(next(rows).datum().data)
        data = transformer.preprocess("data", caffe.io.load_image(str(image)))
        if not found:
            np.testing.assert_allclose(data, recorded["transformer_in/0"].reshape(data.shape), atol=2e-4)
        authors_net.blobs["data"].data[...] = data
        authors_net.forward()
        found.append(float(authors_net.blobs["loss1/loss"].data[0][1]))
    np.testing.assert_allclose(found, recorded["transformer_high_probability"], rtol=1e-4, atol=1e-4)


def test_hundred_recorded_scores(net, recorded, golden, authors) -> None:
    transform = Transform(crop_size=227, mean=read_mean(authors / "mean" / "AVA2_mean.binaryproto"))
    found = []
    images = [row.image()[0] for row in LmdbReader(golden / "ilgnet" / "val_lmdb")]
    with torch.inference_mode():
        for start in range(0, len(images), 20):
            data = torch.from_numpy(transform.batch(np.stack(images[start : start + 20])))
            found.append(net(data=data)["loss1/loss"][:, 1].numpy())
    np.testing.assert_allclose(np.concatenate(found), recorded["high_probability"], rtol=1e-4, atol=1e-4)


def test_seeded_weights_give_caffes_recorded_conv1(recorded) -> None:
    """conv1 with its ReLU, recomputed by plain sums at the recorded places of image 0."""
    net = ilgnet.deploy()
    name, (weight, bias) = next(seeded_blobs(net, count(net)[1]))
    assert name == "conv1/7x7_s2"
    padded = np.pad(recorded["in/0"].astype(np.float64), ((0, 0), (3, 3), (3, 3)))
    size = 64 * 114 * 114
    places = np.arange(0, size, size // 997)
    channels, rows, columns = np.unravel_index(places, (64, 114, 114))
    expected = [
        max(0.0, (padded[:, 2 * y : 2 * y + 7, 2 * x : 2 * x + 7] * weight[c]).sum() + bias[c])
        for c, y, x in zip(channels, rows, columns, strict=True)
    ]
    np.testing.assert_allclose(recorded["sample/0/conv1/7x7_s2"], expected, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------- `caffe test`


def recorded_lines(golden: Path) -> list[str]:
    recorded = (golden / "ilgnet" / "caffe_test.log").read_text()
    return [line.split("] ")[1] for line in recorded.splitlines() if "caffe.cpp:275" not in line]


def test_caffe_test_prints_the_recorded_lines(net, golden, authors, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = ilgnet.val(batch_size=12)
    text.layer[0].data_param.source = str(golden / "ilgnet" / "val_lmdb")
    text.layer[0].transform_param.mean_file = str(authors / "mean" / "AVA2_mean.binaryproto")
    graph = build_graph(text)
    feed = TestFeed(graph)
    lines = []
    weights = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    tested = CaffeNet(graph, weights, input_shapes=feed.shapes())
    caffe_test(tested, feed, 10, lambda place, message: lines.append(message))
    expected = recorded_lines(golden)
    # Every accuracy to the last digit; the loss, a float32 sum of millions of terms, to 1e-4 of itself.
    assert [line for line in lines if "Loss" not in line] == [line for line in expected if "Loss" not in line]
    losses = [float(line.split()[1]) for line in (*lines, *expected) if "Loss" in line]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_published_protocol_counts_as_caffe_did(net, golden, authors) -> None:
    mean = Mean(read_mean(authors / "mean" / "AVA2_mean.binaryproto"))
    images = StoredImages(golden / "ilgnet" / "val_lmdb")
    preparation = Preparation(PROTOCOLS["published"], 227, mean)
    found = run_protocol(scorer(net), images, preparation, 12, batches=3)
    accuracies = [f"Batch {b.index}, loss1/top-1 = {b.correct / b.size:g}" for b in found.batches]
    assert accuracies == recorded_lines(golden)[1:4]


# ---------------------------------------------------------------------- the fast path


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16", "int8"])
def precision(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def fast(net: CaffeNet, precision: str) -> FastNet:
    return fast_net(net, precision, engine="torch")


def test_probabilities(fast, precision: str, recorded) -> None:
    most = {"float32": 1e-5, "float16": 1e-5, "bfloat16": 0.005, "int8": 0.005}[precision]
    images = [recorded[f"in/{number}"].reshape(1, 3, 227, 227) for number in (0, 1)]
    expected = [recorded[f"sample/{number}/{HIGH}"] for number in (0, 1)]
    for image, probabilities in zip(images, expected, strict=True):
        found = fast(data=torch.from_numpy(image))[HIGH][0]
        np.testing.assert_allclose(found, probabilities, rtol=0, atol=most)
    # Three of one image, one of the other: a batch gives the results of single images.
    batch = fast(data=torch.from_numpy(np.concatenate([images[0]] * 3 + [images[1]])))[HIGH]
    np.testing.assert_allclose(batch, np.stack([expected[0]] * 3 + [expected[1]]), rtol=0, atol=most)


@pytest.mark.parametrize("precision", ["float32", "float16"], indirect=True, scope="module")
def test_all_hundred_recorded_probabilities(fast, precision: str, recorded, golden, authors) -> None:
    most = {"float32": 2e-4, "float16": 0.005}[precision]
    transform = Transform(crop_size=227, mean=read_mean(authors / "mean" / "AVA2_mean.binaryproto"))
    images = [row.image()[0] for row in LmdbReader(golden / "ilgnet" / "val_lmdb")]
    expected = recorded["high_probability"]
    for start in (*range(0, 96, 16), 96):
        batch = torch.from_numpy(transform.batch(np.stack(images[start : start + 16])))
        found = fast(data=batch)[HIGH][:, 1]
        np.testing.assert_allclose(found, expected[start : start + 16], rtol=0, atol=most)
