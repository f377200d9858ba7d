"""Training that draws random numbers (masks, slopes, noise, crops, mirrors) resumes to the same weights."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.schema import caffe_pb2 as pb
from ilgnet_repro.train.loop import Options, Trainer
from ilgnet_repro.train.solver import make_settings

NET = """
layer {{ name: "data" type: "ImageData" top: "data" top: "label" transform_param {{ crop_size: 7 mirror: true scale: 0.01 }}
  image_data_param {{ source: "{folder}/list.txt" root_folder: "{folder}/" batch_size: 3 shuffle: true }} }}
layer {{ name: "noise" type: "DummyData" top: "noise" dummy_data_param {{ shape {{ dim: 3 dim: 3 dim: 7 dim: 7 }}
  data_filler {{ type: "gaussian" std: 0.1 }} }} }}
layer {{ name: "sum" type: "Eltwise" bottom: "data" bottom: "noise" top: "sum" }}
layer {{ name: "conv" type: "Convolution" bottom: "sum" top: "conv"
  convolution_param {{ num_output: 5 kernel_size: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "drawn" bottom: "conv" top: "drawn" {layer} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "drawn" top: "fc"
  inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }}
"""

LAYERS = {
    "no-draw": 'type: "ReLU"',
    "Dropout": 'type: "Dropout" dropout_param { dropout_ratio: 0.4 }',
    "Dropout-in-tests": 'type: "Dropout" dropout_param { sample_weights_test: true }',
    "SpatialDropout": 'type: "SpatialDropout"',
    "Insanity": 'type: "Insanity"',
    "StochasticPooling": 'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 }',
    "BatchNorm": 'type: "BatchNorm"',
}


def solver(layer, folder):
    rng = np.random.default_rng(0)
    for number in range(11):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (9, 10, 3), np.uint8))
    (folder / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(11)))
    net = upgrade_net(parse_net(NET.format(folder=folder, layer=layer)), [])
    return make_settings(
        pb.SolverParameter(
            base_lr=0.01, lr_policy="fixed", momentum=0.9, max_iter=7, snapshot=3, random_seed=5,
            snapshot_prefix=str(folder / "run"), net_param=net,
        )
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2], ids=["in-turn", "read-ahead"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_resumed_run_ends_at_the_same_bytes(name, workers, tmp_path):
    settings = solver(LAYERS[name], tmp_path)
    Trainer(settings, Options(workers=workers)).solve()
    whole = (tmp_path / "run_iter_7.caffemodel").read_bytes()
    for start in (3, 6):
        (tmp_path / "run_iter_7.caffemodel").unlink()
        trainer = Trainer(settings, Options(workers=workers))
        trainer.restore(tmp_path / f"run_iter_{start}.solverstate")
        trainer.solve()
        assert (tmp_path / "run_iter_7.caffemodel").read_bytes() == whole, start
    assert whole != (tmp_path / "run_iter_6.caffemodel").read_bytes()
