"""The nets and the solver of a fine-tuning run: a body, a new last layer, the loss of the task, and the deploy net."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..caffe.cut import cut
from ..caffe.graph import Graph, Node, Value, unused_name
from ..errors import GraphError, excerpt
from ..runtime.net import CaffeNet
from ..schema import caffe_pb2 as pb
from ..zoo.builder import MSRA, XAVIER, NetBuilder, constant, gaussian

DATA, LABEL = "data", "label"
_LEARNED = {"InnerProduct": "inner_product_param", "Convolution": "convolution_param"}
_TO_ROWS = ("Pooling", "Flatten", "Reshape")  # what brings a map of scores to one row per image
_WIDTHS = (16, 32, 48, 64, 96, 128, 160, 192)
_LAST_SIDE = 5  # of the default net's last map
# Small: however large the features are, it starts near equal shares, or the mean score.
_NEW_WEIGHTS = gaussian(0.001)
_PER_ROUND = 50  # images of a val batch, about


@dataclass(frozen=True)
class Body:
    """A net without its input: ``layers`` compute ``top``, one row per image, by the new layer ``last``.

    ``blob`` is the input blob of ``shape`` (channels, height, width), ``replaced`` the layer that the new one stands for.
    """

    name: str
    blob: str
    shape: tuple[int, int, int]
    layers: tuple[pb.LayerParameter, ...]
    last: str
    top: str
    replaced: str = ""


# ---------------------------------------------------------------------- bodies


def small_body(size: int, outputs: int) -> Body:
    """A small net to train from scratch: convolutions with BatchNorm down to a map of 4 x 4, and two dense layers.

    The dense layers see where things are in the image, which composition depends on.
    """
    net = NetBuilder("small_net")
    top, side = DATA, size
    for number, width in enumerate(_WIDTHS, 1):
        name = f"conv{number}"
        kernel, stride = (5, 2) if number == 1 else (3, 1)
        top = net.convolution(
            name, top, width, kernel, pad=kernel // 2, stride=stride, bias=False, weight_filler=MSRA
        )
        net.in_place("BatchNorm", f"{name}/bn", top)
        net.in_place("Scale", f"{name}/scale", top, scale_param={"bias_term": True})
        net.relu(f"{name}/relu", top)
        if number > 1:
            top = net.pooling(f"pool{number}", top, "MAX", 2, stride=2)
        side = -(-side // 2)
        if side <= _LAST_SIDE and number > 1:
            break
    top = net.inner_product("fc1", top, 64, weight_filler=XAVIER)
    net.relu("fc1/relu", top)
    net.dropout("fc1/drop", top, 0.3)
    net.inner_product("fc2", top, outputs, weight_filler=_NEW_WEIGHTS, bias_filler=constant(0))
    return Body("small_net", DATA, (3, size, size), tuple(net.net.layer), "fc2", "fc2")


def tuned_body(net: CaffeNet, outputs: int, layer: str | None = None) -> Body:
    """The body of a trained net with its last learned layer replaced by one of ``outputs``; ``layer`` names another.

    Layers after it are left out, but for the pooling of a fully convolutional net.  Raises GraphError where the net
    does not end in one layer that can be replaced.
    """
    blob = net.image_input()
    shape = net.shapes[blob]
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise GraphError(
            f"{net.name}: input {blob!r} is {list(shape)}; only nets of images, N x 3 x H x W, are fine-tuned"
        )
    graph = net.graph
    last = _last_layer(graph, layer)
    features = last.bottoms[0]
    taken = {node.name for node in graph.nodes}
    layers: list[pb.LayerParameter] = []
    if features != graph.input_value(blob):
        part = cut(graph, [graph.names[features]], [blob])
        layers = [one for one in part.graph.text.layer if one.type != "Input"]
        for one in layers:  # the net of one phase learns and is tested
            del one.include[:], one.exclude[:]
        top = part.graph.outputs[0]
    else:
        top = blob
    name = unused_name(f"{last.name}_new", taken)
    new = pb.LayerParameter()
    new.CopyFrom(last.layer)
    new.name = name
    del (
        new.bottom[:],
        new.top[:],
        new.param[:],
        new.blobs[:],
        new.include[:],
        new.exclude[:],
        new.loss_weight[:],
    )
    new.bottom.append(top)
    new.top.append(name)
    param = getattr(new, _LEARNED[last.type])
    param.num_output = outputs
    param.weight_filler.CopyFrom(pb.FillerParameter(**_NEW_WEIGHTS))
    param.bias_filler.CopyFrom(pb.FillerParameter(**constant(0)))
    layers.append(new)
    top = name
    for node in _after(graph, last) if last.type == "Convolution" else ():
        kept = pb.LayerParameter()
        kept.CopyFrom(node.layer)
        del kept.bottom[:], kept.top[:], kept.include[:], kept.exclude[:]
        kept.bottom.append(top)
        top = unused_name(f"{node.name}_new", taken)
        kept.name = top
        kept.top.append(top)
        layers.append(kept)
    return Body(net.name, blob, (shape[1], shape[2], shape[3]), tuple(layers), name, top, last.name)


def _last_layer(graph: Graph, wanted: str | None) -> Node:
    if wanted is not None:
        node = graph.node(wanted)
        if node is None or node.type not in _LEARNED or len(node.bottoms) != 1:
            able = [one.name for one in graph.layers if one.type in _LEARNED and len(one.bottoms) == 1]
            raise GraphError(
                f"layer={wanted!r}: is not a layer that can be replaced; name one of {_listed(able[-5:])}",
                option="layer",
            )
        return node
    if len(graph.outputs) != 1:
        raise GraphError(
            f"net {graph.name!r} has {len(graph.outputs)} outputs ({_listed(graph.outputs)}); name the layer to replace "
            "as layer=",
            option="layer",
        )
    writers = {value: node for node in graph.nodes for value in node.tops}
    value: Value | None = graph.value(graph.outputs[0])
    while value is not None and (node := writers.get(value)) is not None:
        if node.type in _LEARNED and len(node.bottoms) == 1:
            return node
        if not node.bottoms:
            break
        if len(node.bottoms) > 1:
            raise GraphError(
                f"net {graph.name!r}: {node.name} ({node.type}) joins several branches before a layer with weights "
                "is found; name the layer to replace as layer=",
                option="layer",
            )
        value = node.bottoms[0]
    raise GraphError(f"net {graph.name!r}: has no layer with weights before its output; give another net")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(excerpt(name, 40) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _after(graph: Graph, last: Node) -> list[Node]:
    """The layers after the last one that are kept, in order."""
    kept, value = [], last.tops[0]
    while len(readers := graph.consumers(value)) == 1 and len(readers[0].bottoms) == 1:
        if readers[0].type in _TO_ROWS:
            kept.append(readers[0])
        value = readers[0].tops[0]
    return kept


# ---------------------------------------------------------------------- nets


@dataclass(frozen=True)
class Feeding:
    """How images reach the net: a mean per channel (BGR, or one for grey), a factor, and the side they are stored with.

    A side larger than the net's is cropped, at random in training.
    """

    mean: tuple[float, ...]
    scale: float
    stored: tuple[int, int]
    mirror: bool = True


@dataclass(frozen=True)
class Targets:
    """What the new layer learns: the task, the scores of a distribution, and the mean and deviation of train scores."""

    task: str
    outputs: int
    values: tuple[float, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0


def deploy_net(body: Body, targets: Targets) -> pb.NetParameter:
    """The net that scores: classes and distributions end in `prob`, scores and the mean of a distribution in `score`."""
    net = NetBuilder(body.name)
    net.layer("Input", body.blob, input_param={"shape": [{"dim": (1, *body.shape)}]})
    net.net.layer.extend(body.layers)
    _head(net, body, targets)
    return net.net


def _head(net: NetBuilder, body: Body, targets: Targets) -> None:
    taken = {name for layer in body.layers for name in (layer.name, *layer.top)} | {body.blob}
    if targets.task == "score":
        _score(net, body, targets, taken)
        return
    net.layer("Softmax", unused_name("prob", taken), body.top)
    if targets.task == "distribution":
        # A blob that another layer reads is no output in Caffe: the mean is computed from a Softmax of its own.
        shares = net.layer("Softmax", unused_name("shares", taken), body.top)
        tops = [unused_name(f"share{index}", taken) for index in range(1, targets.outputs + 1)]
        net.layer("Slice", unused_name("slice", taken), shares, tops=tops, slice_param={"axis": 1})
        net.layer(
            "Eltwise", unused_name("score", taken), tops,
            eltwise_param={"operation": "SUM", "coeff": targets.values},
        )  # fmt: skip


def _score(net: NetBuilder, body: Body, targets: Targets, taken: set[str]) -> str:
    """The layer learns scores of mean 0 and deviation 1, which this brings to their scale."""
    power = {"scale": targets.deviation, "shift": targets.mean}
    return net.layer("Power", unused_name("score", taken), body.top, power_param=power)


def train_val_net(
    body: Body, targets: Targets, feeding: Feeding, folder: str, batches: tuple[int, int]
) -> pb.NetParameter:
    """The net that learns, from the databases in ``folder``; ``batches`` are those of the train and val phase."""
    net = NetBuilder(body.name)
    taken = {name for layer in body.layers for name in (layer.name, *layer.top)} | {body.blob}
    label = unused_name(LABEL, taken)
    for phase, name, batch in (("TRAIN", "train", batches[0]), ("TEST", "val", batches[1])):
        crop = body.shape[1] if feeding.stored != body.shape[1:] else None
        transform = {
            **({"mirror": True} if phase == "TRAIN" and feeding.mirror else {}),
            **({"crop_size": crop} if crop else {}),
            **({"mean_value": feeding.mean} if any(feeding.mean) else {}),
            **({"scale": feeding.scale} if feeding.scale != 1 else {}),
        }
        float_labels = targets.task != "classes"
        net.layer(
            "Data", DATA, tops=[body.blob] if float_labels else [body.blob, label], phase=phase, transform_param=transform,
            data_param={"source": os.path.join(folder, f"{name}_lmdb"), "batch_size": batch, "backend": "LMDB"},
        )  # fmt: skip
        if float_labels:
            net.layer(
                "Data", "targets", tops=label, phase=phase,
                data_param={
                    "source": os.path.join(folder, f"{name}_labels_lmdb"), "batch_size": batch, "backend": "LMDB",
                },
            )  # fmt: skip
    net.net.layer.extend(body.layers)
    if targets.task == "classes":
        net.layer("SoftmaxWithLoss", "loss", (body.top, label))
        net.layer("Accuracy", "accuracy", (body.top, label), phase="TEST")
    elif targets.task == "score":
        score = _score(net, body, targets, taken)
        # In units of the deviation of the scores, so that the rate suits every scale.
        weight = 1 / targets.deviation**2
        net.layer("EuclideanLoss", "loss", (score, label), loss_weight=weight)
    else:
        _cross_entropy(net, body, label, taken, batches)
    return net.net


def _cross_entropy(
    net: NetBuilder, body: Body, label: str, taken: set[str], batches: tuple[int, int]
) -> None:
    """Minus the mean of sum(share * log(predicted share)); the shift keeps the logarithm finite."""
    shares = net.layer(
        "Flatten", unused_name("rows", taken), net.layer("Softmax", unused_name("prob", taken), body.top)
    )
    above = net.layer("Power", unused_name("above_zero", taken), shares, power_param={"shift": 1e-8})
    logs = net.layer("Log", unused_name("log", taken), above)
    wanted = net.layer("Flatten", unused_name("wanted", taken), label)
    products = net.layer(
        "Eltwise", unused_name("products", taken), (logs, wanted), eltwise_param={"operation": "PROD"}
    )
    for phase, batch in zip(("TRAIN", "TEST"), batches, strict=True):
        net.layer(
            "Reduction", "loss", products, phase=phase, loss_weight=1.0,
            reduction_param={"operation": "SUM", "coeff": -1 / batch},
        )  # fmt: skip


# ---------------------------------------------------------------------- solver


@dataclass(frozen=True)
class Schedule:
    """Batches and iterations: an epoch is ``per_epoch`` iterations, a test ``test_iter`` batches of ``val_batch``."""

    batch: int
    val_batch: int
    per_epoch: int
    test_iter: int
    epochs: int

    @property
    def max_iter(self) -> int:
        """The iterations of the run."""
        return self.per_epoch * self.epochs


def make_schedule(train: int, val: int, epochs: int, batch: int) -> Schedule:
    """An epoch sees each train image once, up to a batch; a test sees each val image once, with few repeated.

    Caffe fills the last batch of a test with the first rows again: the batch that repeats fewest is taken.
    """
    batch = min(batch, train)
    sizes = range(min(val, _PER_ROUND // 2), min(val, 2 * _PER_ROUND) + 1)
    val_batch = min(sizes, key=lambda size: (-val % size, abs(size - _PER_ROUND)))
    return Schedule(batch, val_batch, -(-train // batch), -(-val // val_batch), epochs)


def solver_text(
    schedule: Schedule, folder: str, *, adam: bool, rate: float, seed: int, on_gpu: bool
) -> pb.SolverParameter:
    """A solver whose rate falls by a line to 0; tested and stored once per epoch."""
    solver = pb.SolverParameter(
        net=os.path.join(folder, "train_val.prototxt"), test_iter=[schedule.test_iter],
        test_interval=schedule.per_epoch, test_initialization=False, base_lr=rate, lr_policy="poly", power=1.0,
        momentum=0.9, weight_decay=5e-4, max_iter=schedule.max_iter, display=max(1, schedule.per_epoch // 5),
        average_loss=min(20, schedule.per_epoch), snapshot=schedule.per_epoch * max(1, 100 // schedule.per_epoch),
        snapshot_prefix=os.path.join(folder, "net"), random_seed=seed,
        solver_mode=pb.SolverParameter.GPU if on_gpu else pb.SolverParameter.CPU,
    )  # fmt: skip
    if adam:
        solver.type, solver.momentum2 = "Adam", 0.999
    return solver
