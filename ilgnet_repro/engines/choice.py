"""Choosing the fastest engine that is installed, by a short measurement that is kept for the net and the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..caffe.prototxt import format_message
from ..errors import IlgnetError
from ..files import atomic_file, json_text, parse_json
from ..runtime.difference import differ
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from ..version import __version__
from .onnx_engines import EXTRAS, engine_version, has_cuda, is_installed
from .runners import MULTIPLIES_INT8, TORCH, Log, Runner, Settings, make_runner

FORMAT = 1  # of a kept choice
LARGEST_FILE = 1 << 16
_LONGEST = 1e12  # milliseconds
SECONDS = 0.25  # for each candidate, after a first run
FEWEST_RUNS, MOST_RUNS = 3, 50
PAUSE = 0.005  # seconds before another candidate: the threads of the one before it wait in a loop
NEAR = 1.3  # times the shortest: candidates that are measured once more, since other programs lengthen single runs
# The largest difference from the exact net, over the blob's largest value where that is over 1, of a candidate: float32
# is still float32, and the probabilities of the others are those of the net.
MOST = {"float32": 1e-3, "float16": 5e-3, "int8": 5e-3}


Batches = Sequence[Mapping[str, Tensor]]  # inputs by name, of one size unless the last is smaller


@dataclass(frozen=True)
class Candidate:
    """One way of computing a net."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return self.engine if self.precision == "float32" else f"{self.engine} {self.precision}"


def candidates(precision: str, device: str = "cpu") -> list[Candidate]:
    """Return what may compute a net with large dense weights in ``precision``, or better, with what is installed.

    On a GPU only torch computes whole layers in 16 bits.
    """
    installed = [
        engine for engine in EXTRAS if (is_installed(engine) if device == "cpu" else has_cuda(engine))
    ]
    engines = [TORCH, *installed]
    if device != "cpu" and precision != "float32":
        return [Candidate(TORCH, precision)]
    if precision != "int8":
        return [Candidate(engine, precision) for engine in engines]
    # float16 is the more exact of the two, and the faster one in large batches.  torch's product of int8 weights
    # rounds activations to bfloat16, OpenVINO's does not.
    int8 = [MULTIPLIES_INT8] if MULTIPLIES_INT8 in installed else engines
    return [Candidate(engine, "int8") for engine in int8] + [
        Candidate(engine, "float16") for engine in engines
    ]


@dataclass(frozen=True)
class Choice:
    """The fastest candidate, the milliseconds of each, and the runner where it was made to be measured."""

    best: Candidate
    milliseconds: Mapping[str, float]
    runner: Runner | None = None


def choose(net: CaffeNet, settings: Settings, batches: Batches, log: Log) -> Choice:
    """Return the fastest candidate for batches like the first: as kept from an earlier call, or measured now.

    It keeps the net's numbers on all of them.
    """
    able = candidates(settings.precision, settings.device)
    missing = [engine for engine in EXTRAS if not is_installed(engine)]
    if len(missing) == len(EXTRAS) and settings.device == "cpu":
        log(
            "engine: torch; faster ones come with pip install 'ilgnet_repro[openvino]' or 'ilgnet_repro[runtime]'"
        )
    if len(able) == 1:
        return Choice(able[0], {})
    path = choice_folder() / f"{_key(net, settings, batches, able)}.json"
    kept = read_choice(path, [*able, *candidates("float32", settings.device)])
    if kept is not None:
        log(f"engine: {_shown(kept)}, as measured before")
        return kept
    found = _measure(net, settings, batches, able, log)
    log(f"engine: {_shown(found)}")
    with suppress(
        OSError, IlgnetError
    ):  # a folder that cannot be written costs the next call the measurement
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "w") as file:
            file.write(json_text(_stated(found), indent=2))
    return found


def choice_folder() -> Path:
    """Return the folder of kept choices: in $ILGNET_HOME, else in ilgnet_repro below $XDG_CACHE_HOME or ~/.cache."""
    own, cache = os.environ.get("ILGNET_HOME"), os.environ.get("XDG_CACHE_HOME")
    base = Path(own) if own else (Path(cache) if cache else Path.home() / ".cache") / "ilgnet_repro"
    return base / "engines"


def _key(net: CaffeNet, settings: Settings, batches: Batches, able: list[Candidate]) -> str:
    """Return the digest of all that the choice depends on: net, inputs, threads, versions and processor."""
    values = hashlib.sha256()
    for batch in batches:
        for value in batch.values():
            values.update(value.contiguous().numpy().tobytes())
    stated = {
        "net": format_message(net.graph.text),
        "phase": net.graph.phase,
        "inputs": {name: list(value.shape) for name, value in batches[0].items()},
        "values": values.hexdigest(),
        "outputs": list(net.outputs),
        "settings": asdict(settings),
        "candidates": [str(one) for one in able],
        "versions": {name: engine_version(name) for name in (TORCH, *EXTRAS)},
        "package": __version__,
        "machine": [platform.machine(), _processor(), os.cpu_count(), _card(settings.device)],
    }
    return hashlib.sha256(json_text(stated, sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """Return the processor's name as Linux states it, or as Python knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _card(device: str) -> str:
    """Return the name of the graphics processor that computes; empty for the CPU."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else ""


def _stated(choice: Choice) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "engine": choice.best.engine,
        "precision": choice.best.precision,
        "milliseconds": dict(choice.milliseconds),
    }


def read_choice(path: Path, able: list[Candidate]) -> Choice | None:
    """Return a kept choice, or None where there is none, or the file does not hold one of the candidates."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        held = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        return None
    best = next(
        (one for one in able if (one.engine, one.precision) == (held.get("engine"), held.get("precision"))),
        None,
    )
    times = held.get("milliseconds")
    if best is None or not isinstance(times, dict) or str(best) not in times:
        return None
    known = {str(one) for one in able}
    if not all(
        name in known and type(time) in (int, float) and 0 < time <= _LONGEST for name, time in times.items()
    ):
        return None
    return Choice(best, {name: float(time) for name, time in times.items()})


def _shown(choice: Choice) -> str:
    others = [
        f"{name} {time:.4g}"
        for name, time in sorted(choice.milliseconds.items(), key=lambda item: item[1])
        if name != str(choice.best)
    ]
    own = f"{choice.best}, {choice.milliseconds[str(choice.best)]:.4g} ms per batch"
    return f"{own} ({', '.join(others)})" if others else own


def _measure(net: CaffeNet, settings: Settings, batches: Batches, able: list[Candidate], log: Log) -> Choice:
    """Run every candidate in turns and return the one with the shortest run."""
    with torch.inference_mode(), as_loaded(net):
        exact = [net(batch) for batch in batches]
    runners: dict[Candidate, Runner] = {}
    batches = [{name: value.to(settings.device) for name, value in batch.items()} for batch in batches]
    for one in able:
        own = replace(settings, engine=one.engine, precision=one.precision)
        try:
            runner = make_runner(net, net.outputs, own, log)
            found = [runner(batch) for batch in batches]
        except IlgnetError as error:
            if one.engine == TORCH:
                raise
            log(f"engine: {one} is left out: {error}")
            continue
        apart, most = max(map(_furthest, exact, found)), MOST.get(one.precision, inf)
        if one != Candidate(TORCH, settings.precision) and not apart <= most:
            log(
                f"engine: {one} is left out: it differs from the exact net by {apart:.3g} of the largest value"
            )
            continue
        runners[one] = runner
    if not runners:  # of int8 and float16: torch's float32 is never left out
        log(f"engine: {settings.precision} and float16 move the values too far; float32 is measured")
        exact_weights = replace(settings, precision="float32")
        return _measure(net, exact_weights, batches, candidates("float32", settings.device), log)
    best = _shortest(runners, batches[0])
    near = {one: runner for one, runner in runners.items() if best[one] <= NEAR * min(best.values())}
    if len(near) > 1:
        for one, seconds in _shortest(near, batches[0], in_a_row=3).items():
            best[one] = min(best[one], seconds)
    fastest = min(best, key=lambda one: best[one])
    return Choice(fastest, {str(one): 1000 * seconds for one, seconds in best.items()}, runners[fastest])


def _shortest(
    runners: Mapping[Candidate, Runner], batch: Mapping[str, Tensor], in_a_row: int = 1
) -> dict[Candidate, float]:
    """Return the seconds of each candidate's shortest run, taken in turns of some runs ``in_a_row``.

    In a row, as a net is used, all but the first run find the weights in the processor's caches.
    """
    best = dict.fromkeys(runners, float("inf"))
    spent = dict.fromkeys(runners, 0.0)
    for turn in range(MOST_RUNS):
        for one, runner in runners.items():
            if turn * in_a_row >= FEWEST_RUNS and spent[one] > SECONDS:
                continue
            time.sleep(PAUSE)
            for _ in range(in_a_row):
                start = time.perf_counter()
                _await(runner(batch))
                seconds = time.perf_counter() - start
                best[one], spent[one] = min(best[one], seconds), spent[one] + seconds
    return best


def _await(found: Mapping[str, Tensor]) -> None:
    """Wait for a graphics processor, which computes while Python continues."""
    for value in found.values():
        if value.device.type == "cuda":
            torch.cuda.synchronize(value.device)


def _furthest(exact: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any blob, relative to its largest value where that is over 1."""
    furthest = 0.0
    for name, blob in exact.items():
        one = differ(blob.numpy(), found[name].cpu().numpy())
        furthest = max(furthest, one.largest / max(1.0, one.scale))
    return furthest
