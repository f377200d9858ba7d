"""`debug_info`: Caffe's lines for every blob and gradient, Split layers included, against numbers worked out by hand."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro.cli.main import main

# `h` is read twice after its ReLU in place, `w` and `b` belong to two layers, and `ip3` is half frozen.
NET = """
name: "debugged"
layer { name: "d" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 4 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "x" top: "h" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } bias_filler { value: 0.3 } } }
layer { name: "relu" type: "ReLU" bottom: "h" top: "h" }
layer { name: "ip2" type: "InnerProduct" bottom: "h" top: "g" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 3 } }
layer { name: "sum" type: "Eltwise" bottom: "h" bottom: "g" top: "s" }
layer { name: "ip3" type: "InnerProduct" bottom: "s" top: "o" param { lr_mult: 0 } param { lr_mult: 2 }
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "o" bottom: "y" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 random_seed: 2 display: 2 debug_info: true '
RNG = np.random.default_rng(8)
X, Y = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(4, 4)).astype(np.float32)


def expected_lines(weights: dict[str, list[np.ndarray]], x: np.ndarray, y: np.ndarray, before: tuple) -> list:
    """The lines of one pass as (text, value), and the gradients of w, b and the bias of ip3 with those ``before``."""
    (w, b), (v, c) = weights["ip1"], weights["ip3"]
    raw = x @ w.T + b
    h = np.maximum(raw, 0)
    g = h @ w.T + b
    s = h + g
    o = s @ v.T + c
    loss = ((o - y) ** 2).sum() / 2 / len(x)
    forward = [("d, top blob x", x), ("d, top blob y", y)]
    forward += [
        ("ip1, top blob h", raw),
        ("ip1, param blob w", w),
        ("ip1, param blob b", b),
        ("relu, top blob h", h),
    ]
    forward += [(f"h_relu_0_split, top blob h_relu_0_split_{k}", h) for k in (0, 1)]
    forward += [
        ("ip2, top blob g", g),
        ("ip2, param blob w", w),
        ("ip2, param blob b", b),
        ("sum, top blob s", s),
    ]
    forward += [("ip3, top blob o", o), ("ip3, param blob 0", v), ("ip3, param blob 1", c)]
    forward += [("loss, top blob (automatic)", loss)]
    dw, db, dc = before
    do = (o - y) / len(x)
    ds, dc = do @ v, dc + do.sum(0)
    dh2, dw2, db2 = ds @ w, dw + ds.T @ h, db + ds.sum(0)
    dh = ds + dh2
    draw = dh * (raw > 0)
    dw1, db1 = dw2 + draw.T @ x, db2 + draw.sum(0)
    backward = [("loss, bottom blob o", do), ("ip3, bottom blob s", ds), ("ip3, param blob 1", dc)]
    backward += [("sum, bottom blob h_relu_0_split_1", ds), ("sum, bottom blob g", ds)]
    backward += [
        ("ip2, bottom blob h_relu_0_split_0", dh2),
        ("ip2, param blob 0", dw2),
        ("ip2, param blob 1", db2),
    ]
    backward += [("h_relu_0_split, bottom blob h", dh), ("relu, bottom blob h", draw)]
    backward += [("ip1, param blob 0", dw1), ("ip1, param blob 1", db1)]
    lines = [(f"    [Forward] Layer {name} data", np.abs(value).mean()) for name, value in forward]
    lines += [(f"    [Backward] Layer {name} diff", np.abs(value).mean()) for name, value in backward]
    return [lines, (dw1, db1, dc)]


def norms(weights: dict[str, list[np.ndarray]], grads: tuple) -> list[float]:
    data = np.concatenate([blob.ravel() for name in ("ip1", "ip3") for blob in weights[name]])
    diff = np.concatenate([grad.ravel() for grad in grads])
    return [np.abs(data).sum(), np.abs(diff).sum(), np.sqrt((data**2).sum()), np.sqrt((diff**2).sum())]


def doubles(net: ir.CaffeNet) -> dict[str, list[np.ndarray]]:
    return {
        name: [blob.detach().double().numpy().copy() for blob in blobs] for name, blobs in net.params.items()
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


def debug_lines(text: str) -> list[str]:
    """The lines of `debug_info`, with glog's level and place, without its time."""
    found = [
        re.fullmatch(r"([IE])\d{4} \S+ +\d+ (net\.cpp:\d+)\](     ?\[.*)", line) for line in text.splitlines()
    ]
    return [f"{line[1]} {line[2]}]{line[3]}" for line in found if line]


PLACES = {"top": "599", "data param": "611", "bottom": "627", "diff param": "638"}


@pytest.mark.parametrize("iter_size", [1, 2])
def test_lines_of_a_pass(here, iter_size):
    Path("solver.prototxt").write_text(f"{SOLVER} iter_size: {iter_size}")
    log = io.StringIO()
    solver = ir.Solver("solver.prototxt", arrays={"x": X, "y": Y}, log=log)
    for iteration in range(3):
        weights = doubles(solver.net)
        log.seek(0)
        log.truncate()
        solver.step(1)
        lines = debug_lines(log.getvalue())
        if iteration % 2:  # only where the iteration is displayed
            assert lines == []
            continue
        grads: tuple = (np.zeros((3, 3)), np.zeros(3), np.zeros(4))
        for number in range(iter_size):
            start = (iteration * iter_size + number) * 2 % 4
            rows = slice(start, start + 2)
            expected, grads = expected_lines(weights, X[rows].astype(float), Y[rows].astype(float), grads)
            for line, (text, value) in zip(lines[: len(expected)], expected, strict=True):
                kind = (
                    "top"
                    if ", top" in text
                    else "bottom"
                    if ", bottom" in text
                    else f"{text[-4:].strip()} param"
                )
                head, printed = line.rsplit(": ", 1)
                assert head == f"I net.cpp:{PLACES[kind]}] {text}"
                assert float(printed) == pytest.approx(value, rel=1e-5)
            last = lines[len(expected)]
            numbers = r"(\S+), (\S+)\); L2 norm = \((\S+), (\S+)\)"
            matched = re.fullmatch(
                r"E net\.cpp:727\]     \[Backward\] All net params \(data, diff\): L1 norm = \(" + numbers,
                last,
            )
            assert [float(each) for each in matched.groups()] == pytest.approx(
                norms(weights, grads), rel=1e-5
            )
            lines = lines[len(expected) + 1 :]
        assert lines == []


def test_the_run_itself_is_the_same(here):
    losses = []
    for debugs in ("true", "false"):
        Path("solver.prototxt").write_text(SOLVER.replace("debug_info: true", f"debug_info: {debugs}"))
        solver = ir.Solver("solver.prototxt", arrays={"x": X, "y": Y}, log=io.StringIO())
        losses.append([solver.step() for _ in range(3)])
    assert losses[0] == losses[1]


def test_statistics_need_a_backward_pass_in_caffe(here):
    """`Net::Init` takes a rate of 1 where BatchNorm's text states none, so gradients are computed down to it."""
    text = (
        NET[: NET.index('layer { name: "ip1"')]
        + """
    layer { name: "bn" type: "BatchNorm" bottom: "x" top: "n" }
    layer { name: "ip" type: "InnerProduct" bottom: "n" top: "o" param { lr_mult: 0 } param { lr_mult: 0 }
      inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "o" bottom: "y" top: "loss" }
    layer { name: "quiet" type: "Silence" bottom: "n" }"""
    )
    Path("net.prototxt").write_text(text)
    Path("solver.prototxt").write_text(SOLVER)
    log = io.StringIO()
    solver = ir.Solver("solver.prototxt", arrays={"x": X, "y": Y}, log=log)
    weight = doubles(solver.net)["ip"][0]
    solver.step()
    lines = [line.split("] ", 1)[1] for line in debug_lines(log.getvalue()) if "[Backward]" in line]
    heads = [line.rsplit(": ", 1)[0] for line in lines]
    assert heads[:-1] == [
        "    [Backward] Layer loss, bottom blob o diff",
        "    [Backward] Layer ip, bottom blob n_bn_0_split_0 diff",
        "    [Backward] Layer n_bn_0_split, bottom blob n diff",
        *(f"    [Backward] Layer bn, param blob {index} diff" for index in range(3)),
    ]
    x = X[:2].astype(float)
    normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    gradient = (normalized @ weight.T - Y[:2]) / 2 @ weight
    for line in lines[1:3]:
        assert float(line.rsplit(": ", 1)[1]) == pytest.approx(np.abs(gradient).mean(), rel=1e-4)
    assert [line.rsplit(": ", 1)[1] for line in lines[3:6]] == ["0", "0", "0"]


@pytest.mark.parametrize("stated", ["debug_info: true", ""])
def test_caffe_time_shows_its_first_pass(here, capsys, stated):
    """As Caffe, whose timed passes call the layers themselves."""
    text = NET.replace('type: "Input"', 'type: "DummyData"').replace("input_param", "dummy_data_param")
    Path("net.prototxt").write_text(text + stated)
    assert main(["caffe", "time", "-model", "net.prototxt", "-iterations", "2"]) == 0
    found = debug_lines(capsys.readouterr().err)
    counts = [
        sum(mark in line for line in found) for mark in ("[Forward]", "[Backward] Layer", "All net params")
    ]
    assert counts == ([16, 12, 1] if stated else [0, 0, 0])


def test_tests_and_caffe_test_show_the_forward_pass(here, capsys):
    """Test nets by the solver's debug_info, every batch; `caffe test` by that of the net."""
    Path("solver.prototxt").write_text(SOLVER + "test_iter: 2 test_interval: 9")
    log = io.StringIO()
    fed = {"x": X, "y": Y}
    solver = ir.Solver("solver.prototxt", arrays=fed, test_arrays=fed, log=log)
    solver.test()
    lines = debug_lines(log.getvalue())
    assert len(lines) == 2 * 16 and all("[Forward]" in line for line in lines)
    weights = doubles(solver.net)
    ir.save(solver.net, "w.caffemodel")
    np.savez("rows.npz", **fed)
    for stated in ("debug_info: true", ""):
        Path("net.prototxt").write_text(NET + stated)
        flags = [
            "-model",
            "net.prototxt",
            "-weights",
            "w.caffemodel",
            "-iterations",
            "1",
            "-arrays",
            "rows.npz",
        ]
        assert main(["caffe", "test", *flags]) == 0
        found = [line for line in debug_lines(capsys.readouterr().err) if "[" in line]
        expected, _ = expected_lines(
            weights, X[:2].astype(float), Y[:2].astype(float), (np.zeros((3, 3)), np.zeros(3), np.zeros(4))
        )
        assert len(found) == (16 if stated else 0)
        for line, (text, value) in zip(found, expected, strict=False):
            assert text in line and float(line.rsplit(": ", 1)[1]) == pytest.approx(value, rel=1e-5)
