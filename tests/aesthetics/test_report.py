"""The report's page and JSON: complete, escaped, readable by a screen reader, and clear about random weights."""

from __future__ import annotations

import base64
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ava import TinySet

import ilgnet_repro
from ilgnet_repro.aesthetics.author_logs import TestLog, parse_test_log
from ilgnet_repro.aesthetics.caffe_shuffle import caffe_shuffle, search_seed
from ilgnet_repro.aesthetics.metrics import cross_entropy
from ilgnet_repro.aesthetics.report_data import RANDOM_WEIGHTS, build_report
from ilgnet_repro.aesthetics.report_page import folder, render, thumbnails, write_report
from ilgnet_repro.aesthetics.results import BatchRow, ImageResults, RunResult, Source
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import DataError, FormatError

IMAGES = Path(__file__).parents[1] / "golden" / "pipeline" / "images"
EVIL = "<script>alert(1)</script>&.jpg"


class Page(HTMLParser):
    """Counts the elements that a reader encounters, and checks that every element is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _run(count: int = 300, batch_size: int = 50, **changes) -> RunResult:
    rng = np.random.default_rng(4)
    labels = (rng.random(count) < 0.7).astype(int)
    probability = 1 / (1 + np.exp(-rng.normal(np.where(labels == 1, 1.5, -0.5), 1)))
    names = np.array(["0001.jpg", "0008.png", EVIL, "0000.png"])[np.arange(count) % 4]
    images = ImageResults(names, labels, probability, cross_entropy(probability, labels))
    right = images.correct.reshape(-1, batch_size).sum(axis=1) if count else []
    values = {
        "protocol": "full",
        "dataset": "ava1",
        "weights": Source("w.caffemodel", "ab" * 32),
        "random_weights": False,
        "partition": Source("val.txt", "cd" * 32, "AVA1 val"),
        "mean": Source("mean.binaryproto"),
        "preprocessing": "centre crop 227",
        "batch_size": batch_size,
        "batches": tuple(BatchRow(k, batch_size, int(n)) for k, n in enumerate(right)),
        "images": images,
        "warnings": ("the mean file is <unknown>",),
        "versions": {"torch": "2.13"},
        "command": "ilgnet test ava1 --pictures 'a & b'",
        "elapsed": 3.0,
    }
    return RunResult(**{**values, **changes})


def _log(counts: list[int], batch_size: int) -> TestLog:
    net = f"Initializing net from parameters: \nbatch_size: {batch_size}\n"
    lines = [f"Batch {k}, top-1 = {count / batch_size:g}" for k, count in enumerate(counts)]
    prefix = "I1121 09:27:28.918282 1 caffe.cpp:1] "
    return parse_test_log(prefix + net + "".join(f"{prefix}{line}\n" for line in lines), "log.txt")


def test_page_is_whole_escaped_and_accessible(tmp_path: Path) -> None:
    report = build_report(_run())
    write_report(report, tmp_path / "r.html", images=folder(IMAGES))
    html = (tmp_path / "r.html").read_text()
    page = Page(html)
    assert page.open == []
    assert "<script" not in html and "<unknown>" not in html and "a &amp; b" in html
    assert not any(mark in html for mark in ("http-equiv", "<link", 'src="http', "@import"))
    assert len(page.all("svg")) == 5
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert page.all("img") and all(image["alt"] for image in page.all("img"))
    assert all(head["scope"] in ("row", "col") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_thumbnails_are_the_images() -> None:
    report = build_report(_run())
    groups = dict(thumbnails(report, folder(IMAGES)))
    images = report.run.images
    assert groups["Scored highest"][0].probability == images.probability.max()
    assert groups["Scored lowest"][0].probability == images.probability.min()
    assert groups["Worst mistakes"][0].probability == max(
        images.probability[~images.correct], key=lambda value: abs(value - 0.5)
    )
    shown = [image for row in groups.values() for image in row]
    assert all(bool(image.data) == (image.name != EVIL) for image in shown)
    data = next(image.data for image in shown if image.data)
    small = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert max(small.shape[:2]) == 160


def test_figures_in_page_and_json_agree(tmp_path: Path) -> None:
    run = _run()
    write_report(build_report(run), tmp_path / "r.html")
    values = json.loads((tmp_path / "r.json").read_text())
    right = int(run.images.correct.sum())
    assert values["metrics"]["accuracy"]["value"] == right / 300 == values["protocol_accuracy"]["value"]
    assert values["published"]["correct"] == 2042 and values["compatibility"]["p_value"] > 0
    assert f"{right / 3:.2f} %" in (tmp_path / "r.html").read_text()


def test_random_weights_are_named_in_every_section() -> None:
    report = build_report(_run(random_weights=True))
    page = Page(render(report))
    assert page.words.count(RANDOM_WEIGHTS) == len(page.all("section"))
    assert report.compatibility is None
    assert RANDOM_WEIGHTS not in render(build_report(_run()))


def test_log_in_both_orders() -> None:
    run = _run(20_000)
    order = caffe_shuffle(20_000, 1164)
    counts = run.images.correct[order][:2500].reshape(50, 50).sum(axis=1).tolist()
    given, permuted = build_report(run, _log(counts, 50)).verdicts
    assert (given.order, given.verdict) != (permuted.order, permuted.verdict)
    assert given.verdict != "identical" and not given.same_rows
    assert permuted.verdict == "identical" and permuted.equal == 50 and "seed 1164" in permuted.order


def test_log_of_another_batch_size_is_counted_from_the_images() -> None:
    run = _run(400, batch_size=40)
    counts = run.images.correct[:300].reshape(10, 30).sum(axis=1).tolist()
    (verdict,) = build_report(run, _log(counts, 30)).verdicts
    assert verdict.verdict == "identical"


def test_log_longer_than_the_run_gives_no_verdict() -> None:
    assert build_report(_run(100), _log([30] * 5, 50)).verdicts == ()


def test_compared_with_another_run() -> None:
    run = _run(4, batch_size=2)
    wrong = ImageResults(run.images.names, run.images.labels, 1 - run.images.probability, run.images.loss)
    report = build_report(run, other=_run(4, batch_size=2, images=wrong), other_name="the <other>")
    assert report.mcnemar is not None
    right = int(run.images.correct.sum())
    assert (report.mcnemar.only_first, report.mcnemar.only_second) == (right, 4 - right)
    assert "Compared with the &lt;other&gt;" in render(report)


def test_runs_over_other_images_are_refused() -> None:
    empty = _run(0)
    with pytest.raises(DataError, match="share no image"):
        build_report(_run(), other=empty)


def test_an_empty_run_has_a_page_too() -> None:
    page = Page(render(build_report(_run(0))))
    assert page.open == [] and "no image" in page.words and not page.all("svg")


def test_page_and_json_must_be_two_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="would be one file"):
        write_report(build_report(_run()), tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    read = folder(tmp_path)
    assert [read(name) for name in ("empty.jpg", "none.jpg", "a\0b")] == [None] * 3


def test_why_a_log_was_not_compared_is_said(tmp_path, capsys) -> None:
    tiny = TinySet(tmp_path, 23)
    tiny.store()
    run = tmp_path / "run"
    assert main(["test", "own", "--lmdb", str(tmp_path / "lmdb"), *tiny.arguments("--out", str(run))]) == 0
    log = tmp_path / "log.txt"
    log.write_text(test_log([4, 5, 6, 4], 10))
    capsys.readouterr()
    assert main(["report", str(run / "run.json"), "--log", str(log)]) == 0
    reason = (
        "the log has 4 batches of 10 images and the run read 23 images in 1 batches of 50; run protocol published with "
        "the log's batches, or full"
    )
    assert f"not compared with the log: {reason}" in capsys.readouterr().out
    assert json.loads((run / "report.json").read_text())["not_compared"] == reason
    assert "Not compared with the authors" in (run / "report.html").read_text()


def test_log(counts: list[int], size: int) -> str:
    """A `caffe test` log of these right answers."""
    prefix = "I0101 00:00:00.000000 1 "
    head = f"{prefix}net.cpp:58] Initializing net from parameters: \nlayer {{ data_param {{ batch_size: {size} }} }}"
    rows = [
        f"{prefix}caffe.cpp:304] Batch {k}, accuracy = {count / size:.6g}" for k, count in enumerate(counts)
    ]
    return "\n".join([head, *rows]) + "\n"


test_log.__test__ = False


def test_the_seed_of_a_log_is_searched_on_the_answers(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        "ilgnet_repro.aesthetics.report_data.search_seed", partial(search_seed, seeds=range(40))
    )
    run = _run(200, 10)
    run.write(tmp_path / "run.json")
    right = run.images.correct[caffe_shuffle(200, 23)].reshape(-1, 10).sum(axis=1)
    (tmp_path / "log.txt").write_text(test_log(right.tolist(), 10))
    command = ["report", str(tmp_path / "run.json"), "--log", str(tmp_path / "log.txt"), "--search-seeds"]
    assert main(command) == 0
    assert "seed 23 explains the log: p = " in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())["seed_search"]
    assert (found["found"], found["tried"], found["best"][0]["difference"]) == (23, 40, 0)
    assert "Seed 23 explains the log" in (tmp_path / "report.html").read_text()
    assert main(command[:2] + command[4:]) == 1
    assert (
        capsys.readouterr().err
        == "ilgnet: --search-seeds: goes with the log whose order is searched; add --log\n"
    )


def test_mcnemar_says_how_many_images_both_runs_read(tmp_path, capsys) -> None:
    tiny = TinySet(tmp_path, 23)
    database = str(tiny.store())
    for name, more in (("a", []), ("b", ["--protocol", "published", "--batches", "2", "--batch-size", "7"])):
        command = ["test", "own", "--lmdb", database, *tiny.arguments("--out", str(tmp_path / name), *more)]
        assert main(command) == 0
    capsys.readouterr()
    both = [str(tmp_path / name / "run.json") for name in "ab"]
    assert main(["report", both[0], "--other", both[1]]) == 0
    assert "(McNemar, 14 images that both read): right only here 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "report.json").read_text())["mcnemar"]["images"] == 14


def test_no_fixed_width_of_a_page_exceeds_a_phone() -> None:
    """A column of a grid, a cell, an image: none is wider than a screen of 420 pixels with its margins."""
    for template in ("aesthetics/report_page.html.j2", "reading/sheet_page.html.j2"):
        text = (Path(ilgnet_repro.__file__).parent / template).read_text()
        assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
        style = text[text.index("<style>") : text.index("</style>")]
        rem = [float(width) for width in re.findall(r"(?<!max-)(?:width|minmax\()[: ]*([\d.]+)rem", style)]
        assert max(rem, default=0) * 16 < 420 - 2 * 20 - 2 * 23
        assert re.search(r"svg[^{]*{[^}]*max-width: 100%", style)
