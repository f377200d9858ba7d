"""The lines that Caffe's `test` and `time` log, word for word: scripts in the world look for these."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from ..caffe.graph import Graph
from ..caffe.prototxt import format_message
from ..schema import caffe_pb2 as pb

Log = Callable[[str, str], None]
"""Takes the place in Caffe's source that logs a line, such as ``caffe.cpp:304``, and the line."""


def glog(place: str, message: str) -> str:
    """A line with glog's prefix: level, date and time, process, place.

    The date is without its year, as glog wrote it in Caffe's days: Caffe's `parse_log.py` counts on that.
    """
    return f"I{datetime.now():%m%d %H:%M:%S.%f} {os.getpid():5d} {place}] {message}"


def ostream(value: float) -> str:
    """A number as a C++ stream prints it unless told otherwise: six digits, no trailing zeros."""
    return f"{value:g}"


def net_text(graph: Graph, level: int = 0, stages: tuple[str, ...] = ()) -> str:
    """The net as Caffe prints it when it builds it: the layers of this phase, with the state."""
    state = pb.NetState(phase=pb.Phase.Value(graph.phase), level=level, stage=stages)
    net = pb.NetParameter(name=graph.name, state=state)
    net.layer.extend(node.layer for node in graph.layers)
    return format_message(net).rstrip("\n")


def log_net(log: Log, graph: Graph, level: int = 0, stages: tuple[str, ...] = ()) -> None:
    """Log the net that is about to be built."""
    log("net.cpp:53", f"Initializing net from parameters: \n{net_text(graph, level, stages)}")


def log_built(log: Log, graph: Graph) -> None:
    """Log the outputs of the net that was built."""
    for blob in graph.outputs:
        log("net.cpp:244", f"This network produces output {blob}")
    log("net.cpp:257", "Network initialization done.")


def batch_line(batch: int, blob: str, value: float) -> str:
    """`Batch 3, loss = 0.25`."""
    return f"Batch {batch}, {blob} = {ostream(value)}"


def mean_line(blob: str, mean: float, weight: float, weighted: float) -> str:
    """`loss = 0.25 (* 1 = 0.25 loss)`, the brackets only for what counts in the loss."""
    share = f" (* {ostream(weight)} = {ostream(weighted)} loss)" if weight else ""
    return f"{blob} = {ostream(mean)}{share}"
