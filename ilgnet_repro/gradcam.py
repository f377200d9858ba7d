"""`grad_cam`: where in an image a net finds what speaks for one of its outputs.

Grad-CAM of Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017
(https://arxiv.org/abs/1610.02391), equations 1 and 2.  Of a blob A of shape 1 x K x H x W and an output y:

    weight_k = mean over i, j of dy / dA[k, i, j]
    map[i, j] = max(0, sum over k of weight_k * A[k, i, j])

y is the value before Softmax, as in the paper, where the output is a Softmax of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import GraphError, did_you_mean
from .prepare_images import list_images, prepare
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


def grad_cam(
    net: CaffeNet, image: Any, blob: str | None = None, *, output: str | None = None, index: int | None = None
) -> HeatMap:
    """Return where in one image (as `CaffeNet.prepare` takes it) a net finds what speaks for a value of its output.

    ``blob`` is a spatial blob (default: the last one before the output), ``output`` one of the net's (default: that
    of the score, or the only one), ``index`` its value (default: the score's, or the largest).  Raises GraphError.
    """
    net = expect_caffe_net(net, "grad_cam")
    listed = list_images(image)
    if len(listed) != 1:
        raise GraphError(f"image: {len(listed)} images; give one")
    output = output or _default_output(net)
    if output not in net.outputs:
        raise GraphError(
            f"net {net.name!r}: has no output {output!r}{did_you_mean(output, net.outputs)}", option="output"
        )
    scored = _before_softmax(net, output)
    blob = blob or _last_spatial(net, scored)
    if blob not in net.shapes:
        raise GraphError(
            f"net {net.name!r}: has no blob {blob!r}{did_you_mean(blob, net.shapes)}", option="blob"
        )
    pixels = prepare(net.about, listed, net=net.name)
    dtype, device = net.computes_in
    wanted = dict.fromkeys((blob, scored, output))
    with torch.inference_mode(False), torch.enable_grad(), as_loaded(net):
        values = torch.from_numpy(pixels).to(device, dtype).requires_grad_()
        found = net.run({net.image_input(): values}, wanted, with_loss=False).blobs
        features, flat, shown = found[blob], found[scored].flatten(), found[output].flatten()
        if features.dim() != 4:
            raise GraphError(
                f"blob {blob!r}: has shape {list(features.shape)}; a heat map needs channels x height x width",
                option="blob",
            )
        at = _index(net, output, shown, index)
        (slope,) = (
            torch.autograd.grad(flat[at], features, allow_unused=True) if flat.requires_grad else (None,)
        )
    if slope is None:
        raise GraphError(
            f"blob {blob!r}: output {output!r} does not depend on it; give one before it", option="blob"
        )
    weights = slope.float().mean(dim=(2, 3), keepdim=True)
    heat = (weights * features.detach().float()).sum(dim=1)[0].clamp(min=0)
    return HeatMap(heat.cpu().numpy(), blob, output, at, float(shown[at].detach()))


def spatial_blobs(net: CaffeNet) -> tuple[str, ...]:
    """Return the blobs that have a height and a width over 1, in the net's order, without its input."""
    inputs = set(net.inputs)
    return tuple(
        name
        for name in dict.fromkeys(net.graph.names.values())
        if len(net.shapes.get(name, ())) == 4 and max(net.shapes[name][2:]) > 1 and name not in inputs
    )


def _default_output(net: CaffeNet) -> str:
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


def _index(net: CaffeNet, output: str, values: torch.Tensor, index: int | None) -> int:
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
