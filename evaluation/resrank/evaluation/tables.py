"""An evaluation on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resrank.core.terminal import FullWidth
from resrank.evaluation.evaluation import Evaluation, Row
from resrank.evaluation.report import Change, CollectionReport
from resrank.evaluation.run import EvalReport
from resrank.evaluation.seen import UnseenResult
from resrank.evaluation.significance import Difference

_TITLES = {
    Row.CANDIDATES: "candidates as found",
    Row.DENSE: "dense",
    Row.ROCCHIO: "Rocchio over the top 3",
    Row.PROJECTORS: "projectors alone",
    Row.QUERY_ALONE: "relations to the query alone",
    Row.WITHOUT_TEXT: "without the query's text",
    Row.RERANKED: "reranked, dense order",
    Row.RERANKED_AS_FOUND: "reranked, as found",
    Row.SHUFFLED: "reranked, shuffled",
    Row.DENSE_LEXICAL: "dense + lexical",
    Row.RERANKED_LEXICAL: "reranked + lexical",
}
_NAME_WIDTH = max(map(len, _TITLES.values()))


def print_report(report: EvalReport, console: Console) -> None:
    """Prints every collection's tables."""
    checkpoint = report.checkpoint
    engines = ", ".join(f"{part} {engine}" for part, engine in checkpoint["engines"].items())
    name = checkpoint["name"] or checkpoint["sha256"]
    console.print(Text(f"checkpoint {name}, through {report.through} ({engines})"), soft_wrap=True)
    for collection in report.collections:
        _print_collection(collection, console)


def _print_collection(report: CollectionReport, console: Console) -> None:
    evaluation, collection = report.evaluation, report.collection
    settings = evaluation.settings
    console.print()
    console.print(
        Text.assemble(
            (collection.name, "bold"),
            f" {collection.split}: {len(evaluation.questions)} questions, {len(collection.passages)} passages, "
            f"candidates {report.candidates}, the first {settings.depth}",
        ),
        soft_wrap=True,
    )
    for note in report.notes:
        console.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    _section("", _measures(evaluation), console)
    measure = settings.measures[0]
    for baseline in evaluation.baselines:
        differences = {row: evaluation.compare(row, baseline) for row in evaluation.rows if row is not baseline}
        title = f"{measure}, difference from {_TITLES[baseline]}, paired by question, with 95 % interval"
        _section(title, _differences(differences), console)
    if report.seen is not None:
        unseen, residual = report.seen.unseen_questions, report.seen.residual
        title = f"{measure} of {unseen.questions} questions whose relevant passages training has not read"
        _section(title, _unseen(unseen), console)
        title = f"{measure} of {residual.questions} questions without the relevant passages that training has read"
        _section(title, _unseen(residual), console)
    _print_sensitivity(evaluation, console)
    for title, changes in zip(("Largest wins over dense", "Largest losses"), report.changes(), strict=True):
        if changes:
            _section(title, _changes(changes), console, cut=True)


def _measures(evaluation: Evaluation) -> Table:
    table = _table("", *evaluation.settings.measures)
    for row, result in evaluation.rows.items():
        title = _TITLES[row]
        if row is Row.SHUFFLED:
            title += f" ×{len(result.runs)}"
        table.add_row(title, *(f"{mean:.4f}" for mean in result.means().values()))
    return table


def _differences(differences: dict[Row, Difference]) -> Table:
    table = _table("", "mean", "from", "to", "p", "won", "lost", "tied")
    for row, found in differences.items():
        counts = (found.wins, found.losses, found.ties)
        table.add_row(_TITLES[row], *_interval(found), *map(str, counts))
    return table


def _interval(found: Difference) -> tuple[str, str, str, str]:
    # Green or red only where the interval leaves zero out.
    style = "green" if found.low > 0 else "red" if found.high < 0 else ""
    mean = f"[{style}]{found.mean:+.4f}[/]" if style else f"{found.mean:+.4f}"
    return mean, f"{found.low:+.4f}", f"{found.high:+.4f}", f"{found.p:.4f}"


def _unseen(result: UnseenResult) -> Table:
    table = _table("", "mean", "minus dense", "from", "to", "p")
    for row, mean in result.means.items():
        difference = result.differences.get(row)
        table.add_row(_TITLES[row], f"{mean:.4f}", *(_interval(difference) if difference else ()))
    return table


def _print_sensitivity(evaluation: Evaluation, console: Console) -> None:
    measure = evaluation.settings.measures[0]
    order = evaluation.order
    table = _table("", "", header=False)
    table.add_row("each shuffle", " ".join(f"{mean:.4f}" for mean in order.means))
    for name, value in (
        ("standard deviation of these", order.std),
        ("of a question, on average", order.question_std),
        ("Kendall's tau of two shuffles", order.kendall),
        ("of a shuffle and dense order", order.kendall_to_dense),
    ):
        table.add_row(name, "-" if value is None else f"{value:.4f}")
    _section(f"Order: {measure} when the candidates are read shuffled", table, console)
    if evaluation.sizes:
        table = _table("candidates", "dense", "reranked", "passes", "scores move by")
        for size in evaluation.sizes:
            figures = (f"{size.dense:.4f}", f"{size.reranked:.4f}", str(size.passes), f"{size.score_shift:.4f}")
            table.add_row(f"first {size.size}", *figures)
        _section(f"Size: {measure} of the first candidates alone", table, console)
    if evaluation.blocks:
        table = _table("", measure, "tau to one pass", "scores move by")
        for block in evaluation.blocks:
            name = f"{block.passages} candidates in one pass" if block.blocks == 1 else f"in {block.blocks} blocks"
            tau = "-" if block.kendall is None else f"{block.kendall:.4f}"
            table.add_row(name, f"{block.mean:.4f}", tau, f"{block.score_shift:.4f}")
        _section("Blocks: the same candidates scored apart and merged", table, console)


def _changes(changes: Sequence[Change]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for change in changes:
        figures = f"{change.gain:+.4f}", f"{change.dense:.2f} → {change.reranked:.2f}"
        table.add_row(*figures, Text(change.question), Text(change.text, overflow="ellipsis", no_wrap=True))
    return table


def _table(*columns: str, header: bool = True) -> Table:
    table = Table(box=None, show_header=header, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if number == 0 else "right",
            no_wrap=True,
            min_width=_NAME_WIDTH if number == 0 else None,
        )
    return table


def _section(title: str, table: Table, console: Console, *, cut: bool = False) -> None:
    """Shows a table below a title; ``cut`` to the terminal's width where its last column may be."""
    console.print()
    if title:
        console.print(Text(title), soft_wrap=True)
    indented = Padding(table, (0, 0, 0, 2), expand=False)
    console.print(indented if cut else FullWidth(indented), crop=False)
