"""Logs of `caffe test`: those recorded with the golden data, the authors', and broken ones."""

from __future__ import annotations

import numpy as np
import pytest
from places import GOLDEN, SHARED

from ilgnet_repro.aesthetics.author_logs import SummaryLine, parse_test_log, read_test_log
from ilgnet_repro.aesthetics.caffe_shuffle import search_seed
from ilgnet_repro.aesthetics.published import PUBLISHED
from ilgnet_repro.aesthetics.verdict import analyse_order
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import FormatError

AUTHORS = SHARED / "ilgnet"
needs_authors = pytest.mark.skipif(
    not AUTHORS.exists(), reason="the authors' files are not here (no licence)"
)

# file, iterations, batch size, source, loss, first and last value of a blob, summary
RECORDED = {
    "ilgnet": (
        "ilgnet/caffe_test.log", 10, None, None, 8.65995, "loss1/top-1", 0.75, 0.75,
        [SummaryLine("loss1/top-1", 0.541667)],
    ),
    "tiny": (
        "pipeline/test_tiny.log", 7, 5, "raw64_lmdb", 0.773411, "loss", 0.704598, 0.849194,
        [SummaryLine("loss", 0.773411, 1.0, 0.773411), SummaryLine("top-1", 0.485714)],
    ),
    "tiny, default iterations": (
        "pipeline/test_tiny_crop_default_iterations.log", 50, 5, "png48_lmdb", 0.800675, "top-1", None, 0.4,
        [SummaryLine("loss", 0.800675, 1.0, 0.800675), SummaryLine("top-1", 0.5)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("expected", RECORDED.values(), ids=RECORDED)
def test_recorded_log(expected: tuple) -> None:
    file, n, size, source, loss, blob, first, last, summary = expected
    log = read_test_log(GOLDEN / file)
    assert (log.iterations, log.complete, log.batch_size, log.source, log.loss) == (
        n,
        True,
        size,
        source,
        loss,
    )
    assert all(len(rows) == n for rows in log.batches.values())
    assert log.batches[blob][-1] == (last,) and (first is None or log.batches[blob][0] == (first,))
    assert list(log.summary) == summary
    for line in log.summary:
        assert np.mean(log.batches[line.blob]) == pytest.approx(line.mean, abs=1e-6)


def test_net_in_the_log_is_its_prototxt() -> None:
    from ilgnet_repro.caffe.prototxt import parse_net

    log = read_test_log(GOLDEN / "pipeline/test_tiny.log")
    assert log.net_text is not None
    net = parse_net(log.net_text)
    assert net.name == "tiny" and [layer.name for layer in net.layer][-1] == "top-1"


def test_counts_of_a_log_that_lacks_its_batch_size() -> None:
    log = read_test_log(GOLDEN / "ilgnet/caffe_test.log")
    assert log.counts(batch_size=12) == (9, 8, 6, 2, 8, 6, 7, 2, 8, 9)
    with pytest.raises(FormatError, match="does not print its batch size"):
        log.counts()
    with pytest.raises(FormatError, match=r"batch 0: 0.75 is not a count out of 10"):
        log.counts(batch_size=10)


def test_blob_of_several_values_and_lines_without_prefix() -> None:
    text = "Batch 0, per_class = 0.5\nBatch 0, per_class = nan\nBatch 0, a = 1e-05\nLoss: 0.1\na = 1e-05\n"
    log = parse_test_log(text)
    assert log.batches["per_class"][0][0] == 0.5 and np.isnan(log.batches["per_class"][0][1])
    assert log.batches["a"] == ((1e-05,),) and log.summary == (SummaryLine("a", 1e-05),)
    assert log.accuracy_blob() == "a"


def test_a_truncated_log_is_reported() -> None:
    text = (GOLDEN / "pipeline/test_tiny.log").read_text()
    log = parse_test_log(text[: text.index("Batch 5")])
    assert (log.iterations, log.complete, log.loss, log.summary) == (5, False, None, ())


BROKEN = {
    "empty": ("", "no line `Batch 0"),
    "a training log": ("I1121 09:27:28.9 1 solver.cpp:239] Iteration 0, loss = 1\n", "no line `Batch 0"),
    "a batch missing": ("Batch 0, a = 1\nBatch 2, a = 1\n", "blob a skips a batch"),
}


@pytest.mark.parametrize("text, message", BROKEN.values(), ids=BROKEN)
def test_broken_log(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_test_log(text)


HUGE = "9" * 5000
UNCOUNTED = {
    "a loss beyond float": ("batch_size: 10", "1e400", "inf is not a count out of 10"),
    "no number": ("batch_size: 10", "nan", "nan is not a count out of 10"),
    "a product beyond float": ("batch_size: 10", "1e308", "is not a count out of 10"),
    "a huge batch size": (f"batch_size: {HUGE}", "0.5", "does not print its batch size"),
}


@pytest.mark.parametrize("size, value, message", UNCOUNTED.values(), ids=UNCOUNTED)
def test_numbers_beyond_counting(size: str, value: str, message: str) -> None:
    text = f"Initializing net from parameters:\n{size}\nI0101 00:00:00.0 1 a.cpp:1] Batch 0, accuracy = {value}\n"
    with pytest.raises(FormatError, match=message):
        parse_test_log(text).counts("accuracy")


def test_a_number_of_a_batch_that_is_none() -> None:
    with pytest.raises(FormatError, match="no line `Batch 0"):
        parse_test_log(f"Running for {HUGE} iterations.\nBatch {HUGE}, accuracy = 0.5\n")


def test_missing_log() -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_test_log("no/such.log")


def test_ambiguous_accuracy() -> None:
    with pytest.raises(FormatError, match="could be any of"):
        parse_test_log("Batch 0, a = 1\nBatch 0, b = 1\n").counts(batch_size=1)


@needs_authors
@pytest.mark.parametrize("name, correct, count", [("ava1", 2042, 2500), ("ava2", 2052, 2400)])
def test_authors_counts(name: str, correct: int, count: int) -> None:
    log = read_test_log(AUTHORS / "results" / f"{name.upper()}_result.txt")
    counts, figure = log.counts(), PUBLISHED[name]
    assert log.batch_size is not None and len(counts) * log.batch_size == count
    assert sum(counts) == correct and log.complete and log.fallback_seed
    assert (figure.correct, figure.count, figure.batch_size, figure.loss) == (
        correct, count, log.batch_size, log.loss,
    )  # fmt: skip


def _labels(name: str) -> np.ndarray:
    lines = (AUTHORS / "data" / name.upper() / "val.txt").read_text().splitlines()
    return np.array([int(line.split()[1]) for line in lines])


@needs_authors
@pytest.mark.parametrize("name, high_rows, correlation", [("ava1", 0, None), ("ava2", 1188, 0.028)])
def test_authors_rows_in_list_order(name: str, high_rows: int, correlation: float | None) -> None:
    log = read_test_log(AUTHORS / "results" / f"{name.upper()}_result.txt")
    assert log.batch_size is not None
    labels = _labels(name)
    got = analyse_order(labels, log.counts(), log.batch_size)
    figure = PUBLISHED[name]
    assert (len(labels), int(labels.sum()), got.high_rows) == (figure.rows, figure.high_rows, high_rows)
    assert got.label_correlation == (None if correlation is None else pytest.approx(correlation, abs=5e-4))
    assert got.dispersion_p > 0.05


@needs_authors
def test_candidate_seed_of_the_ava1_log() -> None:
    """The candidate is the best of a slice of the seeds; docs/reproducing.md reports all 104,729."""
    log = read_test_log(AUTHORS / "results" / "AVA1_result.txt")
    search = search_seed(_labels("ava1"), log.counts(), 50, range(1100, 1300))
    assert search.best[0].seed == PUBLISHED["ava1"].shuffle_candidate
    assert search.best[0].correlation == pytest.approx(0.6737, abs=1e-4)
    assert search.best[1].correlation < 0.55


def test_the_log_that_is_printed_reads_as_caffes_own(golden, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(golden / "pipeline")
    flags = ["-model", "tiny.prototxt", "-weights", "tiny_init.caffemodel", "-iterations", "7"]
    assert main(["caffe", "test", *flags]) == 0
    (tmp_path / "written.log").write_text(capsys.readouterr().err)
    recorded, found = read_test_log("test_tiny.log"), read_test_log(tmp_path / "written.log")
    assert (found.complete, found.batch_size, found.source) == (True, recorded.batch_size, recorded.source)
    assert list(found.batches) == list(recorded.batches)
