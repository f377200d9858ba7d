"""NIMA, TANet, GSFL-Net and the attributes network: sizes, shapes, independence of batch-mates, refusals."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.aesthetics.models.attributes import ATTRIBUTES
from ilgnet_repro.aesthetics.models.backbones import BACKBONES, ResNet18
from ilgnet_repro.aesthetics.models.gsfl import CompactBilinear, find_groups
from ilgnet_repro.aesthetics.models.tanet import self_similarity
from ilgnet_repro.errors import DataError, GraphError, IlgnetError

slow = pytest.mark.skipif(not os.environ.get("SLOW_MODELS"), reason="seconds a model: `make models`")


def count(module: nn.Module, trained: bool = False) -> int:
    return sum(one.numel() for one in module.parameters() if one.requires_grad or not trained)


# With 1,000 classes, as torchvision and the port of BN-Inception state them; MobileNet v1: the paper's 4.2 million.
SIZES = {
    "resnet18": 11_689_512, "mobilenet_v1": 4_231_976, "mobilenet_v2": 3_504_872, "vgg16": 138_357_544,
    "inception_v2": 11_295_240,
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), SIZES.items(), ids=SIZES)
def test_backbones_have_the_published_number_of_parameters(name, size) -> None:
    with torch.device("meta"):
        assert count(BACKBONES[name]()) == size


def test_places_has_365_classes() -> None:
    with torch.device("meta"):
        assert count(ResNet18(365)) == 11_363_757


# Published: NIMA 3.22, 134.3 million; TANet 13.88, 2.52 trained; GSFL on VGG-16's convolutions 166.6, at inference 65.9.
VGG_CONVOLUTIONS = 14_714_688
MODELS = {
    "nima, MobileNet": ("nima", {"backbone": "mobilenet_v1"}, 3_217_226, 3_217_226),
    "nima, VGG-16": ("nima", {"backbone": "vgg16"}, 134_301_514, 134_301_514),
    "nima, Inception v2": ("nima", {"backbone": "inception_v2"}, 10_280_490, 10_280_490),
    "tanet, AVA": ("tanet", {"data": "ava"}, 13_881_886, 2_518_129),
    "tanet, TAD66K": ("tanet", {}, 13_881_607, 2_517_850),
    "gsfl": ("gsfl", {}, 166_557_704 - VGG_CONVOLUTIONS, 166_557_704 - VGG_CONVOLUTIONS),
    "gsfl, inference": (
        "gsfl", {"groups": 1, "is_decomposed": False}, 65_873_928 - VGG_CONVOLUTIONS, 65_873_928 - VGG_CONVOLUTIONS,
    ),
    "attributes, AADB": ("attributes", {}, 14_983_500, 14_983_500),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "whole", "trained"), MODELS.values(), ids=MODELS)
def test_models_have_the_published_number_of_parameters(name, options, whole, trained) -> None:
    with torch.device("meta"):
        model = create(name, **options)
    assert (count(model), count(model, trained=True)) == (whole, trained)


NIMA = {"distribution": 10, "score": 1}
QUICK_CALLS = {
    "nima, MobileNet v2": ("nima", {"backbone": "mobilenet_v2"}, NIMA),
    "tanet, AVA": ("tanet", {"data": "ava"}, {"distribution": 10, "score": 1}),
    "tanet, one branch": ("tanet", {"branches": ["colour"]}, {"score": 1}),
    "gsfl": ("gsfl", {"features": 40, "classes": 6, "groups": 2, "hidden": 16}, {"logits": 6}),
}  # fmt: skip
SLOW_CALLS = {
    "nima, MobileNet v1": ("nima", {"backbone": "mobilenet_v1"}, NIMA),
    "nima, VGG-16": ("nima", {"backbone": "vgg16"}, NIMA),
    "nima, Inception v2": ("nima", {"backbone": "inception_v2"}, NIMA),
    "tanet, TAD66K": ("tanet", {}, {"score": 1}),
    "tanet, theme": ("tanet", {"branches": ["theme"]}, {"score": 1}),
    "gsfl, no decomposition": (
        "gsfl", {"features": 40, "classes": 6, "groups": 1, "hidden": 16, "is_decomposed": False}, {"logits": 6},
    ),
    "attributes, EVA": ("attributes", {"data": "eva"}, dict.fromkeys(("score", *ATTRIBUTES["eva"]), 1)),
    "attributes, AADB": ("attributes", {}, dict.fromkeys(("score", *ATTRIBUTES["aadb"]), 1)),
}  # fmt: skip
CALLS = [pytest.param(*case, id=name) for name, case in QUICK_CALLS.items()]
CALLS += [pytest.param(*case, id=name, marks=slow) for name, case in SLOW_CALLS.items()]
ROWS = 16


@pytest.mark.parametrize(("name", "options", "wanted"), CALLS)
def test_a_row_depends_on_its_own_image_only(name, options, wanted) -> None:
    """In float64, where another order of the same sums is far below what a batch-mate's values would change."""
    torch.manual_seed(2)
    model = create(name, **options).double()
    # Weights and statistics with which images, and not biases, decide the outputs.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train().momentum = 1.0
    sides = (64, 32) if options.get("backbone") == "inception_v2" else (40, 32)
    x = torch.randn(ROWS, 40) if name == "gsfl" else torch.randn(ROWS, 3, *sides)
    x = x.double()
    with torch.no_grad():
        model(x)
    model.eval()
    order = np.random.default_rng(3).permutation(ROWS)
    with torch.inference_mode():
        whole, permuted = model(x), model(x[order])
        alone = [model(x[row : row + 1]) for row in (1, ROWS - 1)]
    assert {key: tuple(value.shape) for key, value in whole.items()} == {
        key: (ROWS, size) for key, size in wanted.items()
    }
    for key, value in whole.items():
        assert float((value - value[:1]).abs().max()) > 1e-4, key
        torch.testing.assert_close(permuted[key], value[order], rtol=1e-9, atol=1e-10)
        for row, found in zip((1, ROWS - 1), alone, strict=True):
            torch.testing.assert_close(found[key], value[row : row + 1], rtol=1e-9, atol=1e-10)
    if "distribution" in whole:
        torch.testing.assert_close(whole["distribution"].sum(1), torch.ones(ROWS).double())
        scores = whole["distribution"].double().numpy() @ np.arange(1, 11)
        np.testing.assert_allclose(whole["score"][:, 0].numpy(), scores, rtol=1e-5)


def test_inception_v2_takes_the_sizes_whose_planes_agree() -> None:
    """What `check_size` says is what torch finds when it concatenates the planes."""
    with torch.device("meta"):
        backbone = BACKBONES["inception_v2"]()
        for size, fits in (((64, 223), True), ((192, 48), False), ((222, 64), False)):
            x = torch.empty(1, 3, *size)
            if fits:
                backbone.check_size(*size)
                backbone.features_of(x)
                continue
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                backbone.features_of(x)
            with pytest.raises(GraphError) as caught:
                backbone.check_size(*size)
            assert str(caught.value) == (
                f"inception_v2: images are {size[0]}x{size[1]}, whose planes cannot be halved five times; give sides that "
                "are multiples of 32"
            )


def test_a_model_says_which_images_its_backbone_takes() -> None:
    with torch.device("meta"):
        model = create("nima", backbone="inception_v2")
    with pytest.raises(GraphError, match="inception_v2: images are 64x40, whose planes cannot be halved"):
        model(torch.empty(2, 3, 64, 40, device="meta"))


def test_the_theme_network_is_frozen() -> None:
    model = create("tanet").train()
    before = {name: value.clone() for name, value in model.places.state_dict().items()}
    model(torch.randn(3, 3, 64, 64))["score"].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.places.state_dict().items())
    assert all(one.grad is None for one in model.places.parameters())
    assert model.theme.dense.weight.grad is not None


def test_colours_are_compared_by_their_cosine() -> None:
    x = torch.rand(2, 3, 24, 36) + 0.1
    found = self_similarity(x).numpy()
    blocks = x.numpy().reshape(2, 3, 12, 2, 12, 3).mean((3, 5)).reshape(2, 3, 144)
    for image in range(2):
        for first, second in ((0, 143), (7, 20), (100, 100)):
            a, b = blocks[image, :, first], blocks[image, :, second]
            assert found[image, first, second] == pytest.approx(
                a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5
            )


REFUSED = {
    "another model": (
        "nimma", {}, "model 'nimma' is unknown (did you mean nima?); choose one of nima, tanet, gsfl, attributes",
    ),
    "another option": ("nima", {"size": 3}, "model nima: option 'size' is unknown; it takes backbone"),
    "another backbone": (
        "nima", {"backbone": "resnet18"},
        "model nima: backbone 'resnet18' is unknown; choose from mobilenet_v1, mobilenet_v2, vgg16, inception_v2",
    ),
    "another branch": (
        "tanet", {"branches": ("theme", "form")},
        "model tanet: branches ('theme', 'form') is unknown; choose from aesthetics, theme, colour",
    ),
    "no branch": ("tanet", {"branches": ()}, "model tanet: branches () is unknown; choose from aesthetics, theme, colour"),
    "no class": ("gsfl", {"classes": 0}, "model gsfl: classes 0 must be at least 1"),
    "more groups than classes": ("gsfl", {"classes": 3, "groups": 4}, "gsfl: 4 groups of 3 classes; give 1 to 3"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(name, options, message) -> None:
    with pytest.raises(IlgnetError) as caught:
        create(name, **options)
    assert str(caught.value) == message


# ---------------------------------------------------------------------- GSFL-Net


def test_each_row_has_its_own_classs_centre_and_group() -> None:
    torch.manual_seed(3)
    model = create("gsfl", features=8, classes=4, groups=2, hidden=5)
    model.set_groups([0, 1, 1, 0])
    model.class_centres.copy_(torch.randn(4, 5))
    model.group_centres.copy_(torch.randn(2, 5))
    features, labels = torch.randn(6, 8), torch.tensor([2, 0, 2, 3, 1, 0])
    found = model.train()(features)
    terms = model.loss(found, features, labels)
    own, shared = found["discriminative"].detach().numpy(), found["shared"].detach().numpy()
    groups = [0, 1, 1, 0]
    wanted = sum(
        ((own[row] - model.class_centres[label].numpy()) ** 2).mean() for row, label in enumerate(labels)
    )
    assert terms["class_centres"].item() == pytest.approx(0.1 * wanted, rel=1e-5)
    wanted = sum(
        ((shared[row] - model.group_centres[groups[label]].numpy()) ** 2).mean()
        for row, label in enumerate(labels)
    )
    assert terms["group_centres"].item() == pytest.approx(0.1 * wanted, rel=1e-5)
    before = model.class_centres.clone().numpy()
    model.move_centres(found, labels)
    rows = [row for row, label in enumerate(labels) if label == 2]
    step = sum(before[2] - own[row] for row in rows) / (1 + len(rows))
    np.testing.assert_allclose(model.class_centres[2].numpy(), before[2] - 0.01 * step, rtol=1e-5, atol=1e-7)


def test_inference_needs_neither_the_shared_encoder_nor_the_decoder() -> None:
    model = create("gsfl", features=8, classes=4, groups=2, hidden=5)
    small, x = model.for_inference(), torch.randn(3, 8)
    assert torch.equal(small(x)["logits"], model(x)["logits"])
    assert {name.split(".")[0] for name, _ in small.named_parameters()} == {"discriminative", "classifier"}


@pytest.mark.parametrize(
    "groups", [[0, 1, 2, 0], [0, 1, -1, 0], [0, 1]], ids=["too large", "negative", "too few"]
)
def test_groups_are_checked(groups) -> None:
    with pytest.raises(DataError, match="give one number from 0 to 1 for each"):
        create("gsfl", features=8, classes=4, groups=2, hidden=5).set_groups(groups)


def test_groups_are_found_by_the_classes_means() -> None:
    means = torch.tensor([[9.0, 0], [0, 9], [9, 1], [1, 9]])
    labels = torch.arange(40) % 4
    features = means[labels] + 0.1 * torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    first, second, third, fourth = find_groups(features, labels, 4, 2)
    assert first == third != second == fourth
    with pytest.raises(DataError, match="class 4 has no row"):
        find_groups(features, labels, 5, 2)


def test_compact_bilinear_pooling_approximates_the_outer_product() -> None:
    """The dot product of two sketches is that of the outer products, on average (Gao et al., 2016, equation 4)."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.rand(2, 1, 6, 1, 1, generator=generator).unbind(0)
    whole = float((a.flatten() @ b.flatten()) ** 2)
    found = []
    for seed in range(60):
        pool = CompactBilinear(6, 64, seed=seed)
        raw = [torch.fft.irfft(torch.fft.rfft(one[0]) * torch.fft.rfft(one[1]), 64) for one in
               ([x.new_zeros(64).index_add(0, h, x.flatten() * s) for h, s in zip(pool.hashes, pool.signs, strict=True)]
                for x in (a, b))]  # fmt: skip
        found.append(float(raw[0] @ raw[1]))
        pooled = pool(a)[0]
        torch.testing.assert_close(
            pooled, nn.functional.normalize(raw[0].sign() * raw[0].abs().sqrt(), dim=0)
        )
    assert np.mean(found) == pytest.approx(whole, rel=0.1)
