"""`Net`: a Caffe net as pycaffe shows it, run layer by layer on blobs that scripts read and write."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..caffe.caffemodel import write_caffemodel
from ..caffe.graph import Graph
from ..caffe.graph_build import Choices, choose_graph
from ..caffe.hdf5_model import write_hdf5_model
from ..caffe.upgrade import upgrade_net
from ..errors import IlgnetError, WeightsError, did_you_mean
from ..layers.support.registry import resolve_kinds
from ..runtime.find import read_net_text
from ..runtime.load import open_weights, read_matrices
from ..runtime.net import CaffeNet, float_arrays
from ..runtime.plan import plan_net
from ..runtime.weights import blob_counts
from ..schema import caffe_pb2 as pb
from ..train.layout import plan_backward, plan_layout, rates
from ..train.nets import starting_weights
from ..train.trained_net import net_message
from . import modes
from .blob import Blob, BlobVec
from .build import Data, build_steps, parameter_blobs
from .failures import Failure, NoSuchBlob, UnknownLayer, WrongCall, WrongValue
from .python_layer import Layer, register_user_layers
from .steps import MemoryStep, PythonStep, Step

PathLike = str | os.PathLike[str]
Callback = Callable[[int], object]


class NetLayer(Layer):
    """A layer of a net: its type and its parameters."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.type, self.blobs = step.type, step.params

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Do nothing: the net has set it up."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give its tops in the net the shapes that follow from its bottoms."""
        self._step.reshape()


class Net:
    """A net in a phase: ``Net(prototxt, phase, weights=caffemodel)``.

    ``blobs`` and ``params`` hold its values and parameters.  As in Caffe each layer is run with its Split layers, so that
    `blobs` and `layers` have these too; values stay after a pass, and a pass may start or end at any layer.
    """

    caffe_net: CaffeNet  # the layers and their parameters

    def __init__(self, network_file: PathLike, *given: Any, **options: Any) -> None:
        """Take pycaffe's forms: (file, phase, level=0, stages=None, weights=None) and, older, (file, weights, phase).

        Without weights the fillers draw them.  Raises RuntimeError for a file that is not there, and IlgnetError.
        """
        phase, level, stages, weights = _arguments(given, options)
        path = os.fspath(network_file)
        _check_file(path)
        if weights is not None:
            _check_file(weights)
        held = open_weights(weights).layers if weights is not None else ()
        text = resolve_kinds(upgrade_net(read_net_text(path)), blob_counts(held))
        graph = choose_graph(text, Choices(phase, level, stages))
        self._build(graph, Path("."), () if weights is None else (weights,))

    @classmethod
    def of_graph(
        cls, graph: Graph, root: Path, weights: Iterable[PathLike] = (), *, seed: int | None = None,
        share: Net | None = None,
    ) -> Net:  # fmt: skip
        """Return the net of a graph; with ``share`` it uses that net's weights (`share_with`)."""
        net = cls.__new__(cls)
        net._build(graph, root, weights, seed=seed, share=share)
        return net

    def _build(
        self, graph: Graph, root: Path, weights: Iterable[PathLike], *, seed: int | None = None,
        share: Net | None = None,
    ) -> None:  # fmt: skip
        register_user_layers(graph)
        seed = modes.next_seed() if seed is None else seed
        data = Data(graph, root, seed)
        plan = plan_net(graph, data.shapes)
        arrays: dict[str, Sequence[np.ndarray]] = dict(starting_weights(plan, weights, modes.log))
        if share is not None:  # so that the fillers need not draw what is replaced
            arrays |= {
                name: own for name, own in float_arrays(share.caffe_net).items() if plan.blobs.get(name)
            }
        self.caffe_net = read_matrices(CaffeNet(plan, arrays, seed=seed, carry_state=True))
        force = graph.text.force_backward
        layers = self.caffe_net.layers_by_name()
        for node in graph.layers:
            layer = layers[node.name]
            for index, rate in enumerate(rates(plan, node)):
                stored = layer.stored_blob(layer.blob_names[index])
                learned = plan.blobs[node.name][index].learned
                stored.requires_grad_(bool(rate) or (learned and force))
        self.layout = plan_layout(plan)
        self.backward_plan = plan_backward(plan, self.layout)
        self._param_blobs = parameter_blobs(self.caffe_net)
        self._steps, self._blobs = build_steps(
            self.caffe_net, self.layout, self.backward_plan, self._param_blobs, data
        )
        self._learnables = [one.tensor for one in self.caffe_net.learnables()]
        self._callbacks: dict[str, list[Callback]] = {"bf": [], "af": [], "bb": [], "ab": []}
        self._set_loss_weights()
        self._name_parts()
        for node in graph.layers:
            if node.type == "HDF5Output":
                modes.log(f"{node.name} ({node.type}): writes no file here; read its blobs from net.blobs")
        if share is not None:
            self.share_with(share)

    def _name_parts(self) -> None:
        layout = self.layout
        names = layout.blobs
        self.name = self.caffe_net.graph.name
        self._layer_names = [place.name for place in layout.places]
        self._blob_names = list(names)
        self._inputs, self._outputs = list(layout.inputs), list(layout.outputs)
        self._blob_loss_weights = layout.loss_weights()
        self.blobs: OrderedDict[str, Blob] = OrderedDict(zip(names, self._blobs, strict=True))
        self.blob_loss_weights = OrderedDict(zip(names, self._blob_loss_weights, strict=True))
        self.layers: list[Any] = [
            step.user if isinstance(step, PythonStep) else NetLayer(step) for step in self._steps
        ]
        self.layer_dict: OrderedDict[str, Any] = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self.params: OrderedDict[str, BlobVec] = OrderedDict(
            (name, step.params)
            for name, step in zip(self._layer_names, self._steps, strict=True)
            if step.params
        )
        self.inputs = [names[number] for number in self._inputs]
        self.outputs = [names[number] for number in self._outputs]
        self.top_names = OrderedDict(
            (place.name, [names[top] for top in place.tops]) for place in layout.places
        )
        self.bottom_names = OrderedDict(
            (place.name, [names[bottom] for bottom in place.bottoms]) for place in layout.places
        )

    def _set_loss_weights(self) -> None:
        """Give each loss its weight as gradient, as `Layer::SetLossWeights`."""
        for place in self.layout.places:
            for top, weight in zip(place.tops, place.loss_weights, strict=True):
                if weight:
                    self._blobs[top].diff[...] = weight

    def __repr__(self) -> str:
        return f"<Net {self.name!r}, phase {self.caffe_net.graph.phase}, {len(self.layers)} layers>"

    # ------------------------------------------------------------------ passes

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: Any,
    ) -> dict[str, np.ndarray]:
        """Run the layers from ``start`` to ``end``, both included, and return the outputs (or ``end``'s tops) and ``blobs``.

        ``inputs`` are written to the input blobs first.  What is returned are views of the blobs, which the next pass
        changes.
        """
        first = 0 if start is None else self._layer_index(start)
        last = len(self._steps) - 1 if end is None else self._layer_index(end)
        wanted = [*(self.outputs if end is None else self.top_names[end]), *_listed(blobs, "blobs")]
        self._check_blobs(wanted)
        if inputs:
            self._write(inputs, self.inputs, "Input", "inputs", lambda blob: blob.data)
        self._forward(first, last)
        return {name: self.blobs[name].data for name in dict.fromkeys(wanted)}

    def _forward(self, first: int, last: int) -> float:
        """Run layers by number; return the weighted sum of the losses in them."""
        before, after = self._callbacks["bf"], self._callbacks["af"]
        loss = 0.0
        with torch.no_grad():
            for number in range(first, last + 1):
                for callback in before:
                    callback(number)
                self._steps[number].forward()
                place = self.layout.places[number]
                if any(place.loss_weights):
                    loss += self._loss_of(number)
                for callback in after:
                    callback(number)
        return loss

    def _loss_of(self, number: int) -> float:
        place = self.layout.places[number]
        loss = 0.0
        for top, weight in zip(place.tops, place.loss_weights, strict=True):
            if weight:
                loss += weight * float(self._blobs[top].tensor().sum())
        return loss

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **outputs: Any,
    ) -> dict[str, np.ndarray]:
        """Run the backward passes from ``start`` down to ``end``; return the gradients of the inputs and of ``diffs``.

        ``outputs`` are gradients to write to the output blobs first.  Gradients of parameters are added to what they
        hold; `clear_param_diffs` sets them to zero.
        """
        first = len(self._steps) - 1 if start is None else self._layer_index(start)
        last = 0 if end is None else self._layer_index(end)
        wanted = [*(self.inputs if end is None else self.bottom_names[end]), *_listed(diffs, "diffs")]
        self._check_blobs(wanted)
        if outputs:
            self._write(outputs, self.outputs, "Top diff", "outputs", lambda blob: blob.diff)
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in dict.fromkeys(wanted)}

    def _backward(self, first: int, last: int) -> None:
        """Run backward passes by layer number, downwards."""
        before, after = self._callbacks["bb"], self._callbacks["ab"]
        plan = self.backward_plan
        with torch.no_grad():
            for number in range(first, last - 1, -1):
                for callback in before:
                    callback(number)
                if plan.layers[number]:
                    self._steps[number].backward(plan.bottoms[number])
                for callback in after:
                    callback(number)

    def forward_backward(self) -> float:
        """Run both passes over the whole net and return the loss."""
        loss = self._forward(0, len(self._steps) - 1)
        self._backward(len(self._steps) - 1, 0)
        return loss

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """Run as many batches as the rows of ``inputs`` take, the last one padded, and return the rows' outputs."""
        rows: dict[str, list[np.ndarray]] = {
            name: [] for name in dict.fromkeys([*self.outputs, *_listed(blobs, "blobs")])
        }
        for batch in self._batches(inputs):
            for name, values in self.forward(blobs, None, None, **batch).items():
                rows[name].extend(values.copy())
        return _trimmed(rows, inputs)

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **given: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run forward and backward in batches; ``given`` are inputs and, by the names of outputs, gradients."""
        outs: dict[str, list[np.ndarray]] = {
            name: [] for name in dict.fromkeys([*self.outputs, *_listed(blobs, "blobs")])
        }
        gradients: dict[str, list[np.ndarray]] = {
            name: [] for name in dict.fromkeys([*self.inputs, *_listed(diffs, "diffs")])
        }
        forward = list(self._batches({name: given[name] for name in self.inputs if name in given}))
        backward = list(self._batches({name: given[name] for name in self.outputs if name in given}))
        backward += [{}] * (len(forward) - len(backward))
        for inputs, tops in zip(forward, backward, strict=True):
            for name, values in self.forward(blobs, None, None, **inputs).items():
                outs[name].extend(values.copy())
            for name, values in self.backward(diffs, None, None, **tops).items():
                gradients[name].extend(values.copy())
        return _trimmed(outs, given), _trimmed(gradients, given)

    def _batches(self, arrays: Mapping[str, Any]) -> Iterator[dict[str, np.ndarray]]:
        """Yield arrays in batches of the net's own size; the last one is padded with zeros."""
        if not arrays:
            return
        size = self._blobs[0].num
        count = len(next(iter(arrays.values())))
        for start in range(0, count, size):
            part = {name: np.asarray(rows[start : start + size]) for name, rows in arrays.items()}
            missing = size - len(next(iter(part.values())))
            if missing:
                part = {
                    name: np.concatenate([rows, np.zeros((missing, *rows.shape[1:]))])
                    for name, rows in part.items()
                }
            yield part

    def _write(
        self, values: Mapping[str, Any], names: Sequence[str], what: str, where: str,
        of: Callable[[Blob], np.ndarray],
    ) -> None:  # fmt: skip
        if set(values) != set(names):
            raise IlgnetError(
                f"{what} blob arguments do not match net {where}: given {', '.join(values)}; "
                f"give {', '.join(names) or 'none'}"
            )
        for name, value in values.items():
            array, held = np.asarray(value), of(self.blobs[name])
            if not array.ndim or not held.ndim or len(array) != len(held):
                raise IlgnetError(
                    f"{what} is not batch sized: {name} has shape {array.shape}; give {held.shape}, or reshape the blob"
                )
            try:
                held[...] = array
            except ValueError as error:
                raise WrongValue(
                    f"{name}: shape {array.shape} does not fit the blob's {held.shape}; reshape one of them"
                ) from error

    def _layer_index(self, name: str) -> int:
        try:
            return self._layer_names.index(name)
        except ValueError:
            hint = did_you_mean(str(name), self._layer_names)
            raise UnknownLayer(
                f"{name!r} is not a layer of net {self.name!r}{hint}; see net._layer_names"
            ) from None

    def _check_blobs(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.blobs:
                hint = did_you_mean(str(name), self._blob_names)
                raise NoSuchBlob(f"{name!r} is not a blob of net {self.name!r}{hint}; see net.blobs")

    def before_forward(self, callback: Callback) -> None:
        """Call ``callback(number)`` before each layer's forward pass."""
        self._callbacks["bf"].append(callback)

    def after_forward(self, callback: Callback) -> None:
        """Call ``callback(number)`` after each layer's forward pass."""
        self._callbacks["af"].append(callback)

    def before_backward(self, callback: Callback) -> None:
        """Call ``callback(number)`` before each layer's backward pass."""
        self._callbacks["bb"].append(callback)

    def after_backward(self, callback: Callback) -> None:
        """Call ``callback(number)`` after each layer's backward pass."""
        self._callbacks["ab"].append(callback)

    @contextmanager
    def watched(self, forward: Callback, backward: Callback) -> Iterator[None]:
        """Call functions after each layer's passes for a while, with the layer's number."""
        added = (("af", forward), ("ab", backward))
        for when, callback in added:
            self._callbacks[when].append(callback)
        try:
            yield
        finally:
            for when, callback in added:
                self._callbacks[when].remove(callback)

    # ------------------------------------------------------------------ shapes, inputs

    def reshape(self) -> None:
        """Give all blobs the shapes that follow from those of the inputs; memory is taken when it is used."""
        with torch.no_grad():
            for step in self._steps:
                step.reshape()

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Let the net's MemoryData layer, its first, read these rows; the arrays are used as they are, without a copy."""
        if not isinstance(data, np.ndarray) or not isinstance(labels, np.ndarray):
            raise WrongCall("set_input_arrays: give two arrays of NumPy, data and labels")
        if labels.ndim == 1:
            labels = np.ascontiguousarray(labels[:, np.newaxis, np.newaxis, np.newaxis])
        self._set_input_arrays(data, labels)

    def _set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        step = self._steps[0]
        if not isinstance(step, MemoryStep):
            raise Failure("set_input_arrays may only be called if the first layer is a MemoryDataLayer")
        size, *shape = step.batch
        _check_array("data array", data, shape)
        _check_array("labels array", labels, [1, 1, 1])
        if len(data) != len(labels):
            raise Failure("data and labels must have the same first dimension")
        if not len(data) or len(data) % size:
            raise Failure(
                f"first dimensions of input arrays must be a multiple of batch size: {len(data)} rows, batch size {size}"
            )
        step.set_arrays(data, labels)

    # ------------------------------------------------------------------ weights

    def clear_param_diffs(self) -> None:
        """Set the gradients of all parameters to zero, in place."""
        for tensor in self._learnables:
            if tensor.grad is not None:
                tensor.grad.zero_()

    def copy_from(self, trained_file: PathLike) -> None:
        """Copy the weights of layers with the same names from a file; both kinds of layers that only one has are logged."""
        path = os.fspath(trained_file)
        _check_file(path)
        found = starting_weights(self.caffe_net.plan, [path], modes.log)
        layers = self.caffe_net.layers_by_name()
        for name, arrays in found.items():
            layer = layers[name]
            for blob_name, array in zip(layer.blob_names, arrays, strict=True):
                values = layer.blob(blob_name).detach().numpy()
                np.copyto(values, np.asarray(array).reshape(values.shape))
        for name in self.params:
            if name not in found:
                modes.log(f"{name}: not in {path}; it keeps its values")

    def load_hdf5(self, trained_file: PathLike) -> None:
        """Copy weights from Caffe's HDF5 form, as `copy_from`."""
        self.copy_from(trained_file)

    def share_with(self, other: Net) -> None:
        """Use the memory of another net's weights, layer by layer of the same name.

        Raises WeightsError for other shapes.
        """
        for name, blobs in other.params.items():
            mine = self.params.get(name)
            if mine is None:
                modes.log(f"Ignoring source layer {name}")
                continue
            if [blob.shape for blob in mine] != [blob.shape for blob in blobs]:
                raise WeightsError(
                    f"layer {name}: its blobs have other shapes in the two nets; share nets of the same layers"
                )
            for own, theirs in zip(mine, blobs, strict=True):
                own.data_memory.share(theirs.data_memory, theirs.shape)

    def save(self, filename: PathLike) -> None:
        """Write the net and its weights as a caffemodel; the file is complete or absent."""
        write_caffemodel(filename, net_message(self.caffe_net), float_arrays(self.caffe_net))

    def save_hdf5(self, filename: PathLike) -> None:
        """Write the weights in Caffe's HDF5 form."""
        net = self.caffe_net
        write_hdf5_model(filename, net_message(net), float_arrays(net), owners=net.plan.owners)

    # ------------------------------------------------------------------ names by number

    def _top_ids(self, layer: int) -> list[int]:
        return list(self.layout.places[layer].tops)

    def _bottom_ids(self, layer: int) -> list[int]:
        return list(self.layout.places[layer].bottoms)


def _arguments(
    given: Sequence[Any], options: Mapping[str, Any]
) -> tuple[str, int, tuple[str, ...], str | None]:
    """Return phase, level, stages and weights of a call of `Net`.  Raises TypeError for a form that pycaffe lacks."""
    names: tuple[str, ...] = ("phase", "level", "stages", "weights")
    if given and isinstance(given[0], str | os.PathLike):
        names = ("weights", "phase")
        if len(given) == 2:
            warnings.warn(
                "Net(file, weights, phase) is deprecated; write Net(file, phase, weights=weights)",
                DeprecationWarning, stacklevel=3,
            )  # fmt: skip
    values = dict(zip(names, given, strict=False))
    repeated = values.keys() & options.keys()
    unknown = options.keys() - {"phase", "level", "stages", "weights"}
    values.update(options)
    phase, level, weights = values.get("phase"), values.get("level", 0), values.get("weights")
    stages = values.get("stages") or ()
    right = (
        len(given) <= len(names) and not repeated and not unknown and isinstance(level, int)
        and (weights is None or isinstance(weights, str | os.PathLike)) and not isinstance(stages, str)
    )  # fmt: skip
    if not right or not isinstance(phase, int) or phase not in (pb.TRAIN, pb.TEST):
        raise WrongCall(
            "give Net(file, phase, level=0, stages=[...], weights=file), the phase as caffe.TRAIN or caffe.TEST"
        )
    return pb.Phase.Name(phase), level, tuple(stages), None if weights is None else os.fspath(weights)


def _listed(names: Sequence[str] | None, what: str) -> Sequence[str]:
    if isinstance(names, str):
        raise WrongCall(f"{what}={names!r}: give a list of names, as [{names!r}]")
    return names or ()


def _check_file(path: str) -> None:
    if not os.access(path, os.R_OK):
        raise Failure(f"Could not open file {path}; check the path")


def _check_array(name: str, array: np.ndarray, shape: Sequence[int]) -> None:
    if not array.flags.c_contiguous:
        raise Failure(f"{name} must be C contiguous")
    if array.ndim != 4:
        raise Failure(f"{name} must be 4-d")
    if array.dtype != np.float32:
        raise Failure(f"{name} must be float32")
    for axis, (what, wanted) in enumerate(
        zip(("number of channels", "height", "width"), shape, strict=True), 1
    ):
        if array.shape[axis] != wanted:
            raise Failure(f"{name} has wrong {what}: {array.shape[axis]}, not {wanted}")


def _trimmed(rows: Mapping[str, list[np.ndarray]], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return rows as arrays, without those of the padding."""
    count = len(next(iter(given.values()))) if given else 0
    return {name: np.asarray(values[:count] if count else values) for name, values in rows.items()}
