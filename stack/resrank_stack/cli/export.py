"""``resrank export``: a checkpoint becomes a model repository."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from resrank.engines.base import EngineKind, Precision
from resrank_stack.cli.options import Output, OutputOption

if TYPE_CHECKING:
    from resrank_export.exporter import ExportReport

app = typer.Typer(rich_markup_mode="markdown")

_AUTO = "auto"


@app.command(
    epilog="Examples: `resrank export checkpoint --out repository` · "
    "`resrank export checkpoint --out repository --cpu-engine onnxruntime --precision fp32`"
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint folder, full or adapter.", envvar="RESRANK_CHECKPOINT")
    ],
    out: Annotated[Path, typer.Option(help="The model repository to write.", envvar="RESRANK_REPOSITORY")] = Path(
        "repository"
    ),
    runtime: Annotated[str, typer.Option(help="Where the engines run: `cpu`.", metavar="[cpu]")] = "cpu",
    cpu_engine: Annotated[
        str, typer.Option(help="Which engine; `auto`: the fastest that passes.", metavar="[auto|openvino|onnxruntime]")
    ] = _AUTO,
    precision: Annotated[
        str, typer.Option(help="Matrix products in; `auto`: the fastest that passes.", metavar="[auto|fp32|bf16]")
    ] = _AUTO,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one inference; 0: all cores.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a repository that an earlier export wrote.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Export a checkpoint into a complete Triton model repository.

    An adapter checkpoint is merged with the models it was trained on first, where `resrank.json` names ones that can be
    fetched; else `resrank checkpoint merge` takes their folders.

    Every engine is held against the torch reference in fp32, at residual gate 1, before anything is written.
    """
    if runtime != "cpu":
        raise typer.BadParameter(f"{runtime!r} is not a runtime; there is: cpu", param_hint="--runtime")
    kind = _choice(EngineKind, cpu_engine, "--cpu-engine")
    wished = _choice(Precision, precision, "--precision")
    # Imported here: torch takes seconds, and --help does not need it.
    from rich.console import Console

    from resrank_export.exporter import export_checkpoint
    from resrank_export.parity import parity_table

    console = Console(stderr=output is Output.JSON, highlight=False)
    report = export_checkpoint(
        checkpoint,
        out,
        cpu_engine=kind,
        precision=wished,
        threads=threads,
        force=force,
        progress=lambda step: console.print(f"{step} …"),
    )
    if output is Output.JSON:
        typer.echo(json.dumps(_as_json(report), indent=2))
        return
    console.print(parity_table([choice.parity for choice in report.tried]), soft_wrap=True)
    for name, choice in report.chosen.items():
        options = choice.parity.options
        engine = f"{options.kind.value} {options.precision.value}"
        console.print(f"[green]✓[/] {name.value}: {engine}, {choice.latency_ms:.1f} ms a pass")
    for reason in report.refused:
        console.print(f"[yellow]-[/] {reason}")
    console.print(f"[green]✓[/] {report.repository}: serve it with `resrank serve {report.repository}`")


_Kind = TypeVar("_Kind", bound=StrEnum)


def _choice(kind: type[_Kind], text: str, option: str) -> _Kind | None:
    if text == _AUTO:
        return None
    try:
        return kind(text)
    except ValueError:
        allowed = ", ".join([_AUTO, *(member.value for member in kind)])
        raise typer.BadParameter(f"{text!r} is not one of: {allowed}", param_hint=option) from None


def _as_json(report: ExportReport) -> dict[str, object]:
    return {
        "repository": str(report.repository),
        "tried": [
            {
                "model": choice.parity.model.value,
                "engine": choice.parity.options.kind.value,
                "precision": choice.parity.options.precision.value,
                "state_cosine": choice.parity.state_cosine,
                "score_difference": choice.parity.score_difference,
                "kendall_tau": choice.parity.kendall_tau,
                "passed": choice.parity.passed,
                "latency_ms": choice.latency_ms,
                "chosen": choice is report.chosen[choice.parity.model],
            }
            for choice in report.tried
        ],
        "refused": list(report.refused),
    }
