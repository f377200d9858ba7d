"""Where a saved net's weights come from: a release only while unchanged; by its layers a model is only assumed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_nets import SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro import known
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError
from ilgnet_repro.known import KnownModel, ScoreAt
from ilgnet_repro.reading.preprocessing import Preprocessing
from ilgnet_repro.runtime.net import CaffeNet

HOW = Preprocessing((9, 7), mean_value=(10.0, 20.0, 30.0))


@pytest.fixture
def released(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small net's caffemodel, which the manifest knows by its digest."""
    path = folder / "small.caffemodel"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = KnownModel(
        "small-weights", "the small net", ("small.caffemodel",), size=path.stat().st_size,
        digests=(f"sha256:{digest}",), preprocessing=HOW, labels=("a", "b", "c", "d", "e"), classes=5,
        score=ScoreAt("prob", 1, "b"),
    )  # fmt: skip
    models = (model, *known.known_models())
    monkeypatch.setattr(known, "known_models", lambda: models)
    return path


def nothing(net: CaffeNet) -> None:
    pass


def step(net: CaffeNet) -> None:
    with torch.no_grad():
        net.params["ip"][1].add_(0.5)


def data_edit(net: CaffeNet) -> None:
    net.params["conv"][0].data[0, 0, 0, 0] += 1  # does not raise the version counter


def new_parameter(net: CaffeNet) -> None:
    layer = net.layer("ip")
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)


def equal_parameter(net: CaffeNet) -> None:
    layer = net.layer("ip")
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


def there_and_back(net: CaffeNet) -> None:
    net.double().float()


CHANGES: dict[str, tuple[Callable[[CaffeNet], object], bool]] = {
    "nothing": (nothing, True),
    "a parameter of the same values": (equal_parameter, True),
    "double and back": (there_and_back, True),
    "a step": (step, False),
    "an edit of .data": (data_edit, False),
    "a new parameter": (new_parameter, False),
    "half": (lambda net: net.half(), False),
}


@pytest.mark.parametrize("through", ["caffemodel", "safetensors"])
@pytest.mark.parametrize("case", CHANGES)
def test_weights_count_as_a_release_only_until_changed(
    released: Path, tmp_path: Path, case: str, through: str
) -> None:
    change, is_kept = CHANGES[case]
    net = ir.load(released)
    assert (net.about.source.release, net.about.assumed, net.about.score.meaning) == (
        "small-weights",
        False,
        "b",
    )
    if through == "safetensors":
        net = ir.load(ir.save(net, tmp_path / "first.safetensors")[0])
    change(net)
    path = ir.save(net, tmp_path / "x.safetensors")[0]
    about = ir.load(path).about
    assert about.model == "small-weights" and about.source.file == "small.caffemodel"
    if is_kept:
        assert (about.source.release, about.source.derived, about.assumed) == ("small-weights", "", False)
        return
    assert (about.source.release, about.source.sha256) == (None, None)
    assert (about.source.derived, about.assumed) == ("changed", True)
    assert about.notes == (
        "the weights are those of small.caffemodel, changed since",
        "preprocessing is assumed from the net's layers (the small net: "
        f"{HOW.describe()}); if these weights were trained otherwise, state the preprocessing",
    )


def replaced(path: Path) -> None:
    write_weights(path, seed=6)


@pytest.mark.parametrize("change", [os.remove, replaced])
def test_a_missing_or_replaced_file_proves_nothing(
    released: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    net = ir.load(released)
    text = tmp_path / "other.caffemodel"
    text.write_bytes(released.read_bytes())
    os.replace(text, released)  # the same bytes under the same name, but not the file that is mapped
    change(released)
    source = ir.load(ir.save(net, tmp_path / "x.safetensors")[0]).about.source
    assert (source.release, source.sha256, source.derived) == (None, None, "changed")


DERIVED = {
    "folded": ({"fold": True}, "folded"),
    "int8": ({"precision": "int8"}, "int8"),
    "both": ({"fold": True, "precision": "float16"}, "folded, float16"),
}


@pytest.mark.parametrize("case", DERIVED)
def test_derived_weights_state_how_they_were_derived(released: Path, tmp_path: Path, case: str) -> None:
    options, derived = DERIVED[case]
    saved = ir.save(ir.load(released), tmp_path / "x.safetensors", **options)[0]
    report = ir.convert(released, out=tmp_path / "o", **options)
    assert report.source.derived == ""  # the input's
    for path in (saved, tmp_path / "o" / "small.safetensors"):
        net = ir.load(path)
        assert (net.about.source.release, net.about.source.derived) == ("small-weights", derived)
    again = ir.save(ir.load(saved), tmp_path / "y.safetensors", **options)[0]
    assert ir.load(again).about.source.derived == derived


def test_a_net_with_a_releases_layers_is_only_assumed_to_be_that_release(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("ilgnet_repro.about.assumed", lambda text: known.known_models()[0])
    write_weights(released, seed=6)  # fine-tuned: the same layers, another digest
    cv2.imwrite(str(tmp_path / "a.png"), np.full((9, 7, 3), 40, np.uint8))
    note = (
        f"preprocessing is assumed from the net's layers (the small net: {HOW.describe()}); if these weights were "
        "trained otherwise, state the preprocessing"
    )
    files = [released]
    for suffix in (".safetensors", ".onnx"):
        files.append(ir.save(ir.load(released), tmp_path / f"tuned{suffix}")[0])
    files.append(ir.save(ir.load(files[1]), tmp_path / "again.safetensors")[0])
    for path in files:
        about = ir.load(path).about
        assert (about.source.release, about.model, about.assumed) == (None, "small-weights", True)
        assert note in about.notes
        assert main(["score", str(tmp_path / "a.png"), "--weights", str(path)]) == 0
        assert note in " ".join(capsys.readouterr().err.split())


# ------------------------------------------------------------------------- modules and texts


def test_a_net_as_a_module_from_tensor_to_tensor(folder: Path) -> None:
    net = ir.load(folder / "small.caffemodel")
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    module = net.as_tensor("ip")
    assert torch.equal(module(x), net(data=x, blobs=["ip"])["ip"])
    assert torch.equal(net.as_tensor()(x), net(data=x)["prob"])
    assert list(module.state_dict()) == [f"net.{name}" for name in net.state_dict()]
    assert next(module.parameters()) is next(net.parameters())
    with torch.no_grad():
        traced = torch.jit.trace(module, x, check_trace=False)
        torch.testing.assert_close(traced(x + 1), module(x + 1))


def test_images_are_prepared_for_the_net(released: Path, tmp_path: Path) -> None:
    net = ir.load(released)
    pixels = np.random.default_rng(2).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)  # of the net's own size
    expected = torch.from_numpy(pixels.astype(np.float32) - np.float32([10, 20, 30])).permute(0, 3, 1, 2)
    paths = []
    for number, image in enumerate(pixels):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), image)
    for images in (pixels, list(pixels), paths, [paths[0], pixels[1]]):
        assert torch.equal(net.prepare(images), expected)
    assert torch.equal(net.prepare(np.ascontiguousarray(pixels[..., ::-1]), order="RGB"), expected)
    with pytest.raises(DataError, match=r"^image 1 of 1: values are float32; give uint8 from 0 to 255"):
        net.prepare(np.zeros((9, 7, 3), np.float32))


def test_a_net_in_a_few_lines(folder: Path) -> None:
    net = ir.load(folder / "small.caffemodel")
    assert repr(net) == (
        "CaffeNet 'small', phase TEST\n  inputs: data 1x3x9x7\n  outputs: prob 1x5\n  6 layers, 237 parameters"
    )
    size = (folder / "small.caffemodel").stat().st_size
    assert repr(net.about) == f"About:\n  preprocessing: unknown\n  source: small.caffemodel, {size:,} bytes"


# ------------------------------------------------------------------------------- no outputs in its phase

LOSSES = """
name: "losses"
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "x" batch_size: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }
"""


@pytest.mark.parametrize("to", ["safetensors", "caffemodel", "hdf5", "onnx", "pt2", "python"])
def test_inputs_of_losses_are_given(tmp_path: Path, to: str) -> None:
    own = (
        SMALL_TEXT.split("\n")[2]
        + LOSSES[LOSSES.index('layer { name: "ip"') : LOSSES.index('layer { name: "loss"')]
    )
    write_weights(tmp_path / "a.caffemodel", f'name: "losses"\n{own}')
    (tmp_path / "a.prototxt").write_text(LOSSES)
    with pytest.raises(ir.errors.IlgnetError) as caught:
        ir.convert(tmp_path / "a.caffemodel", to=to, out=tmp_path / "o")
    assert str(caught.value) == (
        "data (Data): the size of 'data' is known only from its source; "
        "give its shape (input_shapes={'data': (N, C, H, W)}), or set transform_param.crop_size"
    )
    shapes = {"data": (2, 3, 9, 7)}
    report = ir.convert(
        tmp_path / "a.caffemodel", to=to, out=tmp_path / "o", input_shapes=shapes, verify=True
    )
    note = "the net has no outputs in phase TEST: what its losses read is returned instead (ip)"
    assert report.outputs == ("ip",) and note in report.notes
    if to == "python":
        return
    again = ir.load(report.written[0].path)
    assert again.outputs == ("ip",)
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    net = ir.load(tmp_path / "a.caffemodel", input_shapes=shapes)
    torch.testing.assert_close(again(data=x)["ip"], net(data=x)["ip"], rtol=1e-4, atol=1e-5)
