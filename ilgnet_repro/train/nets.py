"""The nets of a solver: built, initialized from weights files and fillers, and sharing parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ..caffe.graph import Graph
from ..caffe.named_files import NamedFiles
from ..errors import SolverError, WeightsError
from ..layers.support.base import Layer, Shape
from ..runtime.load import open_weights, read_matrices
from ..runtime.multipliers import Learnable
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.plan import NetPlan, plan_net
from ..runtime.weights import fit_weights, take_weights

Note = Callable[[str], None]


def starting_weights(
    plan: NetPlan, files: Iterable[str | os.PathLike[str]], note: Note
) -> dict[str, list[np.ndarray]]:
    """Gather the blobs of several weights files by layer name, as Caffe's `CopyTrainedLayersFrom`.

    Later files win.  Layers that no file has are missing from the result; layers that the net lacks are
    reported to ``note``.  Raises WeightsError, by layer name, for blobs of another shape.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    for file in files:
        layers = open_weights(file).layers
        fit = fit_weights(plan.blobs, layers, plan.owners)
        for name in fit.extra:
            note(f"Ignoring source layer {name}")
        found = take_weights(
            plan.blobs, layers, source=str(file), allow_missing=True, owners=plan.owners, fit=fit
        )
        arrays.update(found)
        for (
            (name, index),
            owner,
        ) in plan.owners.items():  # a later copy of a shared blob is that of all sharers
            sharers = [(owner.layer, owner.index), (name, index)]
            latest = [found[layer][number] for layer, number in sharers if layer in found]
            for layer, number in sharers if latest else ():
                if layer in arrays:
                    shape = plan.blobs[layer][number].shape
                    arrays[layer] = [
                        *arrays[layer][:number],
                        latest[0].reshape(shape),
                        *arrays[layer][number + 1 :],
                    ]
    return arrays


def build_net(
    graph: Graph,
    shapes: Mapping[str, Shape],
    weights: Iterable[str | os.PathLike[str]] = (),
    *,
    seed: int,
    note: Note = lambda text: None,
    files: NamedFiles | None = None,
) -> CaffeNet:
    """Build a net to be trained: trained layers from ``weights``, all others from their fillers.

    ``files`` finds the files that the net names.
    """
    plan = plan_net(graph, shapes)
    arrays = starting_weights(plan, weights, note)
    # Copied: the files are memory-mapped, and training must not write to them.
    copies = {name: [np.array(blob, np.float32) for blob in blobs] for name, blobs in arrays.items()}
    return read_matrices(CaffeNet(plan, copies, seed=seed, carry_state=True), files)


def check_splitting(net: CaffeNet, processes: int, passes: int = 1) -> None:
    """Refuse to split the batches of a net with RNN or LSTM: a step needs the state of the step before it.

    Raises LayerError, which names the layer.
    """
    for what, count in (("processes", processes), ("passes (accumulate)", passes)):
        if count > 1 and net.stateful_layers:
            raise net.stateful_layers[0].error(
                f"carries its state from step to step and from pass to pass, so {count} {what} cannot share its "
                "batches; use one"
            )


def check_layer_names(net: CaffeNet) -> None:
    """Raise SolverError if a layer with weights has the same name as another layer, or both have none.

    Weights are stored and found by layer name; Caffe would write such a net but never read it again.
    """
    layers: dict[str, list[Layer]] = {}
    for node in net.graph:
        layers.setdefault(node.layer.name, []).append(net.layer(node.name))
    for name, namesakes in layers.items():
        if len(namesakes) < 2 or not any(layer.blobs for layer in namesakes):
            continue
        tops = ", ".join(
            f"{layer.node.type} writing {', '.join(layer.node.top_names) or 'nothing'}"
            for layer in namesakes[:3]
        )
        what = (
            f"{len(namesakes)} layers are named {name!r}" if name else f"{len(namesakes)} layers have no name"
        )
        raise SolverError(
            f"net {net.graph.name!r}: {what} ({tops}{', ...' if len(namesakes) > 3 else ''}); weights are stored by "
            "layer name, so give each layer a unique name"
        )


def build_test_net(
    graph: Graph, shapes: Mapping[str, Shape], train: CaffeNet, files: NamedFiles | None = None
) -> CaffeNet:
    """Build a net whose layers share the parameters of the train net's layers of the same name.

    Raises WeightsError if the shapes differ.  Layers that the train net lacks keep the values of their
    fillers, as in Caffe.
    """
    plan = plan_net(graph, shapes)
    shared = {name: blobs for name, blobs in train.params.items() if plan.blobs.get(name)}
    for name, blobs in shared.items():
        wanted = [spec.shape for spec in plan.blobs[name]]
        if [tuple(blob.shape) for blob in blobs] != wanted:
            raise WeightsError(
                f"layer {name} differs in the train net and a test net; give its blobs the same shapes"
            )
    arrays = float_arrays(train)
    values = {name: arrays[name] for name in shared}
    net = read_matrices(CaffeNet(plan, values, seed=0, carry_state=True), files)
    for name in shared:
        net.layer(name).tie_blobs(train.layer(name))
    return net


def learnables(net: CaffeNet) -> list[Learnable]:
    """Return the parameters a solver updates, in the order of Caffe's `learnable_params`.

    Those with a rate of 0 are listed (solver states have arrays for them) but get no gradient.
    """
    found = net.learnables()
    for one in found:
        if isinstance(one.tensor, torch.nn.Parameter):
            one.tensor.requires_grad_(one.lr_mult != 0)
    return found
