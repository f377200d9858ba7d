"""Published weights of the backbones, read by their parameter names once the file's checksum is right.

The one place of this package that reads PyTorch checkpoints: with ``torch.load(weights_only=True)``, and only after the
file's SHA-256 is what the caller states, or what the file's publisher wrote into its name.  `ir.load` and every command
refuse them.  safetensors files are preferred, and need no checksum.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...caffe.expected_kind import expect
from ...caffe.kinds import Kind
from ...errors import FormatError, WeightsError
from ...files import file_sha256
from ...runtime.safetensors_file import open_safetensors
from .backbones import DEVIATION, MEAN

# The beginnings of SHA-256 digests that the publishers write into the names: torchvision, and the port of BN-Inception.
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "resnet18": ("f37072fd", "5c106cde"),
    "mobilenet_v2": ("b0353104", "7ebf99e0"),
    "vgg16": ("397923af",),
    "inception_v2": ("52deb4733",),
}
LEAST_DIGITS = 8


def load_published(
    module: nn.Module, path: str | os.PathLike[str], *, sha256: str | None = None
) -> list[str]:
    """Load a published file into a backbone (or a model's) by parameter names; return the file's names not used.

    A checkpoint needs ``sha256``, or its first 8 digits and more, unless its digest begins as one of `PUBLISHED`.  Names
    may begin with ``module.``, and stand under ``state_dict``, as in the files of Places365.  A classification layer that
    ``module`` does not have is not used.  Raises FormatError for another kind of file or a wrong checksum, WeightsError
    for a parameter that is missing, of another shape, or that the module does not know.
    """
    kind = expect(path, Kind.SAFETENSORS, Kind.TORCH, what="published weights (.safetensors or .pth)")
    if sha256 is not None or kind is Kind.TORCH:
        _check_digest(path, sha256)
    found = open_safetensors(path).tensors if kind is Kind.SAFETENSORS else _read_checkpoint(path)
    return load_named(module, found, str(path))


def load_named(module: nn.Module, found: Mapping[str, Tensor], source: str) -> list[str]:
    """Load tensors into a module by name; return the names not used. Raises WeightsError, nothing loaded then."""
    own = module.state_dict()
    # Files of before PyTorch 0.4.1 do not count batches, which nothing reads.
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise WeightsError(f"{source}: has no {missing[0]!r}{_more(missing)}; is it another network's file?")
    for name, value in own.items():
        if name in found and found[name].shape != value.shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(found[name].shape)}, the model {list(value.shape)}; "
                "is it another network's file?"
            )
    modules = {name.rpartition(".")[0] for name in own}
    unused = [name for name in found if name not in own]
    unknown = [name for name in unused if not _is_classification(name, modules)]
    if unknown:
        raise WeightsError(
            f"{source}: {unknown[0]!r}{_more(unknown)} is unknown to the model; is it another network's file?"
        )
    module.load_state_dict({name: found.get(name, value) for name, value in own.items()})
    return unused


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _is_classification(name: str, modules: set[str]) -> bool:
    return name.rpartition(".")[0] not in modules and bool(
        re.match(r"(fc|fc7|classifier|last_linear)\b", name)
    )


def _check_digest(path: str | os.PathLike[str], sha256: str | None) -> None:
    known = [digest for digests in PUBLISHED.values() for digest in digests]
    if sha256 is not None:
        stated = sha256.lower().removeprefix("sha256:")
        if not re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGITS},64}}", stated):
            raise FormatError(f"{path}: sha256 {sha256!r} must be {LEAST_DIGITS} to 64 hexadecimal digits")
        known = [stated]
    digest = file_sha256(path)
    if not any(digest.startswith(one) for one in known):
        wanted = f"begins with {known[0]}" if sha256 else "is that of a known file"
        raise FormatError(
            f"{path}: a PyTorch checkpoint is a pickle, and is read only where its SHA-256 {wanted}; "
            f"this one's is {digest}"
        )


def _read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever an unpickler may raise; torch's own message says how to read it unsafely
        raise FormatError(
            f"{path}: cannot be read as weights only: it is damaged, or holds more than tensors; give a state dict"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FormatError(f"{path}: holds no named tensors; give a state dict")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def take_caffe_colours(convolution: nn.Conv2d, mean: tuple[float, float, float]) -> None:
    """Change a first convolution of Caffe's (BGR from 0 to 255, less ``mean``) to take RGB normalized for ImageNet.

    Exact but for the image's border, where Caffe pads with its own mean and torch with ImageNet's.
    """
    scale = torch.tensor(DEVIATION) * 255
    offset = torch.tensor(MEAN) * 255 - torch.tensor(mean[::-1])
    weight = convolution.weight.detach().flip(1)
    if convolution.bias is None:
        raise WeightsError(
            "the first convolution has no bias to take the difference of the means; give it one"
        )
    with torch.no_grad():
        convolution.bias += (weight * offset[:, None, None]).sum((1, 2, 3))
        convolution.weight.copy_(weight * scale[:, None, None])


__all__ = ["PUBLISHED", "load_named", "load_published", "take_caffe_colours"]
