"""Weights drawn at random: every saved form that has metadata states which layers hold them, until they are trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ilgnet_repro as ir
from ilgnet_repro.about import About, Drawn
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import FormatError
from ilgnet_repro.runtime.drawn import about_now
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.runtime.net import CaffeNet, float_arrays
from ilgnet_repro.runtime.safetensors_file import open_safetensors

# Its BatchNorm and Scale are not drawn; "bare" states no filler, which in Caffe means zeros; "same" shares the weights of
# "first".
NET = """name: "drawn" input: "data" input_shape { dim: 2 dim: 3 dim: 5 dim: 4 }
layer { name: "first" type: "Convolution" bottom: "data" top: "first" param { name: "w" } param { name: "b" }
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "same" type: "Convolution" bottom: "first" top: "same" param { name: "w" } param { name: "b" }
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "same" top: "norm" batch_norm_param { use_global_stats: true } }
layer { name: "scale" type: "Scale" bottom: "norm" top: "scale" scale_param { bias_term: true } }
layer { name: "constant" type: "InnerProduct" bottom: "scale" top: "constant"
  inner_product_param { num_output: 6 weight_filler { type: "constant" value: 0.5 } } }
layer { name: "last" type: "InnerProduct" bottom: "constant" top: "last"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "bare" type: "InnerProduct" bottom: "last" top: "bare" inner_product_param { num_output: 2 } }
"""
WHOLE = Drawn(("first", "last", "bare"), 3)


def drawn_net(seed: int = 3) -> CaffeNet:
    return load_net(parse_net(NET), seed=seed)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_every_form_with_metadata_states_it(tmp_path: Path, suffix: str) -> None:
    (path,) = ir.save(drawn_net(), tmp_path / f"net{suffix}")
    found = ir.load(path)
    assert found.about.drawn == WHOLE
    assert found.about.random == "drawn at random: all 3 layers"
    assert "random weights: drawn at random: all 3 layers" in repr(found.about)


def test_the_source_states_it_at_its_top(tmp_path: Path) -> None:
    code, weights = ir.save(drawn_net(), tmp_path / "net.py")
    assert (
        "RANDOM weights, its scores mean nothing (drawn at random: all 3 layers)\n" in code.read_text()[:300]
    )
    assert "drawn" in json.loads(open_safetensors(weights).metadata["about"])


def test_a_trained_net_is_not_marked(tmp_path: Path) -> None:
    net = drawn_net()
    with torch.no_grad():
        for blob in net.parameters():
            blob += 0.01
    (path,) = ir.save(net, tmp_path / "net.safetensors")
    assert "drawn" not in open_safetensors(path).metadata.get("about", "")
    assert about_now(net).random == ir.load(path).about.random == ""


def test_layers_that_are_not_trained_stay_marked(tmp_path: Path) -> None:
    net = drawn_net()
    with torch.no_grad():
        net.layer("first").weight.mul_(0.5)
        net.layer("last").bias.add_(1)  # its weights are still those that were drawn
    (first,) = ir.save(net, tmp_path / "net.safetensors")
    loaded = ir.load(first)
    assert loaded.about.drawn == Drawn(("last", "bare"), 3)
    assert loaded.about.random_notes == (
        "RANDOM weights in part of the net, so its scores may mean nothing (drawn at random: 2 of 3 layers: last, bare)",
    )
    with torch.no_grad():  # a file's mark is compared again when what was loaded is saved
        loaded.layer("last").weight.mul_(2)
    (second,) = ir.save(loaded, tmp_path / "again.safetensors")
    assert ir.load(second).about.drawn == Drawn(("bare",), 3)


@pytest.mark.parametrize("change", [torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.double])
def test_another_type_is_no_training(tmp_path: Path, change) -> None:
    net = drawn_net()
    net._apply(change)
    (path,) = ir.save(net, tmp_path / "net.safetensors")
    assert ir.load(path).about.drawn == WHOLE


def test_layers_that_the_weights_file_lacks_are_stated(tmp_path: Path) -> None:
    net = drawn_net()
    with torch.no_grad():
        for blob in net.parameters():
            blob += 0.01
    paths = ir.save(net, tmp_path / "net.caffemodel")
    text = NET.replace('name: "last"', 'name: "renamed"')
    partly = load_net(parse_net(text), paths[0], allow_missing=["renamed"], seed=5)
    assert partly.about.drawn == Drawn(("renamed",), 3)
    (path,) = ir.save(partly, tmp_path / "partly.safetensors")
    assert ir.load(path).about.random == "drawn at random: 1 of 3 layers: renamed"


def test_a_part_of_a_net_states_its_own_layers(tmp_path: Path) -> None:
    (path,) = ir.save(drawn_net(), tmp_path / "net.onnx", outputs=["scale"])
    assert ir.load(path).about.drawn == Drawn(("first",), 1)


def test_given_arrays_are_not_drawn() -> None:
    net = drawn_net()
    arrays = float_arrays(net)
    assert about_now(CaffeNet(net.plan, arrays)).drawn is None
    # The owner's blobs may be given under a layer that shares them.
    del arrays["first"]
    assert about_now(CaffeNet(net.plan, arrays)).drawn is None
    del arrays["last"]
    assert about_now(CaffeNet(net.plan, arrays, seed=1)).drawn == Drawn(("last",), 3)


def test_models_state_it_until_they_are_trained(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = create("gsfl", features=5, classes=4, groups=2, hidden=6)
    count = sum(isinstance(one, torch.nn.Linear) for one in model.modules())
    (path,) = ir.save(model, tmp_path / "net.safetensors")
    assert ir.load(path).about.drawn == model.about.drawn
    assert model.about.random == f"drawn at random: all {count} layers"
    linear = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    kept = min(linear)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.startswith(f"{kept}."):
                value += 0.1
    (path,) = ir.save(model, tmp_path / "trained.safetensors")
    assert ir.load(path).about.drawn == Drawn((kept,), count)
    with torch.no_grad():
        for value in model.parameters():
            value *= 2
    assert about_now(model).drawn is None
    (path,) = ir.save(model, tmp_path / "trained.safetensors")
    assert "drawn" not in open_safetensors(path).metadata.get("about", "")


DAMAGED = {
    "no object": ["first"],
    "no layers": {"layers": [], "of": 3},
    "names that are no texts": {"layers": [1], "of": 3},
    "more than all": {"layers": ["a", "b"], "of": 1},
    "no count": {"layers": ["a"], "of": True},
    "another key": {"layers": ["a"], "of": 1, "seed": 1},
}


@pytest.mark.parametrize("drawn", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_statement_is_refused(drawn) -> None:
    stated = About(drawn=Drawn(("a",), 1)).to_metadata()
    assert About.from_metadata(stated).drawn == Drawn(("a",), 1)
    with pytest.raises(
        FormatError, match=r"about: drawn: not as this package writes it; convert the weights again"
    ):
        About.from_metadata({"about": json.dumps({"drawn": drawn})})


def test_many_layers_are_counted() -> None:
    names = tuple(f"layer{index}" for index in range(12))
    assert Drawn(names, 20).describe() == (
        f"drawn at random: 12 of 20 layers: {', '.join(names[:8])} and 4 more"
    )
    assert Drawn(("only",), 1).describe() == "drawn at random"
