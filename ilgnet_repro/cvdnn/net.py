"""`Net` and `Layer` with the methods of OpenCV 4's, on a `CaffeNet`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import opencv as cv2
from ..caffe.blob import LARGEST_COUNT
from ..caffe.graph import Node, Value
from ..errors import GraphError, IlgnetError, did_you_mean
from ..runtime.calls import names as listed
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..runtime.plan import NetPlan
from . import constants

Shape = Sequence[int]
INPUTS = "__NetInputLayer__"  # the type of layer 0, which holds the inputs
DETECTIONS = "DetectionOutput"
_FLOAT = 4  # bytes
_GPU = ("CUDA", "CUDA_FP16")

# What OpenCV's Net has for nets that are made in code or run by other engines, and what to do instead.
_ABSENT = {
    **dict.fromkeys(
        ("addLayer", "addLayerToPrev", "connect", "registerOutput"),
        "layers come from the prototxt; edit that",
    ),
    **dict.fromkeys(("dump", "dumpToFile", "dumpToPbtxt"), "use `ilgnet audit` or caffe.draw"),
    **dict.fromkeys(("quantize", "getInputDetails", "getOutputDetails"), "use `ilgnet convert --quantize`"),
    "forwardAsync": "call forward in a thread",
    "readFromModelOptimizer": "OpenVINO's files are not Caffe's",
    "setHalideScheduler": "torch computes the net",
}


class NoSuchName(IlgnetError, AttributeError):
    """A name of cv2.dnn that is not here, with the reason."""


class Layer:
    """A layer of a `Net`: ``name``, ``type``, and its parameters as arrays, ``blobs``."""

    def __init__(self, name: str, type_: str, tensors: Sequence[Tensor], outputs: Sequence[str]) -> None:
        """Take what is known of the layer."""
        self.name, self.type, self.preferableTarget = name, type_, constants.DNN_TARGET_CPU
        self._tensors, self._outputs = tensors, list(outputs)

    @property
    def blobs(self) -> tuple[np.ndarray, ...]:
        """The parameters in Caffe's order and shape; copies, as OpenCV's: `Net.setParam` replaces them."""
        return tuple(one.detach().cpu().numpy().copy() for one in self._tensors)

    def outputNameToIndex(self, outputName: str) -> int:
        """Return the position of a top, -1 if the layer has none of that name."""
        return self._outputs.index(outputName) if outputName in self._outputs else -1

    def __repr__(self) -> str:
        """Name and type."""
        return f"Layer({self.name!r}, {self.type!r})"


class Net:
    """A net as `readNetFromCaffe` returns it: `setInput`, then `forward`."""

    def __init__(self, net: CaffeNet | None = None, *, has_weights: bool = True) -> None:
        """Hold a net; without one it is `empty`.  A net that was read without weights runs only if it needs none."""
        self._held, self._has_weights = net, has_weights
        self._given: dict[str, Tensor] = {}
        self._ticks = 0.0
        self._backend, self._target = constants.DNN_BACKEND_DEFAULT, constants.DNN_TARGET_CPU
        graph = None if net is None else net.graph
        self._nodes: list[Node] = (
            []
            if net is None or graph is None
            else [one for one in graph.layers if not net.layer(one.name).is_input]
        )
        self._layer_names = _names_of(self._nodes)
        self._inputs = [] if net is None else list(net.inputs)
        self._names = dict(
            zip(self._inputs, self._inputs, strict=True)
        )  # the caller's name of each input: the net's

    def __getattr__(self, name: str) -> Any:
        if name in _ABSENT:
            raise NoSuchName(f"Net.{name} is not supported: {_ABSENT[name]}")
        raise AttributeError(f"Net has no attribute {name!r}")

    @property
    def _net(self) -> CaffeNet:
        if self._held is None:
            raise GraphError("the net is empty; read one with readNetFromCaffe")
        return self._held

    def empty(self) -> bool:
        """Whether there are no layers."""
        return not self._nodes

    # ------------------------------------------------------------------ running

    def setInputsNames(self, inputBlobNames: Sequence[str]) -> None:
        """Give the inputs other names, in their order."""
        if len(inputBlobNames) != len(self._inputs):
            raise GraphError(f"{len(inputBlobNames)} names for {len(self._inputs)} inputs; give one each")
        self._names = dict(zip(map(str, inputBlobNames), self._inputs, strict=True))
        self._given = {}

    def setInput(
        self, blob: Any, name: str = "", scalefactor: float = 1.0, mean: Sequence[float] | float = ()
    ) -> None:
        """Set an input, the first if no name is given, to ``(blob - mean) * scalefactor``; ``mean`` is per channel."""
        input_ = self._input(name)
        try:
            values = np.array(blob, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise IlgnetError(f"input {input_!r}: is not an array of numbers ({error})") from error
        stated = np.ravel(np.asarray(mean, dtype=np.float32)) if np.size(mean) else np.zeros(0, np.float32)
        if stated.any():
            if values.ndim != 4 or (len(stated) < values.shape[1] and len(stated) != 1):
                shape = tuple(values.shape)
                raise IlgnetError(
                    f"input {input_!r}: {len(stated)} means for a blob of {shape}; give one per channel"
                )
            values -= (stated if len(stated) == 1 else stated[: values.shape[1]])[:, None, None]
        if scalefactor != 1:
            values *= np.float32(scalefactor)
        self._given[input_] = torch.from_numpy(values)

    def setInputShape(self, inputName: str, shape: Shape) -> None:
        """State the shape of an input, as the shape of the next blob: nothing is computed."""
        input_, stated = self._input(inputName), tuple(map(int, shape))
        if min(stated, default=0) < 0 or prod(stated) > LARGEST_COUNT:
            raise GraphError(
                f"input {input_!r}: {stated} is not the shape of a blob; give lengths of at least 0"
            )
        self._given[input_] = torch.zeros(stated)

    def _input(self, name: str) -> str:
        if not self._inputs:
            raise GraphError(f"net {self._net.name!r}: has no inputs")
        if not name:
            return self._inputs[0]
        if name not in self._names:
            known = list(self._names)
            raise GraphError(
                f"input {name!r} is not in the net{did_you_mean(name, known)}; it has {listed(known)}"
            )
        return self._names[name]

    def forward(
        self, *given: Any, outputName: str = "", outBlobNames: Iterable[str] = (), outputBlobs: Any = None
    ) -> Any:
        """Run the net: ``forward()`` returns the last layer's output, ``forward(name)`` that of a layer.

        ``forward([name, ...])`` returns a tuple of them.  Names are those of layers, as in OpenCV; where there is no such
        layer, of blobs.  Arrays to write to (``outputBlobs``) are not needed: with them all outputs of one layer are
        returned, as a tuple.
        """
        for one in given:
            if isinstance(one, str):
                outputName = one
            elif _is_names(one):
                outBlobNames = list(one)
            elif one is not None:
                outputBlobs = one
        wanted = list(outBlobNames)
        if wanted:
            return tuple(self._outputs([self._value(name) for name in wanted]))
        if outputBlobs is not None:
            node = self._node(outputName or self._last())
            return tuple(self._outputs(list(node.tops)))
        return self._outputs([self._value(outputName or self._last())])[0]

    def forwardAndRetrieve(self, outBlobNames: Iterable[str]) -> tuple[tuple[np.ndarray, ...], ...]:
        """Return all outputs of each layer."""
        nodes = [self._node(name) for name in outBlobNames]
        found = iter(self._outputs([top for node in nodes for top in node.tops]))
        return tuple(tuple(next(found) for _ in node.tops) for node in nodes)

    def _last(self) -> str:
        if not self._nodes:
            raise GraphError("the net is empty; read one with readNetFromCaffe")
        return self._layer_names[-1]

    def _named(self, name: str) -> Node | None:
        """The layer that OpenCV calls so, or else that of this name in the net."""
        by_name = {node.name: node for node in self._nodes} | dict(
            zip(self._layer_names, self._nodes, strict=True)
        )
        return by_name.get(name)

    def _node(self, name: str) -> Node:
        node = self._named(name)
        if node is not None:
            return node
        known = self.getLayerNames()
        raise GraphError(
            f"layer {name!r} is not in the net{did_you_mean(name, known)}; it has {listed(known)}"
        )

    def _value(self, name: str) -> Value:
        """The first output of a layer, or the last value of a blob."""
        graph, node = self._net.graph, self._named(name)
        if node is None and name in graph.names.values():
            return graph.value(name)
        node = self._node(name) if node is None else node
        if not node.tops:
            raise GraphError(f"{name} ({node.type}): has no output")
        return node.tops[0]

    def _outputs(self, values: Sequence[Value]) -> list[np.ndarray]:
        net = self._net
        self._check_runnable()
        wanted = [net.graph.names[value] for value in values]
        detections = {
            value: node for node in self._nodes if node.type == DETECTIONS for value in node.tops[:1]
        }
        batches = [net.graph.names[detections[value].bottoms[0]] for value in values if value in detections]
        started = time.perf_counter()
        with torch.inference_mode(), as_loaded(net):
            blobs = net(self._fed(wanted), blobs=list(dict.fromkeys([*wanted, *batches])))
        self._ticks = (time.perf_counter() - started) * float(cv2.getTickFrequency())
        # A layer that only passes values on (Dropout, Reshape) returns the memory of the input.
        fed = {one.data_ptr() for one in self._given.values()}
        arrays = []
        for value, name in zip(values, wanted, strict=True):
            found = blobs[name].float().cpu()
            array = (found.clone() if found.data_ptr() in fed else found).numpy()
            if value in detections:
                node = detections[value]
                array = _as_opencv(array, len(blobs[net.graph.names[node.bottoms[0]]]), node)
            arrays.append(array)
        return arrays

    def _fed(self, wanted: Sequence[str]) -> dict[str, Tensor]:
        """The inputs that were set.  Raises GraphError unless all that ``wanted`` blobs need are among them."""
        for name in self._net.inputs_for(wanted):
            if name not in self._given and name in self._inputs:
                raise GraphError(f"input {name!r} has no value; call setInput(blob, {name!r})")
        return dict(self._given)

    def _check_runnable(self) -> None:
        if not self._has_weights and any(self._net.params.values()):
            name = next(name for name, blobs in self._net.params.items() if blobs)
            raise GraphError(
                f"net {self._net.name!r}: was read without weights, which {name} needs; give readNetFromCaffe the caffemodel"
            )

    # ------------------------------------------------------------------ layers

    def getLayerNames(self) -> tuple[str, ...]:
        """The layers in Caffe's order, without the inputs."""
        return tuple(self._layer_names)

    def getLayersCount(self, layerType: str) -> int:
        """The number of layers of a type, as in the prototxt."""
        return sum(node.type == layerType for node in self._nodes)

    def getLayerTypes(self) -> tuple[str, ...]:
        """The types of the layers, that of the inputs included, each once in alphabetical order."""
        return tuple(sorted({node.type for node in self._nodes} | {INPUTS}))

    def getLayerId(self, layer: str) -> int:
        """The number of a layer, from 1; -1 if there is none of that name, 0 is the inputs."""
        node = self._named(str(layer))
        return -1 if node is None else self._nodes.index(node) + 1

    def getLayer(self, layerId: int | str) -> Layer:
        """Return a layer by its number or name."""
        if layerId in (0, "_input"):
            return Layer("_input", INPUTS, (), list(self._names))
        node = self._at(layerId)
        return Layer(
            self._layer_names[self._nodes.index(node)],
            node.type,
            self._net.layer(node.name).blobs,
            node.top_names,
        )

    def _at(self, layer: int | str) -> Node:
        if isinstance(layer, str):
            return self._node(layer)
        number = int(layer)
        if not 1 <= number <= len(self._nodes):
            raise GraphError(f"layer {number} is not in the net; it has layers 1 to {len(self._nodes)}")
        return self._nodes[number - 1]

    def getUnconnectedOutLayers(self) -> np.ndarray:
        """The numbers of the layers whose outputs no other layer reads."""
        read = {value for node in self._net.graph for value in node.bottoms} if self._held else set()
        return np.array(
            [number for number, node in enumerate(self._nodes, 1) if read.isdisjoint(node.tops)], np.int32
        )

    def getUnconnectedOutLayersNames(self) -> tuple[str, ...]:
        """The names of the layers whose outputs no other layer reads."""
        return tuple(self._layer_names[number - 1] for number in self.getUnconnectedOutLayers())

    def getParam(self, layer: int | str, numParam: int = 0) -> np.ndarray:
        """Return a parameter of a layer as an array."""
        return self._parameter(layer, numParam).detach().cpu().numpy().copy()

    def setParam(self, layer: int | str, numParam: int, blob: Any) -> None:
        """Replace a parameter of a layer; the shape stays."""
        parameter = self._parameter(layer, numParam)
        values = np.asarray(blob, dtype=np.float32)
        if values.size != parameter.numel():
            raise IlgnetError(
                f"{self._at(layer).name}: parameter {numParam} has shape {tuple(parameter.shape)}, not {values.shape}"
            )
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape).copy()))
        self._has_weights = True

    def _parameter(self, layer: int | str, number: int) -> Tensor:
        node = self._at(layer)
        blobs = self._net.layer(node.name).blobs
        if not 0 <= number < len(blobs):
            raise GraphError(
                f"{node.name} ({node.type}): has {len(blobs)} parameters, not one of number {number}"
            )
        found: Tensor = blobs[number]
        return found

    # ------------------------------------------------------------------ sizes and times

    def image_size(self) -> tuple[int, int]:
        """The width and height of the first input, (0, 0) if it is not a batch of images."""
        shape = self._net.shapes[self._inputs[0]] if self._inputs else ()
        return (shape[3], shape[2]) if len(shape) == 4 else (0, 0)

    def _planned(self, shapes: Any) -> NetPlan:
        """The plan for inputs of these shapes: one, or one per input."""
        given = [shapes] if len(shapes) and np.ndim(shapes[0]) == 0 else list(shapes)
        if len(given) != len(self._inputs):
            raise GraphError(f"{len(given)} shapes for {len(self._inputs)} inputs; give one each")
        return self._net.plan.at(
            {name: tuple(map(int, shape)) for name, shape in zip(self._inputs, given, strict=True)}
        )

    def getLayersShapes(
        self, netInputShapes: Any
    ) -> tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]:
        """Return the numbers of the layers, the inputs as number 0, and their bottoms' and tops' shapes."""
        plan = self._planned(netInputShapes)
        fed = tuple(plan.shapes[name] for name in self._inputs)
        below, above = [fed], [fed]
        for node in self._nodes:
            below.append(tuple(plan.value_shapes[value] for value in node.bottoms))
            above.append(tuple(plan.value_shapes[value] for value in node.tops))
        return tuple(range(len(below))), tuple(below), tuple(above)

    def getMemoryConsumption(self, *given: Any) -> tuple[int, int]:
        """Return the bytes of the weights and of the blobs for inputs of these shapes.

        ``getMemoryConsumption(shape)``, ``(shapes)``, or with a layer's number first, for that layer alone.
        """
        only, shapes = given if len(given) == 2 else (None, given[0])
        _, _, above = self.getLayersShapes(shapes)
        counted = range(len(above)) if only is None else [int(only)]
        weights = sum(
            one.numel() * _FLOAT
            for number in counted
            if number
            for one in self._net.layer(self._at(number).name).blobs
        )
        return weights, sum(prod(shape) * _FLOAT for number in counted for shape in above[number])

    def getFLOPS(self, *given: Any) -> int:
        """Return twice the multiply-adds of a pass for inputs of these shapes, or, with its number first, of one layer.

        OpenCV also counts comparisons, exponentials and the like, by rules of its own for each type.
        """
        only, shapes = given if len(given) == 2 else (None, given[0])
        plan = self._planned(shapes)
        nodes = self._nodes if only is None else [self._at(only)]
        return 2 * sum(plan.multiply_adds[node.name] for node in nodes)

    def getPerfProfile(self) -> tuple[int, np.ndarray]:
        """Return the ticks (`cv2.getTickCount`) of the last `forward`, and those of each layer in a pass made now."""
        layers = {node.name: self._net.layer(node.name) for node in self._nodes}
        ticks = dict.fromkeys(layers, 0.0)
        frequency = float(cv2.getTickFrequency())
        started: list[float] = []
        handles = []
        for name, layer in layers.items():

            def ended(*_: Any, name: str = name) -> None:
                ticks[name] = (time.perf_counter() - started.pop()) * frequency

            handles.append(layer.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())))
            handles.append(layer.register_forward_hook(ended))
        try:
            with torch.inference_mode(), as_loaded(self._net):
                self._check_runnable()
                self._net(self._fed(self._net.outputs))
        finally:
            for handle in handles:
                handle.remove()
        return int(self._ticks), np.array(list(ticks.values()))[:, None]

    # ------------------------------------------------------------------ where it runs

    def setPreferableBackend(self, backendId: int) -> None:
        """Take any backend of OpenCV: torch computes the net."""
        self._backend = _known(backendId, constants.BACKENDS, "backend")

    def setPreferableTarget(self, targetId: int) -> None:
        """Compute on the GPU for the CUDA targets, where torch has one, otherwise on the CPU, with a warning."""
        self._target = _known(targetId, constants.TARGETS, "target")
        name = next(one for one in constants.TARGETS if getattr(constants, one) == self._target)
        kind = name.removeprefix("DNN_TARGET_")
        on_gpu = kind in _GPU and torch.cuda.is_available()
        if kind != "CPU" and not on_gpu:
            warnings.warn(f"{name}: not available; the net is computed on the CPU in float32", stacklevel=2)
        elif kind == "CUDA_FP16":
            warnings.warn(f"{name}: the net is computed on the GPU in float32", stacklevel=2)
        if self._held is not None:
            self._held.to("cuda" if on_gpu else "cpu")

    def enableFusion(self, fusion: bool) -> None:
        """Accept it; fused or not, results are the same."""

    def enableWinograd(self, useWinograd: bool) -> None:
        """Accept it; torch chooses its algorithms."""


def _names_of(nodes: Sequence[Node]) -> list[str]:
    """Name layers as OpenCV 4 does: a convolution by its top, the second of two equal names with ``_1``."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for node in nodes:
        name = node.top_names[0] if node.type == "Convolution" else node.layer.name
        count = counts[name] = counts.get(name, -1) + 1
        names.append(f"{name}_{count}" if count else name)
    return names


def _as_opencv(rows: np.ndarray, images: int, node: Node) -> np.ndarray:
    """Return Caffe's detections in OpenCV's order and number: by image and falling score, zeros up to ``keep_top_k`` each.

    Caffe orders them by class, and states -1 for an image without any.
    """
    found = rows.reshape(-1, rows.shape[-1])
    found = found[found[:, 1] >= 0]
    found = found[np.lexsort((-found[:, 2], found[:, 0]))]
    most = images * max(node.layer.detection_output_param.keep_top_k, 0)
    filled = np.zeros((1, 1, max(most, len(found)), rows.shape[-1]), np.float32)
    filled[0, 0, : len(found)] = found
    return filled


def _known(number: Any, names: Iterable[str], what: str) -> int:
    numbers: Mapping[int, str] = {getattr(constants, name): name for name in names}
    if number not in numbers:
        raise IlgnetError(f"{what} {number!r} is not one of OpenCV's; use {', '.join(numbers.values())}")
    return int(number)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)
