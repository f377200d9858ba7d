"""`grad_cam`: where in an image a net finds what speaks for one of its outputs; `branch_shares`: in which of its branches.

Grad-CAM of Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017
(https://arxiv.org/abs/1610.02391), equations 1 and 2.  Of a blob A of shape 1 x K x H x W and an output y:

    weight_k = mean over i, j of dy / dA[k, i, j]
    map[i, j] = max(0, sum over k of weight_k * A[k, i, j])

y is the value before Softmax, as in the paper, where the output of a Caffe net is a Softmax of it.

The branches of a net are the bottoms B of a Concat, each a part of its top T.  By gradient x activation (Shrikumar et al.,
"Not Just a Black Box", https://arxiv.org/abs/1605.01713), of the same y:

    value_B = sum over the part of B of dy / dT * T
    share_B = |value_B| / sum over all branches of |value|
    rest    = y - sum over all branches of value

Where what follows the Concat is made of dense layers, convolutions and ReLU, y is the sum of the values and of
what the biases of these layers add, which is ``rest``; elsewhere a value is the first term of a Taylor series.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .caffe.graph import Node, Value
from .errors import GraphError, did_you_mean
from .layers.join import Concat
from .manifest import listed
from .prepare_images import list_images, prepare
from .runtime.model import FeatureMap, Model
from .runtime.modes import as_loaded
from .runtime.net import CaffeNet, expect_caffe_net


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What `grad_cam` returns: ``values`` is float32 (H, W) of ``blob``, from 0, over the net's whole input.

    It is the map of value ``index`` of the blob ``output``, which is ``score``.
    """

    values: np.ndarray
    blob: str
    output: str
    index: int
    score: float


@dataclass(frozen=True)
class Branch:
    """What one bottom of a Concat adds to an output, and its share of what all of them add.

    ``kind`` is what the net's authors call it (local, global), or ""; ``source`` is the last blob with a height and a width
    that it is computed from.
    """

    blob: str
    value: float
    share: float
    kind: str = ""
    source: str = ""


@dataclass(frozen=True)
class BranchShares:
    """What `branch_shares` returns: the branches that the Concat ``layer`` joins, in its order.

    They are of value ``index`` of the blob ``output``, which is ``score``; ``before`` is y, the value before Softmax.
    """

    layer: str
    output: str
    index: int
    score: float
    before: float
    rest: float
    branches: tuple[Branch, ...]

    def by_kind(self) -> dict[str, float]:
        """Return the share of each kind of branch, largest first; branches without a kind count by their blob."""
        found: dict[str, float] = {}
        for branch in self.branches:
            name = branch.kind or branch.blob
            found[name] = found.get(name, 0.0) + branch.share
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def grad_cam(
    net: CaffeNet | Model,
    image: Any,
    blob: str | None = None,
    *,
    output: str | None = None,
    index: int | None = None,
) -> HeatMap:
    """Return where in one image (as `CaffeNet.prepare` takes it) a net finds what speaks for a value of its output.

    ``blob`` is one of `heat_map_blobs` (default: the last one before the output), ``output`` one of the net's (default:
    that of the score, or the only one), ``index`` its value (default: the score's, or the largest).  Raises GraphError.

    Of a `Model`, y is the value itself, and ``blob`` a module that ends in a `FeatureMap` (default: the last one).
    """
    if isinstance(net, Model):
        return _model_map(net, image, blob, output, index)
    net = expect_caffe_net(net, "explained")
    output = _output(net, output)
    blob = blob or _last_spatial(net, _before_softmax(net, output))
    if blob not in net.shapes:
        raise GraphError(
            f"net {net.name!r}: has no blob {blob!r}{did_you_mean(blob, net.shapes)}", option="blob"
        )
    found = _gradient(net, image, blob, output, index)
    if found.values.dim() != 4:
        raise GraphError(
            f"blob {blob!r}: has shape {list(found.values.shape)}; a heat map needs channels x height x width",
            option="blob",
        )
    if found.slope is None:
        raise GraphError(
            f"blob {blob!r}: output {output!r} does not depend on it; give one before it", option="blob"
        )
    return HeatMap(_weighted(found.values, found.slope), blob, output, found.index, found.score)


def branch_shares(
    net: CaffeNet,
    image: Any,
    layer: str | None = None,
    *,
    output: str | None = None,
    index: int | None = None,
) -> BranchShares:
    """Return how much of a value of a net's output each bottom of a Concat adds, for one image.

    ``layer`` is the name of the Concat (default: the last one that the output depends on); ``image``, ``output`` and
    ``index`` are those of `grad_cam`.  Raises GraphError.
    """
    net = expect_caffe_net(net, "explained")
    output = _output(net, output)
    node = _concat(net, layer, _before_softmax(net, output))
    blobs = [net.graph.names[bottom] for bottom in node.bottoms]
    found = _gradient(net, image, net.graph.names[node.tops[0]], output, index, also=blobs)
    if found.slope is None:
        raise GraphError(
            f"{node.name} (Concat): output {output!r} does not depend on it; give one before it",
            option="layer",
        )
    join = net.layer(node.name)
    if not isinstance(join, Concat):
        raise GraphError(f"{node.name} (Concat): is now a {type(join).__name__}, whose parts are not known")
    lengths = [found.shapes[blob][join.dim] for blob in blobs]
    parts = (found.slope.double() * found.values.double()).split(lengths, join.dim)
    values = [float(part.sum()) for part in parts]
    whole = sum(map(abs, values))
    kinds = _kinds(node.name, blobs)
    branches = tuple(
        Branch(blob, value, abs(value) / whole if whole else 0.0, kinds.get(blob, ""), _source(net, bottom))
        for blob, value, bottom in zip(blobs, values, node.bottoms, strict=True)
    )
    return BranchShares(
        node.name, output, found.index, found.score, found.before, found.before - sum(values), branches
    )


def spatial_blobs(net: CaffeNet) -> tuple[str, ...]:
    """Return the blobs that have a height and a width over 1, in the net's order, without its input."""
    inputs = set(net.inputs)
    return tuple(
        name
        for name in dict.fromkeys(net.graph.names.values())
        if len(net.shapes.get(name, ())) == 4 and max(net.shapes[name][2:]) > 1 and name not in inputs
    )


def heat_map_blobs(net: CaffeNet | Model, output: str | None = None) -> tuple[str, ...]:
    """Return the blobs that `grad_cam` can take for an output: `spatial_blobs` that have a gradient, in the net's order.

    A pass over zeros finds them.  Raises GraphError where there is no output to choose, or the net takes no images.
    Of a `Model`, they are its modules that end in a `FeatureMap`.
    """
    if isinstance(net, Model):
        net.image_input()
        return tuple(_feature_maps(net))
    net = expect_caffe_net(net, "explained")
    scored = _before_softmax(net, _output(net, output))
    names = _read_for(net, scored, spatial_blobs(net))
    dtype, device = net.computes_in
    with torch.inference_mode(False), torch.enable_grad(), as_loaded(net):
        given = net.image_input()
        one = (1, *net.shapes[given][1:])
        zeros = torch.zeros(one, dtype=dtype, device=device, requires_grad=True)
        found = net.run({given: zeros}, (*names, scored), with_loss=False).blobs
    reached: set[Any] = set()
    left = [found[scored].grad_fn]
    while left:
        step = left.pop()
        if step is not None and step not in reached:
            reached.add(step)
            left += [before for before, _ in step.next_functions]
    return tuple(name for name in names if found[name].grad_fn in reached)


def concat_layers(net: CaffeNet, output: str | None = None) -> tuple[str, ...]:
    """Return the Concats that `branch_shares` can take for an output, in the net's order."""
    net = expect_caffe_net(net, "explained")
    return tuple(node.name for node in _concats(net, _before_softmax(net, _output(net, output))))


def _weighted(values: torch.Tensor, slope: torch.Tensor) -> np.ndarray:
    """Equations 1 and 2: the channels of a blob, each weighted by the mean of its gradient."""
    weights = slope.mean(dim=(2, 3), keepdim=True)
    heat: np.ndarray = (weights * values).sum(dim=1)[0].clamp(min=0).cpu().numpy()
    return heat


def _feature_maps(model: Model) -> dict[str, FeatureMap]:
    """Return the feature maps of a model by the name of what they end."""
    return {
        name.rpartition(".")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, FeatureMap)
    }


def _model_map(model: Model, image: Any, name: str | None, output: str | None, index: int | None) -> HeatMap:
    model.image_input()
    maps, output = _feature_maps(model), _output(model, output)
    if not maps:
        raise GraphError(f"model {model.name}: has no feature map to take a heat map at")
    name = name or next(reversed(maps))
    if name not in maps:
        raise GraphError(
            f"model {model.name}: has no feature map {name!r}{did_you_mean(name, maps)}; it has {', '.join(maps)}",
            option="blob",
        )
    kept: list[torch.Tensor] = []
    hook = maps[name].register_forward_hook(lambda module, given, found: kept.append(found))
    try:
        with torch.inference_mode(False), torch.enable_grad(), as_loaded(model):
            values = model.prepare(_one(image))
            parameter = next(model.parameters())
            found = model(values.to(parameter.device, parameter.dtype).requires_grad_())[output].flatten()
            at = _index(model, output, found, index)
            (slope,) = torch.autograd.grad(found[at], kept[0], allow_unused=True)
    finally:
        hook.remove()
    if slope is None:
        raise GraphError(
            f"feature map {name!r}: output {output!r} does not depend on it; give another", option="blob"
        )
    heat = _weighted(kept[0].detach().float(), slope.float())
    return HeatMap(heat, name, output, at, float(found[at].detach()))


def _one(image: Any) -> list[Any]:
    images = list_images(image)
    if len(images) != 1:
        raise GraphError(f"image: {len(images)} images; give one")
    return images


@dataclass(frozen=True, eq=False)
class _Gradient:
    """A blob's values and the gradient of a value of the output with respect to them, or None, in float32."""

    values: torch.Tensor
    slope: torch.Tensor | None
    index: int
    score: float
    before: float
    shapes: dict[str, tuple[int, ...]]


def _gradient(
    net: CaffeNet, image: Any, blob: str, output: str, index: int | None, also: Iterable[str] = ()
) -> _Gradient:
    """Run the net on one image; ``shapes`` are those of the blob, the output, and those of ``also``."""
    scored = _before_softmax(net, output)
    pixels = prepare(net.about, _one(image), net=net.name)
    dtype, device = net.computes_in
    wanted = dict.fromkeys((blob, scored, output, *also))
    with torch.inference_mode(False), torch.enable_grad(), as_loaded(net):
        values = torch.from_numpy(pixels).to(device, dtype).requires_grad_()
        found = net.run({net.image_input(): values}, wanted, with_loss=False).blobs
        features, flat, shown = found[blob], found[scored].flatten(), found[output].flatten()
        at = _index(net, output, shown, index)
        (slope,) = (
            torch.autograd.grad(flat[at], features, allow_unused=True)
            if flat.requires_grad and features.requires_grad
            else (None,)
        )
    return _Gradient(
        features.detach().float(), None if slope is None else slope.float(), at, float(shown[at].detach()),
        float(flat[at].detach()), {name: tuple(value.shape) for name, value in found.items()},
    )  # fmt: skip


def _output(net: CaffeNet | Model, output: str | None) -> str:
    output = output or _default_output(net)
    if output not in net.outputs:
        raise GraphError(
            f"net {net.name!r}: has no output {output!r}{did_you_mean(output, net.outputs)}", option="output"
        )
    return output


def _concats(net: CaffeNet, scored: str) -> list[Node]:
    return [node for node, _ in net.steps((scored,)) if node.type == "Concat"]


def _concat(net: CaffeNet, name: str | None, scored: str) -> Node:
    nodes = {node.name: node for node in _concats(net, scored)}
    if name is None:
        if not nodes:
            raise GraphError(f"net {net.name!r}: no Concat before {scored!r}, so it has no branches")
        return nodes[next(reversed(nodes))]
    if name in nodes:
        return nodes[name]
    node = net.graph.node(name)
    if node is None:
        raise GraphError(
            f"net {net.name!r}: has no layer {name!r}{did_you_mean(name, nodes)}", option="layer"
        )
    why = f"{scored!r} does not depend on it" if node.type == "Concat" else "branches end in a Concat"
    raise GraphError(f"{name} ({node.type}): {why}; give {_few(nodes) or 'another net'}", option="layer")


def _few(names: Iterable[str], most: int = 5) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f" or one of {len(shown) - most} more" if len(shown) > most else "")


def _kinds(layer: str, blobs: list[str]) -> dict[str, str]:
    """Return what the authors of a net with these branches call them (``[branches]`` of a ``models.toml``)."""
    kinds = listed("branches").get(layer, {})
    return kinds if kinds.keys() == set(blobs) else {}


def _source(net: CaffeNet, value: Value) -> str:
    """Return the last blob with a height and a width that a value is computed from, by its first bottoms, or ""."""
    while True:
        shape = net.plan.value_shapes.get(value, ())
        if len(shape) == 4 and max(shape[2:]) > 1:
            return net.graph.names[value]
        node = net.graph.node(value.writer)
        if node is None or not node.bottoms:
            return ""
        value = node.bottoms[0]


def _read_for(net: CaffeNet, scored: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``names`` that a layer reads on the way to ``scored``, and ``scored`` itself."""
    read = {net.graph.names[value] for node, _ in net.steps((scored,)) for value in node.bottoms} | {scored}
    return tuple(name for name in names if name in read)


def _default_output(net: CaffeNet | Model) -> str:
    score = net.about.score
    if score is not None and score.output in net.outputs:
        return score.output
    if len(net.outputs) != 1:
        raise GraphError(
            f"net {net.name!r}: has {len(net.outputs)} outputs ({', '.join(net.outputs)}); name one",
            option="output",
        )
    return net.outputs[0]


def _before_softmax(net: CaffeNet, output: str) -> str:
    """Return the blob that a Softmax made the output of, or the output itself."""
    value = net.graph.value(output)
    node = net.graph.node(value.writer)
    is_softmax = node is not None and node.type == "Softmax" and bool(node.bottoms)
    return net.graph.names[node.bottoms[0]] if node is not None and is_softmax else output


def _last_spatial(net: CaffeNet, scored: str) -> str:
    needed = {top for node, _ in net.steps((scored,)) for top in node.tops}
    names = [name for value, name in net.graph.names.items() if value in needed and name != scored]
    spatial = set(spatial_blobs(net))
    for name in reversed(names):
        if name in spatial:
            return name
    raise GraphError(f"net {net.name!r}: no blob before {scored!r} has a height and width", option="blob")


def _index(net: CaffeNet | Model, output: str, values: torch.Tensor, index: int | None) -> int:
    if index is None:
        score = net.about.score
        is_score = score is not None and score.output == output and score.index < len(values)
        index = score.index if score is not None and is_score else int(values.argmax())
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(values):
        raise GraphError(
            f"index={index!r}: output {output!r} has {len(values)} values; give one from 0 to {len(values) - 1}",
            option="index",
        )
    return index
