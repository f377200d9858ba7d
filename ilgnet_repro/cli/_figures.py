"""A run's figures as tables on stdout, with what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..aesthetics.caffe_shuffle import SeedSearch
    from ..aesthetics.report_data import Report


def print_report(report: Report) -> None:
    """Print the warnings, the accuracy and the published one, all figures, verdicts and McNemar's test."""
    from rich.markup import escape

    from ..errors import printable
    from ._console import results_console

    console = results_console()
    run = report.run
    console.print(
        f"[bold]{escape(run.dataset)}, protocol {escape(run.protocol)}[/]: {escape(run.preprocessing)}",
        markup=True,
    )
    console.print(f"weights: {printable(run.weights.name)}", soft_wrap=True)
    console.print(f"computed by {printable(run.computed)}", soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True, markup=True)
    _headline(console, report)
    _figures(console, report)
    for verdict in report.verdicts:
        console.print(
            f"compared with the log, rows {escape(verdict.order)}: [bold]{verdict.verdict}[/]; {verdict.equal} of "
            f"{verdict.batches} batches equal ({verdict.expected_equal:.1f} by chance), {verdict.ours:,} against "
            f"{verdict.theirs:,} of {verdict.count:,} right, Fisher's exact p = {verdict.total_p:.3g}",
            soft_wrap=True,
            markup=True,
        )
        for text in verdict.explanations:
            console.print(f"  {printable(text)}", soft_wrap=True)
    if report.not_compared:
        console.print(printable(f"not compared with the log: {report.not_compared}"), soft_wrap=True)
    if report.seeds:
        _seeds(console, report.seeds)
    if report.mcnemar:
        test = report.mcnemar
        console.print(
            f"compared with {printable(report.other_name)} (McNemar, {test.images:,} images that both read): "
            f"right only here {test.only_first:,}, "
            f"only there {test.only_second:,}, exact p = {test.exact_p:.3g}",
            soft_wrap=True,
        )


def _seeds(console: Console, search: SeedSearch) -> None:
    from ..aesthetics.report_page import seed_rows

    _table(console, (f"seed, of {search.tried:,}", "r over batches", "difference"), seed_rows(search))
    if search.found is None:
        console.print(f"no seed is better than chance: p = {search.p_value:.3g}")
    else:
        console.print(f"seed {search.found} explains the log: p = {search.p_value:.3g}")


def _headline(console: Console, report: Report) -> None:
    from ..aesthetics.report_data import accuracy_rows

    _table(console, ("accuracy", "value", "right / images", "95 % Wilson"), accuracy_rows(report))
    if report.compatibility:
        test = report.compatibility
        console.print(
            f"{'compatible' if test.compatible else 'not compatible'} with the published figure: "
            f"{100 * test.difference:+.2f} points, Fisher's exact p = {test.p_value:.3g}"
        )


def _figures(console: Console, report: Report) -> None:
    from ..aesthetics.metrics import FIGURES
    from ..aesthetics.report_data import confusion_rows, figure_rows

    metrics, run = report.metrics, report.run
    # As Caffe averages; where the last batch is a smaller one it would weigh too much.
    losses = [batch.loss for batch in run.batches if batch.loss is not None and batch.size == run.batch_size]
    whole = losses and len(losses) == len(run.batches)
    averaged = [("loss, mean of the batches", f"{sum(losses) / len(losses):.6g}", "")] if whole else []
    rows = figure_rows(metrics)
    after_loss = [field for _, field, _ in FIGURES].index("loss") + 1
    rows[after_loss:after_loss] = averaged
    _table(console, (f"over {metrics.count:,} images", "value", "95 %, or why none"), rows)
    _table(console, ("label", "answered low", "answered high"), confusion_rows(metrics))


def _table(console: Console, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
