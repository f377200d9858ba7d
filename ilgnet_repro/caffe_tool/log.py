"""Caffe's log lines, word for word, with glog's prefix: scripts parse them."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import TextIO

from ..caffe.graph import Graph
from ..caffe.graph_build import graph_text
from ..caffe.phase_rules import net_state
from ..errors import printable_lines
from ..train.observe import Forward, Observer, Output, Run, Test, Updated

Log = Callable[[str, str], None]
"""Takes the location in Caffe's source that logs a line, such as ``caffe.cpp:304``, and the line."""


def glog(location: str, message: str, level: str = "I") -> str:
    """A line with glog's prefix: level, date and time, process, source location.

    The date has no year, as in glog of Caffe's time: Caffe's `parse_log.py` relies on that.
    """
    return f"{level}{datetime.now():%m%d %H:%M:%S.%f} {os.getpid():5d} {location}] {message}"


def ostream(value: float) -> str:
    """A number as a C++ stream prints it by default: six digits, no trailing zeros, the sign of NaN."""
    return "-nan" if math.isnan(value) and math.copysign(1, value) < 0 else f"{value:g}"


def log_net(log: Log, graph: Graph, level: int = 0, stages: tuple[str, ...] = ()) -> None:
    """Log the net that is about to be built."""
    text = graph_text(graph, net_state(graph.phase, level, stages))
    log("net.cpp:53", f"Initializing net from parameters: \n{text}")


def log_built(log: Log, graph: Graph) -> None:
    """Log the outputs of the net that was built."""
    for blob in graph.outputs:
        log("net.cpp:244", f"This network produces output {blob}")
    log("net.cpp:257", "Network initialization done.")


def batch_line(batch: int, blob: str, value: float) -> str:
    """`Batch 3, loss = 0.25`."""
    return f"Batch {batch}, {blob} = {ostream(value)}"


def mean_line(blob: str, mean: float, weight: float, weighted: float) -> str:
    """`loss = 0.25 (* 1 = 0.25 loss)`, the parentheses only for a loss."""
    suffix = f" (* {ostream(weight)} = {ostream(weighted)} loss)" if weight else ""
    return f"{blob} = {ostream(mean)}{suffix}"


# Where Caffe 1.0 logs each line; log parsers search for the file name.
LOCATIONS = {
    "mode": "caffe.cpp:197",
    "resume": "caffe.cpp:229",
    "start": "caffe.cpp:239",
    "end": "caffe.cpp:250",
    "settings": "solver.cpp:45",
    "note": "solver.cpp:45",
    "built": "solver.cpp:57",
    "weights": "solver.cpp:72",
    "train_net": "solver.cpp:102",
    "test_net": "solver.cpp:190",
    "iteration": "solver.cpp:239",
    "diverged": "solver.cpp:239",
    "train_output": "solver.cpp:258",
    "solve": "solver.cpp:289",
    "policy": "solver.cpp:290",
    "last": "solver.cpp:327",
    "done": "solver.cpp:332",
    "testing": "solver.cpp:347",
    "test_loss": "solver.cpp:407",
    "test_cut": "solver.cpp:402",
    "test_output": "solver.cpp:414",
    "snapshot_weights": "solver.cpp:464",
    "multistep": "sgd_solver.cpp:50",
    "clipping": "sgd_solver.cpp:99",
    "rate": "sgd_solver.cpp:112",
    "snapshot_state": "sgd_solver.cpp:284",
    "restored": "sgd_solver.cpp:345",
    "rows": "ilgnet:0",  # no line of Caffe's
    "net": "net.cpp:53",
    "net_output": "net.cpp:244",
    "net_done": "net.cpp:257",
    "debug_top": "net.cpp:599",
    "debug_param": "net.cpp:611",
    "debug_bottom_diff": "net.cpp:627",
    "debug_param_diff": "net.cpp:638",
    "debug_norms": "net.cpp:727",
    "ignored": "net.cpp:752",
}


_ERRORS = ("debug_norms",)  # Caffe logs these as errors


class CaffeLog(Observer):
    """Writes the log of a Caffe solver, by default to stderr as Caffe does."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._last_time = time.perf_counter()
        self._last_iteration = 0

    def log(self, topic: str, text: str) -> None:
        level = "E" if topic in _ERRORS else "I"
        print(
            printable_lines(glog(LOCATIONS[topic], text, level)), file=self.stream or sys.stderr, flush=True
        )

    def on_start(self, trainer: Run) -> None:
        self._last_time, self._last_iteration = time.perf_counter(), trainer.iteration

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        if not forward.display:
            return
        now = time.perf_counter()
        seconds, done = now - self._last_time, forward.iteration - self._last_iteration
        self._last_time, self._last_iteration = now, forward.iteration
        self.log(
            "iteration",
            f"Iteration {forward.iteration} ({done / (seconds or 1):g} iter/s, "
            f"{seconds:g}s/{trainer.settings.display} iters), loss = {forward.smoothed:g}",
        )
        self._outputs("train_output", "Train", forward.outputs)

    def on_update(self, trainer: Run, updated: Updated) -> None:
        if updated.new_step is not None:
            self.log(
                "multistep", f"MultiStep Status: Iteration {updated.iteration}, step = {updated.new_step}"
            )
        if updated.display:
            self.log("rate", f"Iteration {updated.iteration}, lr = {updated.rate:g}")
        if updated.clipping is not None:
            clip = updated.clipping
            self.log(
                "clipping",
                f"Gradient clipping: scaling down gradients (L2 norm {clip.norm:g} > {clip.limit:g}) "
                f"by scale factor {clip.factor:g}",
            )

    def on_test(self, trainer: Run, test: Test) -> None:
        if test.loss is not None:
            self.log("test_loss", f"Test loss: {ostream(test.loss)}")
        self._outputs("test_output", "Test", test.outputs)

    def _outputs(self, topic: str, net: str, outputs: tuple[Output, ...]) -> None:
        for number, output in enumerate(outputs):
            text = f"    {net} net output #{number}: {output.name} = {output.value:g}"
            if output.weight:
                text += f" (* {output.weight:g} = {output.weight * output.value:g} loss)"
            self.log(topic, text)
