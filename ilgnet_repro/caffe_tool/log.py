"""Caffe's own log lines, glog's prefix included, so that scripts that read its logs read ours."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from typing import TextIO

from ..errors import printable_lines
from ..train.observe import Forward, Observer, Output, Run, Test, Updated

# Where Caffe 1.0 logs each line; log readers look for the file's name.
PLACES = {
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
    "net": "net.cpp:53",
    "net_output": "net.cpp:244",
    "net_done": "net.cpp:257",
    "ignored": "net.cpp:752",
}


class CaffeLog(Observer):
    """Writes what a Caffe solver logs; to stderr, as Caffe does, unless told otherwise."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._since = time.perf_counter()
        self._last = 0

    def log(self, topic: str, text: str) -> None:
        now = datetime.now()
        prefix = f"I{now:%m%d %H:%M:%S}.{now.microsecond:06d} {os.getpid():5d} {PLACES[topic]}] "
        print(prefix + printable_lines(text), file=self.stream or sys.stderr, flush=True)

    def on_start(self, trainer: Run) -> None:
        self._since, self._last = time.perf_counter(), trainer.iteration

    def on_forward(self, trainer: Run, forward: Forward) -> None:
        if not forward.display:
            return
        now = time.perf_counter()
        seconds, done = now - self._since, forward.iteration - self._last
        self._since, self._last = now, forward.iteration
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
            self.log("test_loss", f"Test loss: {test.loss:g}")
        self._outputs("test_output", "Test", test.outputs)

    def _outputs(self, topic: str, net: str, outputs: tuple[Output, ...]) -> None:
        for number, output in enumerate(outputs):
            text = f"    {net} net output #{number}: {output.name} = {output.value:g}"
            if output.weight:
                text += f" (* {output.weight:g} = {output.weight * output.value:g} loss)"
            self.log(topic, text)
