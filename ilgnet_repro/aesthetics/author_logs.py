"""Reading what `caffe test` printed: values by batch and blob, the summary, the net in the log."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from ..caffe.expected_kind import kind_named
from ..errors import FormatError
from ..files import read_input

# glog's prefix: level, date, time, thread, source file and line. Older glog prints no year.
_PREFIX = re.compile(r"^[IWEF]\d{4,8} \d\d:\d\d:\d\d\.\d+ +\d+ [^ \]]+:\d+\] ?")
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf)"
_BATCH = re.compile(rf"^Batch (\d{{1,9}}), (.+) = ({_NUMBER})$")
_LOSS = re.compile(rf"^Loss: ({_NUMBER})$")
_RUNNING = re.compile(r"^Running for (\d{1,9}) iterations\.$")
_SUMMARY = re.compile(rf"^(.+) = ({_NUMBER})(?: \(\* ({_NUMBER}) = ({_NUMBER}) loss\))?$")
_NET_FOLLOWS = "Initializing net from parameters:"
_NO_ENTROPY = "System entropy source not available"


@dataclass(frozen=True)
class SummaryLine:
    """One of the last lines: a blob's mean over the batches, and its weighted share if it is a loss."""

    blob: str
    mean: float
    weight: float | None = None
    weighted: float | None = None


@dataclass(frozen=True)
class TestLog:
    """What one `caffe test` run printed.

    ``batches[blob][k]`` are the values of batch k, several where the blob has several. ``net_text`` is the
    net as Caffe printed it, ``batch_size`` and ``source`` those of its data layer; all three None where the
    log does not contain the net. ``fallback_seed``: Caffe found no source of entropy.
    """

    __test__ = False  # not a pytest test class

    file: str
    iterations: int
    complete: bool
    batches: dict[str, tuple[tuple[float, ...], ...]]
    loss: float | None
    summary: tuple[SummaryLine, ...]
    net_text: str | None
    batch_size: int | None
    source: str | None
    fallback_seed: bool

    def counts(self, blob: str | None = None, batch_size: int | None = None) -> tuple[int, ...]:
        """Correct images of each batch: the printed accuracy times the batch size, rounded.

        ``blob`` may be left out where one printed blob is in [0, 1] and no loss has its name. Raises
        FormatError if the batch size is unknown or the values are no multiples of 1 / batch size.
        """
        size = batch_size or self.batch_size
        if not size:
            raise FormatError(f"{self.file}: the log does not print its batch size; give batch_size")
        counts = []
        for number, values in enumerate(self.batches[blob or self.accuracy_blob()]):
            count = round(values[0] * size) if math.isfinite(values[0] * size) else 0
            # Caffe prints six digits, so the product differs by at most size · 5e-7.
            if len(values) != 1 or not abs(values[0] * size - count) <= size * 1e-6:
                raise FormatError(
                    f"{self.file}: batch {number}: {values[0]} is not a count out of {size};"
                    " give the log's own batch_size"
                )
            counts.append(count)
        return tuple(counts)

    def accuracy_blob(self) -> str:
        """The blob with the accuracy; raises FormatError unless exactly one blob may be it."""
        losses = {line.blob for line in self.summary if line.weight is not None}
        names = [
            name
            for name, rows in self.batches.items()
            if name not in losses and all(len(row) == 1 and 0 <= row[0] <= 1 for row in rows)
        ]
        if len(names) != 1:
            raise FormatError(f"{self.file}: accuracy could be any of {sorted(self.batches)}; name the blob")
        return names[0]


def read_test_log(path: str | os.PathLike[str]) -> TestLog:
    """Read a `caffe test` log; raises FormatError if it cannot be read or contains no batch."""
    try:
        text = read_input(path).decode(errors="replace")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); give a `caffe test` log") from error
    with kind_named(path, "a log of `caffe test`"):
        return parse_test_log(text, str(path))


def parse_test_log(text: str, file: str = "<text>") -> TestLog:
    """Parse the text of a `caffe test` log, with or without glog's prefixes.

    A truncated log is read as far as it goes, with ``complete`` False. Raises FormatError if it holds no
    batch or a batch is missing between others.
    """
    announced: int | None = None
    loss: float | None = None
    rows: dict[str, dict[int, list[float]]] = {}
    summary: list[SummaryLine] = []
    net_lines: list[str] | None = None
    in_net = False
    for line in text.splitlines():
        prefixed = _PREFIX.match(line)
        message = line[prefixed.end() :].rstrip() if prefixed else line.rstrip()
        if prefixed and in_net:
            in_net = False
        if in_net and net_lines is not None:
            net_lines.append(message)
        elif message.startswith(_NET_FOLLOWS) and net_lines is None:
            net_lines, in_net = [], True
        elif found := _BATCH.match(message):
            rows.setdefault(found[2], {}).setdefault(int(found[1]), []).append(float(found[3]))
        elif found := _RUNNING.match(message):
            announced = int(found[1])
        elif found := _LOSS.match(message):
            loss = float(found[1])
        elif loss is not None and (found := _SUMMARY.match(message)):
            weights = (float(found[3]), float(found[4])) if found[3] else (None, None)
            summary.append(SummaryLine(found[1], float(found[2]), *weights))
    if not rows:
        raise FormatError(f"{file}: no line `Batch 0, …` in it; give the log of `caffe test`")
    seen = max(len(batches) for batches in rows.values())
    for blob, batches in rows.items():
        if sorted(batches) != list(range(len(batches))):
            raise FormatError(f"{file}: blob {blob} skips a batch; give the whole log")
    net_text = "\n".join(net_lines) if net_lines is not None else None
    return TestLog(
        file=file,
        iterations=seen,
        complete=loss is not None and announced in (None, seen),
        batches={
            blob: tuple(tuple(batches[k]) for k in range(len(batches))) for blob, batches in rows.items()
        },
        loss=loss,
        summary=tuple(summary),
        net_text=net_text,
        batch_size=int(size) if (size := _first(net_text, r"\bbatch_size:\s*(\d{1,9})\b")) else None,
        source=_first(net_text, r'\bsource:\s*"([^"]*)"'),
        fallback_seed=_NO_ENTROPY in text,
    )


def _first(text: str | None, pattern: str) -> str | None:
    found = re.search(pattern, text or "")
    return found[1] if found else None
