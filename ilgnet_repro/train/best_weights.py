"""What `ilgnet train` adds to a solver: the best weights by test output, and early stopping."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import SolverError
from ..files import atomic_file, check_output, check_replaced, json_text, parse_json
from .observe import Observer, Run, Test
from .snapshot import all_finite


@dataclass(frozen=True)
class Best:
    """The best test so far, the iteration of the last test, and the number of tests since the best."""

    output: str
    iteration: int
    value: float
    tested: int
    tests_since: int = 0


class BestWeights(Observer):
    """Keeps the weights of the best test in ``PREFIX_best.caffemodel``; stops after ``patience`` tests without a better one.

    ``output`` is an output of the first test net: higher is better, unless it has a loss weight.  By default
    it is the first output without a loss weight (an accuracy), else the first.  Weights or tests that are not
    finite are never the best.  The state is kept in ``PREFIX_best.json``, from which a resumed run continues.
    """

    def __init__(self, output: str | None = None, patience: int = 0) -> None:
        if patience < 0:
            raise SolverError(f"patience {patience} must be 0 or more tests")
        self.output, self.patience = output, patience
        self.best: Best | None = None
        self._diverged = 0  # tests before the first finite one

    def on_start(self, trainer: Run) -> None:
        tests = trainer.settings.test_nets
        if not tests or not tests[0].test_iter:
            raise SolverError(
                "solver: has no test net to choose the best weights by; give test_iter and a net"
            )
        outputs = trainer.test_nets[0].outputs
        if self.output is not None and self.output not in outputs:
            raise SolverError(
                f"best-by {self.output!r} is not an output of the test net; it has {', '.join(outputs)}"
            )
        for ending in ("json", "caffemodel"):
            path = self._path(trainer, ending)
            check_output(path, trainer.settings.weights)
            check_replaced(
                path, lambda _: _is_best(self._path(trainer, "json")), "`ilgnet train`",
                "remove it or give another snapshot_prefix",
            )  # fmt: skip
        # A resumed run repeats tests made after its snapshot: they count once.
        self.best = _read(self._path(trainer, "json")) if trainer.iteration else None

    def on_test(self, trainer: Run, test: Test) -> None:
        if test.net:  # the first net chooses
            return
        chosen = [output for output in test.outputs if output.name == self.output]
        chosen += [output for output in test.outputs if not output.weight] + list(test.outputs)
        output = chosen[0]
        sign = -1 if output.weight else 1
        best = self.best
        if best is not None and best.tested >= test.iteration:
            return
        better = best is None or sign * output.value > sign * best.value
        # A diverged net may still get labels right: its accuracy means nothing.
        finite = test.finite and math.isfinite(output.value)
        if better and finite and all_finite(trainer.net.parameters()):
            self.best = Best(output.name, test.iteration, output.value, test.iteration)
            trainer.save_weights(self._path(trainer, "caffemodel"))
        elif best is None:
            self._diverged += 1
            if self.patience and self._diverged >= self.patience:
                trainer.stop(f"no finite test of {output.name} in {self.patience} tests")
            return
        else:
            self.best = replace(best, tested=test.iteration, tests_since=best.tests_since + 1)
            if self.patience and self.best.tests_since >= self.patience:
                trainer.stop(
                    f"no better {output.name} in {self.patience} tests than {best.value:.6g} "
                    f"at iteration {best.iteration}"
                )
        with atomic_file(self._path(trainer, "json"), "w") as file:
            file.write(json_text(asdict(self.best)))

    def _path(self, trainer: Run, ending: str) -> Path:
        return Path(trainer.settings.root, f"{trainer.settings.snapshot_prefix}_best.{ending}")


def _is_best(path: Path) -> bool:
    _parsed(path)
    return True


def _read(path: Path) -> Best | None:
    try:
        best = _parsed(path)
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    # Earlier versions kept weights that had diverged: any finite test is better.
    return best if math.isfinite(best.value) else None


def _parsed(path: Path) -> Best:
    """Read a state; raises OSError, ValueError, TypeError or OverflowError for a file of anything else."""
    best = Best(**parse_json(path.read_text(encoding="utf-8")))
    counts = best.iteration, best.tested, best.tests_since
    if not isinstance(best.output, str) or any(type(count) is not int or count < 0 for count in counts):
        raise TypeError("not a state of the best weights")
    return replace(best, value=float(best.value))  # "NaN" is a string in the file
