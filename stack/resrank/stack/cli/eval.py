"""``resrank eval``: what a checkpoint is worth on judged collections."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.terminal import Terminal, print_json
from resrank.evaluation.names import Through
from resrank.stack.cli.options import Output, OutputOption
from resrank.stack.cli.progress import shown_progress

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank eval examples/hotpotqa-mini --checkpoint var/checkpoint` · "
    "`resrank eval nfcorpus cranfield --repository var/repository --checkpoint var/checkpoint --out results` · "
    "`resrank eval trec-dl19 --split all-judged --candidates bm25.trec --checkpoint var/checkpoint`"
)
def eval_(
    collections: Annotated[
        list[Path],
        typer.Argument(
            metavar="COLLECTION...", help="Folders in BEIR layout: corpus and queries as JSON lines, qrels/SPLIT.tsv."
        ),
    ],
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    qrels: Annotated[Path | None, typer.Option(help="Judgements from elsewhere, in the form of BEIR.")] = None,
    candidates: Annotated[
        str,
        typer.Option(
            metavar="[lexical|dense|hybrid|FILE]",
            help="From this project's own index, or from a file: a TREC run, or JSON lines with qid and docids.",
        ),
    ] = "dense",
    retriever: Annotated[
        str | None, typer.Option(help="Which lists, in a file that holds those of several retrievers.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, max=MAX_MESSAGE_RECORDS, help="Candidates to rerank.")] = 100,
    queries: Annotated[
        int | None, typer.Option(min=1, help="Take the first so many questions only [default: all].")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(help="Measures in the names of ir-measures; differences are of the first. Repeatable."),
    ] = None,
    shuffles: Annotated[int, typer.Option(min=1, help="Random orders of the candidates to rerank.")] = 5,
    sizes: Annotated[
        str, typer.Option(help="Numbers of candidates for the size sensitivity, with commas; empty for none.")
    ] = "10,20,50,100,200",
    blocks: Annotated[
        str, typer.Option(help="Blocks that the candidates of one pass are cut into, with commas; empty for none.")
    ] = "2,4",
    seen: Annotated[
        list[Path] | None,
        typer.Option(help="Training data (lists, or a BEIR folder): judge apart what it does not hold. Repeatable."),
    ] = None,
    through: Annotated[
        Through | None,
        typer.Option(help="torch in this process, or the deployed stack [default: stack if one is given]."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(envvar="RESRANK_CHECKPOINT", help="The checkpoint; with a stack, for rows with a part left out."),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(envvar="RESRANK_REPOSITORY", help="Start a Triton on this model repository, and stop it."),
    ] = None,
    triton_url: Annotated[
        str | None, typer.Option(envvar="RESRANK_TRITON_URL", help="host:port of a Triton that runs already.")
    ] = None,
    retrieval_url: Annotated[
        str | None,
        typer.Option(
            envvar="RESRANK_RETRIEVAL_URL",
            help="host:port of a sidecar whose index holds the collection and is only read [default: one is made].",
        ),
    ] = None,
    indexes: Annotated[
        Path | None,
        typer.Option(help="Keep the indexes in this folder; the next evaluation embeds only what is missing."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of shuffles and resampling.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write summary, every question, and TREC runs of all rankings to this folder."),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Measure a checkpoint on judged collections, against the orders that need no LLM.

    The same candidates in up to eleven orders: as found, dense, with words, Rocchio, with parts of the model left out,
    and reranked. With paired differences, and how far order, number and blocks of candidates matter. The page
    docs/evaluation.md says how to read it.
    """
    # Imported here: what they need takes seconds to import, and --help does not need it.
    from resrank.core.measures import MEASURES
    from resrank.evaluation.evaluation import EvaluationSettings
    from resrank.evaluation.run import EvalRequest, run_evaluation
    from resrank.stack.evaluated_checkpoint import EvaluatedCheckpoint
    from resrank.stack.index_sidecar import sidecar_of

    if through is None:
        through = Through.TORCH if repository is None and triton_url is None else Through.STACK
    request = EvalRequest(
        collections=tuple(collections),
        split=split,
        qrels=qrels,
        questions=queries,
        candidates=candidates,
        retriever=retriever,
        settings=EvaluationSettings(
            depth,
            shuffles,
            _numbers(sizes, "--sizes"),
            _numbers(blocks, "--blocks"),
            tuple(measure or MEASURES),
            seed,
        ),
        seen=tuple(seen or ()),
        retrieval=retrieval_url,
        indexes=indexes,
        out=out,
        command=shlex.join(["resrank", *sys.argv[1:]]),
    )
    evaluated = EvaluatedCheckpoint(through, checkpoint, repository, triton_url)
    with shown_progress(Terminal(stderr=True, highlight=False)) as (notify, progress):
        report = run_evaluation(
            request, evaluated.open, partial(sidecar_of, to_fill=True), notify=notify, progress=progress
        )
    if out is not None:
        report.write(out)
    if output is Output.JSON:
        print_json(report.as_json())
        return
    from resrank.evaluation.tables import print_report

    print_report(report, Terminal(highlight=False))


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers with commas", param_hint=option) from None
    if numbers and not 1 <= numbers[0] <= numbers[-1] <= MAX_MESSAGE_RECORDS:
        raise typer.BadParameter(f"{text!r}: each from 1 to {MAX_MESSAGE_RECORDS}", param_hint=option)
    return numbers
