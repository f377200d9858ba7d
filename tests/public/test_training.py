"""Training from Python with public names: a solver, batches for one's own loop, parameters with Caffe's multipliers."""

from __future__ import annotations

import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import ilgnet_repro as ir

NET = """name: "tiny"
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.01 mean_value: 100 }
  image_data_param { source: "list.txt" batch_size: 4 new_height: 6 new_width: 5 } }
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.01 mean_value: 100 }
  image_data_param { source: "list.txt" batch_size: 3 new_height: 6 new_width: 5 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "ip" param { lr_mult: 10 } param { lr_mult: 20 decay_mult: 0 }
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "frozen" type: "Scale" bottom: "ip" top: "frozen" param { lr_mult: 0 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "frozen" bottom: "label" top: "loss" }"""
SOLVER = """net: "net.prototxt" test_iter: 2 test_interval: 5 base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 max_iter: 10
snapshot: 5 snapshot_prefix: "run" random_seed: 7 solver_mode: CPU display: 5"""
SHAPES = {"data": (4, 3, 6, 5), "label": (4,)}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine images of noise in the working folder, with a net and a solver."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    for index in range(9):
        cv2.imwrite(f"{index}.png", rng.integers(0, 256, (6, 5, 3), np.uint8))
    Path("list.txt").write_text("".join(f"{index}.png {index % 2}\n" for index in range(9)))
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)


def load(prototxt="net.prototxt", **options) -> ir.CaffeNet:
    return ir.load_net(prototxt, phase="TRAIN", input_shapes=SHAPES, seed=2, **options)


def test_solve_and_resume() -> None:
    log = io.StringIO()
    run = ir.solve("solver.prototxt", log=log)
    assert isinstance(run, ir.Solved)
    assert (run.iterations, run.stopped, [list(test) for test in run.tests]) == (10, "", [["loss"]] * 3)
    assert run.snapshot == Path("run_iter_10.solverstate")
    assert "Iteration 5, lr = 0.01" in log.getvalue()
    for state in Path().glob("run_iter_10.*"):
        state.unlink()
    again = ir.solve("solver.prototxt", resume="latest")  # from iteration 5
    assert again.iterations == 10
    for blobs, others in zip(run.net.params.values(), again.net.params.values(), strict=True):
        for blob, other in zip(blobs, others, strict=True):
            torch.testing.assert_close(blob, other, rtol=0, atol=0)


def test_solve_from_weights_and_from_a_state() -> None:
    first = ir.solve("solver.prototxt", max_iter=5)
    assert first.iterations == 5
    tuned = ir.solve("solver.prototxt", weights="run_iter_5.caffemodel", max_iter=0)
    assert torch.equal(tuned.net.params["ip"][0], first.net.params["ip"][0])
    assert ir.solve("solver.prototxt", resume="run_iter_5.solverstate", max_iter=6).iterations == 6
    assert ir.solve("solver.prototxt", resume="latest", max_iter=5).loss is None


REFUSED = {
    "no solver": (lambda: ir.solve("none.prototxt"), "none.prototxt", "cannot be read"),
    "a net as a solver": (lambda: ir.solve("net.prototxt"), "", ""),
    "no state": (lambda: ir.solve("solver.prototxt", resume="none.solverstate"), "none.solverstate", ""),
    "iterations": (lambda: ir.solve("solver.prototxt", max_iter=-1), "", "max_iter=-1"),
    "passes": (lambda: ir.solve("solver.prototxt", accumulate=3), "data (ImageData)", "batch_size 4"),
    "a net that is fed": (
        lambda: ir.batches(ir.load_net("fed.prototxt")), "x (Input)", "nothing feeds it while training",
    ),
    "a negative start": (lambda: ir.batches(load(), start=-1), "", "start=-1"),
    "no source": (
        lambda: ir.batches(load("absent.prototxt"), root="elsewhere"), "elsewhere/absent.txt", "",
    ),
    "what is no net": (lambda: ir.batches("net.prototxt"), "", "a str is not a net"),
    "a fast net": (
        lambda: ir.batches(ir.fast(ir.load_net("fed.prototxt"))), "fed", "so it cannot be fed by data layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name: str) -> None:
    call, where, what = REFUSED[name]
    Path("fed.prototxt").write_text(
        'name: "fed" layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } } '
        'layer { name: "y" type: "ReLU" bottom: "x" top: "y" }'
    )
    Path("absent.prototxt").write_text(NET.replace("list.txt", "absent.txt"))
    before = sorted(Path().iterdir())
    with pytest.raises(ir.IlgnetError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(where)
    assert what in str(caught.value)
    assert sorted(Path().iterdir()) == before


def test_batches_in_the_order_of_the_list() -> None:
    net = load()
    read = ir.batches(net)
    first, second, third = next(read), next(read), next(read)
    assert [batch["label"].tolist() for batch in (first, second, third)] == [
        [0, 1, 0, 1],
        [0, 1, 0, 1],
        [0, 0, 1, 0],
    ]
    image = cv2.imread("2.png").astype(np.float32)
    np.testing.assert_allclose(first["data"][2], ((image - 100) * 0.01).transpose(2, 0, 1), rtol=1e-6)
    assert torch.equal(next(ir.batches(net, start=2))["data"], third["data"])
    shuffled = NET.replace('"list.txt" batch_size: 4', '"list.txt" shuffle: true batch_size: 4')
    Path("net.prototxt").write_text(shuffled)
    drawn = [next(ir.batches(load(), seed=seed))["data"] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_loop_of_ones_own() -> None:
    """SGD of torch with Caffe's multipliers makes the steps of Caffe's solver."""
    ir.save(load(), "start.caffemodel")
    run = ir.solve("solver.prototxt", weights="start.caffemodel", max_iter=3)
    net = load()
    optimizer = torch.optim.SGD(net.param_groups(lr=0.01, weight_decay=0), lr=0.01, momentum=0.9)
    for number, batch in enumerate(ir.batches(net, seed=1)):
        if number == 3:
            break
        optimizer.zero_grad()
        net.loss(batch).backward()
        optimizer.step()
    for name, blobs in run.net.params.items():
        for blob, own in zip(blobs, net.params[name], strict=True):
            torch.testing.assert_close(own, blob, rtol=1e-4, atol=1e-6)


def test_the_lines_of_the_readme() -> None:
    """Run as they are, but for the loop, which ends."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(ir\.solve\(.*?)```", readme, re.DOTALL)
    text = NET.replace(
        "transform_param {", "transform_param { crop_size: 5 "
    )  # which states the size of the data
    Path("net.prototxt").write_text(text)
    Path("train_val.prototxt").write_text(text)
    ir.save(ir.load_net("net.prototxt", phase="TRAIN", seed=2), "saved.caffemodel")
    Path("saved.caffemodel").rename("net.caffemodel")
    names = {"ir": ir, "torch": torch}
    exec(compile(lines + "    break\n", "README.md", "exec"), names)
    assert names["optimizer"].param_groups[1]["lr"] == 0.02
    assert names["net"].params["ip"][0].grad.abs().sum() > 0


def test_param_groups() -> None:
    net = load()
    (conv, conv_bias), (ip, ip_bias), (scale,) = (net.params[name] for name in ("conv", "ip", "frozen"))
    expected = [
        ([conv], 1, 1, 0.5, 0.25), ([conv_bias], 2, 0, 1.0, 0), ([ip], 10, 1, 5.0, 0.25), ([ip_bias], 20, 0, 10.0, 0),
        ([scale], 0, 1, 0, 0.25),
    ]  # fmt: skip
    groups = net.param_groups(lr=0.5, weight_decay=0.25)
    for group, (params, lr_mult, decay_mult, lr, decay) in zip(groups, expected, strict=True):
        assert len(group["params"]) == len(params)
        assert all(one is two for one, two in zip(group["params"], params, strict=True))
        assert [group[key] for key in ("lr_mult", "decay_mult", "lr", "weight_decay")] == [
            lr_mult,
            decay_mult,
            lr,
            decay,
        ]
    assert net.param_groups()[1].keys() == {"params", "lr_mult", "decay_mult"}


def test_param_groups_of_shared_and_of_replaced_layers() -> None:
    layer = """layer { name: "%s" type: "InnerProduct" bottom: "%s" top: "%s" param { name: "w" %s }
      inner_product_param { num_output: 3 bias_term: false } }"""
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
    text += layer % ("a", "x", "a", "") + layer % ("b", "a", "b", "lr_mult: 3")
    text += layer.replace('name: "w"', "") % ("c", "b", "c", "")
    Path("shared.prototxt").write_text(text)
    net = ir.load_net("shared.prototxt", seed=1)
    net.layers.c = torch.nn.Linear(3, 4)
    found = {(group["lr_mult"], group["decay_mult"]): len(group["params"]) for group in net.param_groups()}
    assert found == {(3, 1): 1, (1, 1): 2}
