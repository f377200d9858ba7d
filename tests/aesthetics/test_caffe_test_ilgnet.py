"""`caffe test` of ILGNet, and the published protocol, against the batches that Caffe recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from places import GOLDEN

from ilgnet_repro.aesthetics import ilgnet
from ilgnet_repro.aesthetics.author_logs import read_test_log
from ilgnet_repro.aesthetics.labelled_images import StoredImages
from ilgnet_repro.aesthetics.protocol_run import run_protocol, scorer
from ilgnet_repro.aesthetics.protocols import PROTOCOLS, Mean, Preparation
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe_tool.batches import TestFeed
from ilgnet_repro.caffe_tool.test import caffe_test
from ilgnet_repro.cli.main import main
from ilgnet_repro.reading.mean import read_mean
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.runtime.plan import plan_net
from ilgnet_repro.zoo.seeded import seeded_blobs


@pytest.fixture(scope="module")
def seeded() -> dict[str, list[np.ndarray]]:
    """The weights that ILGNet's golden files were recorded with."""
    text = ilgnet.deploy()
    shapes = {n: [s.shape for s in specs] for n, specs in plan_net(build_graph(text)).blobs.items()}
    biases = {"loss1/classifier_cjy": np.loadtxt(GOLDEN / "ilgnet" / "classifier_bias.txt")}
    return dict(seeded_blobs(text, shapes, biases=biases))


def recorded_lines(golden: Path) -> list[str]:
    recorded = (golden / "ilgnet" / "caffe_test.log").read_text()
    return [line.split("] ")[1] for line in recorded.splitlines() if "caffe.cpp:275" not in line]


def test_ilgnet_recorded(golden, authors, seeded, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = ilgnet.val(batch_size=12)
    text.layer[0].data_param.source = str(golden / "ilgnet" / "val_lmdb")
    text.layer[0].transform_param.mean_file = str(authors / "mean" / "AVA2_mean.binaryproto")
    graph = build_graph(text)
    feed = TestFeed(graph)
    lines = []
    net = CaffeNet(graph, seeded, input_shapes=feed.shapes())
    caffe_test(net, feed, 10, lambda place, message: lines.append(message))
    expected = recorded_lines(golden)
    # Every accuracy to the last digit; the loss, a float32 sum of millions of terms, to 1e-4 of itself.
    assert [line for line in lines if "Loss" not in line] == [line for line in expected if "Loss" not in line]
    losses = [float(line.split()[1]) for line in (*lines, *expected) if "Loss" in line]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_published_protocol_counts_as_caffe_did(golden, authors, seeded) -> None:
    mean = Mean(read_mean(authors / "mean" / "AVA2_mean.binaryproto"))
    images = StoredImages(golden / "ilgnet" / "val_lmdb")
    preparation = Preparation(PROTOCOLS["published"], 227, mean)
    net = CaffeNet(build_graph(ilgnet.deploy()), seeded)
    found = run_protocol(scorer(net), images, preparation, 12, batches=3)
    accuracies = [f"Batch {b.index}, loss1/top-1 = {b.correct / b.size:g}" for b in found.batches]
    assert accuracies == recorded_lines(golden)[1:4]


def test_the_log_that_is_printed_reads_as_caffes_own(golden, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(golden / "pipeline")
    flags = ["-model", "tiny.prototxt", "-weights", "tiny_init.caffemodel", "-iterations", "7"]
    assert main(["caffe", "test", *flags]) == 0
    (tmp_path / "written.log").write_text(capsys.readouterr().err)
    recorded, found = read_test_log("test_tiny.log"), read_test_log(tmp_path / "written.log")
    assert (found.complete, found.batch_size, found.source) == (True, recorded.batch_size, recorded.source)
    assert list(found.batches) == list(recorded.batches)
