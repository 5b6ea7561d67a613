"""``resrank calibrate``: what a checkpoint's scores mean."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.names import CALIBRATION_FILE
from resrank.core.terminal import Terminal, print_json
from resrank.stack.cli.options import Output, OutputOption
from resrank.stack.cli.progress import shown_progress

if TYPE_CHECKING:
    from rich.table import Table

    from resrank.core.calibration_file import CalibrationFile, HeldOut

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank calibrate checkpoint nfcorpus:dev trec-dl21:test` · "
    "`resrank calibrate checkpoint my-questions --relevant-from 2 --force`"
)
def calibrate(
    checkpoint: Annotated[
        Path, typer.Argument(envvar="RESRANK_CHECKPOINT", help="A full or an adapter checkpoint.", show_default=False)
    ],
    collections: Annotated[
        list[str],
        typer.Argument(
            metavar="COLLECTION[:SPLIT]...",
            help="Folders in BEIR layout, each with the judgements to take [default: test]. Not those that the "
            "checkpoint will be measured on.",
            show_default=False,
        ),
    ],
    depth: Annotated[int, typer.Option(min=1, max=MAX_MESSAGE_RECORDS, help="Candidates of a question.")] = 100,
    relevant_from: Annotated[int, typer.Option(min=1, help="Least grade of a relevant passage.")] = 1,
    folds: Annotated[int, typer.Option(min=2, max=100, help="Parts of the questions, each once held out.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of that division.")] = 0,
    indexes: Annotated[
        Path | None, typer.Option(help="Keep the indexes in this folder; the next time embeds only what is missing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the calibration that is there.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Fit what scores mean: a relevance from 0 to 1, by judged lists.

    Candidates are found as a search finds them, and reranked. A sigmoid (Platt) and an isotonic map are fitted to the
    share of relevant passages, the better one by log loss on held-out questions is kept. Written to calibration.json
    beside the checkpoint, exported with it, told by Triton; scores stay what they are.
    """
    # Imported here: what they need takes seconds to import, and --help does not need it.
    from resrank.core.calibration_file import write_calibration_file
    from resrank.evaluation.calibrate import CalibrationRequest, run_calibration
    from resrank.evaluation.names import Through
    from resrank.stack.evaluated_checkpoint import EvaluatedCheckpoint
    from resrank.stack.index_sidecar import sidecar_of

    if not force and (checkpoint / CALIBRATION_FILE).exists():
        raise typer.BadParameter(f"{checkpoint / CALIBRATION_FILE} exists: replace it with --force")
    request = CalibrationRequest(
        tuple(named_split(text) for text in collections), depth, relevant_from, folds, seed, indexes
    )
    with (
        without_calibration(checkpoint) as fitted,
        shown_progress(Terminal(stderr=True, highlight=False)) as (notify, progress),
    ):
        evaluated = EvaluatedCheckpoint(Through.TORCH, fitted, None, None)
        found = run_calibration(
            request, evaluated.open, partial(sidecar_of, to_fill=True), notify=notify, progress=progress
        )
    write_calibration_file(found, checkpoint)
    if output is Output.JSON:
        print_json(found.model_dump(mode="json"))
        return
    _print(found, checkpoint)


@contextmanager
def without_calibration(checkpoint: Path) -> Iterator[Path]:
    """Gives the checkpoint without its calibration, whatever that was fitted to: it is to be replaced."""
    if not (checkpoint / CALIBRATION_FILE).exists():
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as scratch:
        bare = Path(scratch) / checkpoint.resolve().name
        bare.mkdir()
        for part in checkpoint.resolve().iterdir():
            if part.name != CALIBRATION_FILE:
                (bare / part.name).symlink_to(part)
        yield bare


def named_split(text: str) -> tuple[Path, str]:
    """Folder and split of ``COLLECTION:SPLIT``; a folder whose own name has a colon is taken as it is."""
    folder, colon, split = text.rpartition(":")
    return (Path(folder), split) if colon and not Path(text).is_dir() else (Path(text), "test")


def _print(found: CalibrationFile, checkpoint: Path) -> None:
    from rich.padding import Padding

    console, fit = Terminal(highlight=False), found.fit
    for data in fit.collections:
        console.print(
            f"{data.name} {data.split}: {data.questions} questions, {data.passages} candidates, {data.relevant} "
            f"relevant; held out, ECE {data.reranker.ece:.4f}, with words {data.with_words.ece:.4f}",
            markup=False,
            soft_wrap=True,
        )
    maps = found.calibration
    for title, tried, chosen in (
        ("the reranker's scores", fit.reranker, maps.reranker.name),
        (f"with the words' share, weight {maps.lexical_weight:g}", fit.with_words, maps.with_words.name),
    ):
        console.print(f"\n{title}, on held-out questions")
        console.print(Padding(_table(dict(tried), chosen), (0, 2)))
    console.print(f"[green]✓[/] {checkpoint / CALIBRATION_FILE}", soft_wrap=True)


def _table(tried: dict[str, HeldOut], chosen: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("relevance")
    for name in ("log loss", "Brier", "ECE"):
        table.add_column(name, justify="right")
    table.add_column("")
    for name, figures in tried.items():
        cells = (f"{value:.4f}" for value in (figures.log_loss, figures.brier, figures.ece))
        table.add_row(name, *cells, "kept" if name == chosen else "")
    return table
