"""Published weights: read by name after the checksum, from safetensors or a checkpoint; everything else is refused."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ilgnet_repro as ir
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.aesthetics.models.backbones import DEVIATION, MEAN, MobileNetV2, ResNet18
from ilgnet_repro.aesthetics.models.pretrained import load_published, take_caffe_colours
from ilgnet_repro.errors import FormatError, IlgnetError, WeightsError


def published(path: Path, module: nn.Module, *, form: str = "plain") -> str:
    """Write a module's weights as a publisher does; return the SHA-256."""
    state = dict(module.state_dict())
    if form == "places":
        torch.save(
            {"arch": "resnet18", "state_dict": {f"module.{name}": value for name, value in state.items()}},
            path,
        )
    elif form == "old":  # before PyTorch 0.4.1
        torch.save(
            {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path
        )
    elif form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["plain", "places", "old", "safetensors"])
def test_every_published_form_is_read(form, tmp_path) -> None:
    torch.manual_seed(1)
    source, target = ResNet18(5), ResNet18(5)
    digest = published(tmp_path / "weights.pth", source, form=form)
    stated = None if form == "safetensors" else digest[:12]
    assert load_published(target, tmp_path / "weights.pth", sha256=stated) == []
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_a_models_backbone_takes_the_file_but_its_classification(tmp_path) -> None:
    torch.manual_seed(1)
    source, model = MobileNetV2(1000), create("nima", backbone="mobilenet_v2")
    digest = published(tmp_path / "weights.pth", source)
    unused = load_published(model.backbone, tmp_path / "weights.pth", sha256=digest)
    assert unused == ["classifier.1.weight", "classifier.1.bias"]
    assert torch.equal(model.backbone.features[0][0].weight, source.features[0][0].weight)


def test_nothing_else_reads_a_checkpoint(tmp_path) -> None:
    published(tmp_path / "weights.pth", ResNet18(3))
    with pytest.raises(IlgnetError, match="is a PyTorch checkpoint, a pickle"):
        ir.load(tmp_path / "weights.pth")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('run')",)


def test_a_checkpoint_is_read_only_after_its_checksum(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    digest = published(path, ResNet18(3))
    with pytest.raises(FormatError) as caught:
        load_published(ResNet18(3), path)
    assert str(caught.value) == (
        f"{path}: a PyTorch checkpoint is a pickle, and is read only where its SHA-256 is that of a known file; this one's "
        f"is {digest}"
    )
    with pytest.raises(FormatError, match="SHA-256 begins with 00000000; this one's is"):
        load_published(ResNet18(3), path, sha256="0" * 8)
    with pytest.raises(FormatError, match="sha256 'abc' must be 8 to 64 hexadecimal digits"):
        load_published(ResNet18(3), path, sha256="abc")


def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": Evil()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(FormatError, match="cannot be read as weights only: "):
        load_published(ResNet18(3), path, sha256=digest)
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(FormatError, match="is a Python pickle, not published weights"):
        load_published(ResNet18(3), path, sha256=digest)


MISFITS = {
    "another shape": (ResNet18(3), ResNet18(4), r"fc.weight has shape \[3, 512\], the model \[4, 512\]; is it another"),
    "another network": (MobileNetV2(3), ResNet18(3), r"has no 'conv1.weight' and \d+ more; is it another network's file\?"),
    "more than the network": (
        nn.ModuleDict({"fc": nn.Linear(2, 2), "extra": nn.Linear(2, 2)}), nn.ModuleDict({"fc": nn.Linear(2, 2)}),
        r"'extra.bias' and 1 more is unknown to the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "target", "message"), MISFITS.values(), ids=MISFITS)
def test_another_networks_file_is_refused_and_nothing_loaded(source, target, message, tmp_path) -> None:
    before = {name: value.clone() for name, value in target.state_dict().items()}
    published(tmp_path / "weights.safetensors", source, form="safetensors")
    with pytest.raises(WeightsError, match=message):
        load_published(target, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_caffes_colours_become_torchs() -> None:
    torch.manual_seed(1)
    caffe, means = nn.Conv2d(3, 4, 3), (104.0, 117.0, 123.0)
    image = torch.randint(256, (2, 3, 9, 7)).float()  # RGB
    wanted = caffe(image.flip(1) - torch.tensor(means)[:, None, None])
    made = nn.Conv2d(3, 4, 3)
    made.load_state_dict(caffe.state_dict())
    take_caffe_colours(made, means)
    normalized = (image / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    torch.testing.assert_close(made(normalized), wanted, rtol=1e-4, atol=1e-3)
    with pytest.raises(WeightsError, match="has no bias"):
        take_caffe_colours(nn.Conv2d(3, 4, 3, bias=False), means)
