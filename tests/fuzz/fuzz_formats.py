"""Damaged files by the hundred thousand: whatever a file holds, only an IlgnetError may come out.

    python tests/fuzz/fuzz_formats.py --cases 100000 --seed 1

Real files are damaged (bytes flipped, cut off, spliced, lengths edited, words swapped) and given to every
target of their kind.  A case fails if anything but IlgnetError is raised, if the message has more than one
line, if a file is left over, if one case takes over ten seconds, or if memory runs over the limit.
Further stages join by a row in STAGES.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from damage import damaged
from fuzz_seeds import seeds

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.blob import read_blob, write_blob
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.prototxt import format_message, parse_net, parse_solver, read_net, read_solver
from ilgnet_repro.caffe.solverstate import read_solverstate, write_solverstate
from ilgnet_repro.caffe.upgrade import upgrade_net, upgrade_solver
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.convert import convert
from ilgnet_repro.runtime.load import load, load_graph
from ilgnet_repro.runtime.plan import plan_net

SECONDS_A_CASE = 10.0
MEMORY = 4 << 30


class Target(NamedTuple):
    """A stage under test: the kind of file it reads, and what it does with one (``out`` may be written)."""

    name: str
    kind: str
    run: Callable[[Path, Path], None]


def _net(path: Path, out: Path) -> None:
    net = read_net(path)
    text = format_message(net)
    assert format_message(parse_net(text)) == text, "the text written is read as another net"
    modern = upgrade_net(net)
    assert not modern.layers and not modern.input
    text = format_message(modern)
    assert format_message(parse_net(text)) == text, "the upgraded net is read as another net"


def _solver(path: Path, out: Path) -> None:
    text = format_message(upgrade_solver(read_solver(path)))
    assert format_message(parse_solver(text)) == text


def _caffemodel(path: Path, out: Path) -> None:
    model = open_caffemodel(path)
    arrays = {layer.name: [blob.array() for blob in layer.blobs] for layer in model.layers if layer.blobs}
    for values in arrays.values():
        for array in values:
            array.tobytes()  # touches every value
    format_message(upgrade_net(model.structure()))
    write_caffemodel(out, upgrade_net(model.structure()), arrays)
    open_caffemodel(out)


def _binaryproto(path: Path, out: Path) -> None:
    array = read_blob(path)
    write_blob(out, array)
    np.testing.assert_array_equal(read_blob(out).reshape(array.shape), array)


def _solverstate(path: Path, out: Path) -> None:
    state = read_solverstate(path)
    history = [blob.array() for blob in state.history]
    write_solverstate(out, state.iter, state.learned_net, history, state.current_step)
    assert read_solverstate(out).current_step == state.current_step


def _audit(path: Path, out: Path) -> None:
    net = read_net(path)
    found = audit(net)
    if not found.problems:
        plan_net(load_graph(net))


def _plan(path: Path, out: Path) -> None:
    net = upgrade_net(read_net(path))
    unknown = {field.path for layer in net.layer for field in layer.fork_field}
    plan_net(load_graph(net, phase="TRAIN", ignore_fields=unknown))


def _convert(path: Path, out: Path) -> None:
    """Damaged weights beside a net derived from their own structure."""
    folder = path.with_suffix(".d")
    folder.mkdir()
    try:
        weights = folder / "x.caffemodel"
        path.rename(weights)
        (folder / "x.prototxt").write_text(format_message(upgrade_net(open_caffemodel(weights).structure())))
        convert(weights)
        assert load(folder / "x.safetensors").inputs is not None
        (folder / "x.safetensors").unlink()
    finally:
        weights.rename(path)
        left = sorted(entry.name for entry in folder.iterdir() if entry.name != "x.prototxt")
        shutil.rmtree(folder)
    assert not left, f"left over: {left}"


FORMATS: list[Target] = [
    Target("prototxt, upgrade", "net", _net),
    Target("solver, upgrade", "solver", _solver),
    Target("caffemodel, rewrite", "caffemodel", _caffemodel),
    Target("binaryproto, rewrite", "binaryproto", _binaryproto),
    Target("solverstate, rewrite", "solverstate", _solverstate),
]
# These use the formats; some seeds are valid files whose net cannot be built.
STAGES: list[Target] = [
    Target("audit", "net", _audit),
    Target("graph and shapes", "net", _plan),
    Target("convert", "caffemodel", _convert),
]
TARGETS = FORMATS + STAGES


def attempt(target: Target, data: bytes, folder: Path, number: int) -> tuple[bool, str | None]:
    """Run one case: whether it was refused by an IlgnetError, and what went wrong (None: nothing)."""
    path, out = folder / f"{number}.in", folder / "out.bin"
    path.write_bytes(data)
    began, refused, problem = time.monotonic(), False, None
    try:
        target.run(path, out)
        out.unlink(missing_ok=True)
    except IlgnetError as error:
        if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
            problem = f"a message of several lines or too long: {str(error)[:3000]!r}"
        elif out.exists():  # nothing may be refused once the result is written
            problem = f"a file was left over, or what was written is refused: {error}"
        refused = True
        out.unlink(missing_ok=True)
    except Exception:  # any other type is what the fuzzer looks for
        problem = traceback.format_exc()
    path.unlink()
    left = [entry.name for entry in folder.iterdir()]
    if problem is None and left:
        problem = f"left over: {left}"
    if problem is None and time.monotonic() - began > SECONDS_A_CASE:
        problem = f"took {time.monotonic() - began:.0f} s"
    return refused, problem


def run(
    cases: int, seed: int, seconds: float, keep: Path | None = None
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Run up to ``cases`` cases or ``seconds``.

    Returns how many were read and how many refused, by target, and a text for each failure.
    """
    pools, rng = seeds(), random.Random(seed)
    problems: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    end, done, ran = time.monotonic() + seconds, 0, Counter[tuple[str, str]]()
    try:
        while done < cases and time.monotonic() < end and len(problems) < 20:
            target = TARGETS[done % len(TARGETS)]
            data = damaged(target.kind, pools[target.kind], rng)
            refused, problem = attempt(target, data, folder, done)
            if problem:
                problems.append(f"case {done}, {target.name}: {problem}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"case_{seed}_{done}.{target.kind}").write_bytes(data)
            done += 1
            ran[target.name, "refused" if refused else "read"] += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ran, problems


def main() -> int:
    parser = argparse.ArgumentParser(description="damage Caffe's files and read them")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    args = parser.parse_args()
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ran, problems = run(args.cases, args.seed, args.seconds, args.keep)
    print(*problems, sep="\n")
    for (name, outcome), count in sorted(ran.items()):
        print(f"{name}: {count:,} {outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{sum(ran.values()):,} cases, {len(problems)} failed, peak memory {peak} MiB")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
