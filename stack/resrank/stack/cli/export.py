"""``resrank export``: a checkpoint becomes a model repository."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from resrank.core.errors import ExportError, InvalidInputError
from resrank.core.limits import DEFAULT_EMBEDDING_CACHE_MIB
from resrank.core.terminal import Terminal, print_json
from resrank.export.manifest import Runtime, capability_name
from resrank.serving.engines.base import EngineKind, Precision
from resrank.stack.cli.options import Output, OutputOption
from resrank.stack.own_name import own_name

if TYPE_CHECKING:
    from resrank.export.exporter import ExportReport

app = typer.Typer(rich_markup_mode="markdown")

_AUTO = "auto"
_CPU_PANEL = "Runtime cpu"
_GPU_PANEL = "Runtimes tensorrt, tensorrt-rtx and torch"


@app.command(
    epilog="Examples: `resrank export checkpoint --out repository` · "
    "`resrank export checkpoint --runtime tensorrt --precision bf16` · "
    "`resrank export checkpoint --runtime tensorrt-rtx --compute-capability 80,89`"
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint folder, full or adapter.", envvar="RESRANK_CHECKPOINT")
    ],
    out: Annotated[Path, typer.Option(help="The model repository to write.", envvar="RESRANK_REPOSITORY")] = Path(
        "repository"
    ),
    runtime: Annotated[
        Runtime,
        typer.Option(
            help="What serves: a CPU; GPUs with Triton's TensorRT backend; torch on either. tensorrt-rtx serves "
            "nowhere: it proves on any machine that the graphs build."
        ),
    ] = Runtime.CPU,
    precision: Annotated[
        str,
        typer.Option(
            help="Matrix products in; `auto`: the fastest that passes the parity gate, on GPUs bf16 before fp32. "
            "`int8`: the encoder on a CPU; `auto` takes it where it was measured to rank as fp32 does.",
            metavar="[auto|fp32|bf16|fp16|int8]",
        ),
    ] = _AUTO,
    force: Annotated[bool, typer.Option("--force", help="Replace a repository that an earlier export wrote.")] = False,
    embedding_cache_mib: Annotated[
        int, typer.Option(min=0, help="Memory of `rerank_text` for vectors of passages it has seen, in MiB; 0: none.")
    ] = DEFAULT_EMBEDDING_CACHE_MIB,
    output: OutputOption = Output.TEXT,
    cpu_engine: Annotated[
        str,
        typer.Option(
            help="Which engine; `auto`: the fastest that passes.",
            metavar="[auto|openvino|onnxruntime]",
            rich_help_panel=_CPU_PANEL,
        ),
    ] = _AUTO,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one inference; 0: all cores.", rich_help_panel=_CPU_PANEL)
    ] = 0,
    compute_capability: Annotated[
        str,
        typer.Option(
            help="GPUs to build for, as 80,89; for tensorrt by default the one that builds.",
            show_default=False,
            rich_help_panel=_GPU_PANEL,
        ),
    ] = "",
    gpus: Annotated[
        str,
        typer.Option(
            help="Numbers of the GPUs that serve, as 0,1; by default all.",
            show_default=False,
            rich_help_panel=_GPU_PANEL,
        ),
    ] = "",
    instances: Annotated[
        int, typer.Option(min=1, help="Engines of each model on each GPU.", rich_help_panel=_GPU_PANEL)
    ] = 1,
    encoder_profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Shapes of the encoder, batch x tokens, each min:opt:max, as 1:16:64x8:256:512. Repeat it for several "
            "profiles.",
            show_default=False,
            rich_help_panel=_GPU_PANEL,
        ),
    ] = None,
    reranker_profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Shapes of the reranker, batch x sequence x candidates, as 1:8:16x16:192:512x1:50:128. Repeatable.",
            show_default=False,
            rich_help_panel=_GPU_PANEL,
        ),
    ] = None,
) -> None:
    """Export a checkpoint into a complete Triton model repository.

    An adapter checkpoint is merged with the models it was trained on first, where `resrank.json` names ones that can be
    fetched; else `resrank checkpoint merge` takes their folders.

    Every engine, or the graph that it is built from, is held against the torch reference in fp32, at residual gate 1,
    before anything is written. `--runtime tensorrt` leaves its plans to `build-engines.sh` in the repository, which
    builds them in the container that serves.
    """
    from resrank.export.export_options import ExportOptions
    from resrank.export.profiles import EncoderProfile, RerankerProfile

    options = ExportOptions(
        runtime=runtime,
        precision=_choice(Precision, precision, "--precision"),
        cpu_engine=_choice(EngineKind, cpu_engine, "--cpu-engine"),
        threads=threads,
        embedding_cache_mib=embedding_cache_mib,
        compute_capabilities=_capabilities(compute_capability),
        gpus=_numbers(gpus, "gpus", 0),
        instances=instances,
        encoder_profiles=_profiles(EncoderProfile.parse, encoder_profile, "encoder_profile"),
        reranker_profiles=_profiles(RerankerProfile.parse, reranker_profile, "reranker_profile"),
    )
    # Imported here: torch takes seconds, and neither --help nor a wrong option needs it.
    from resrank.export.exporter import export_checkpoint

    console = Terminal(stderr=output is Output.JSON, highlight=False)
    report = export_checkpoint(
        checkpoint, out, options, force=force, notify=lambda step: console.print(f"{step} …", markup=False)
    )
    if output is Output.JSON:
        print_json(_as_json(report))
    else:
        _print(report, console)


_Kind = TypeVar("_Kind", bound=StrEnum)
_Profile = TypeVar("_Profile")


def _choice(kind: type[_Kind], text: str, option: str) -> _Kind | None:
    if text == _AUTO:
        return None
    try:
        return kind(text)
    except ValueError:
        allowed = ", ".join([_AUTO, *(member.value for member in kind)])
        raise typer.BadParameter(f"{text!r} is not one of: {allowed}", param_hint=option) from None


def _numbers(text: str, field: str, least: int) -> tuple[int, ...]:
    """``80,89`` as numbers."""
    try:
        numbers = tuple(map(int, text.split(","))) if text else ()
    except ValueError:
        raise InvalidInputError(field, f"{text!r} is no list of numbers, as in 80,89") from None
    if numbers and min(numbers) < least:
        raise InvalidInputError(field, "too small a number", limit=least, value=min(numbers))
    return numbers


def _capabilities(text: str) -> tuple[str, ...]:
    """``80,8.9`` as NVIDIA writes them."""
    for entry in text.split(",") if text else ():
        if "." in entry and not re.fullmatch(r"\s*\d+\.\d\s*", entry):
            raise InvalidInputError("compute_capability", f"{entry!r} is none, as in 89 or 8.9")
    return tuple(capability_name(sm) for sm in _numbers(text.replace(".", ""), "compute_capability", 50))


def _profiles(parse: Callable[[str], _Profile], texts: list[str] | None, field: str) -> tuple[_Profile, ...]:
    try:
        return tuple(map(parse, texts or ()))
    except ExportError as error:
        raise InvalidInputError(field, str(error)) from None


def _print(report: ExportReport, console: Terminal) -> None:
    from rich.markup import escape

    from resrank.export.parity import parity_table

    console.print(parity_table([choice.parity for choice in report.tried]), soft_wrap=True)
    for model, facts in report.manifest.models.items():
        latency = report.chosen[model].latency_ms
        took = "" if latency is None else f", {latency:.1f} ms a pass"
        console.print(f"[green]✓[/] {model.value}: {facts.engine.value} {facts.precision.value}{took}")
        for capability, plan in facts.plans.items():
            megabytes = plan.bytes / 1e6
            console.print(f"    {plan.file}: compute capability {capability}, {megabytes:.1f} MB", soft_wrap=True)
    for reason in report.refused:
        console.print(f"[yellow]-[/] {escape(reason)}", soft_wrap=True)
    if report.manifest.runtime is Runtime.TENSORRT_RTX:
        console.print(
            f"[green]✓[/] {report.repository}: its graphs build; nothing serves these plans, so export with "
            "--runtime tensorrt to serve",
            soft_wrap=True,
        )
        return
    if report.put_off is None:
        console.print(
            f"[green]✓[/] {report.repository}: serve it with `{own_name()} serve {report.repository}`", soft_wrap=True
        )
        return
    console.print(f"[yellow]-[/] the engines are not built here: {escape(report.put_off)}", soft_wrap=True)
    console.print(
        f"[green]✓[/] {report.repository}: run its build-engines.sh inside the Triton container that will serve it",
        soft_wrap=True,
    )


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
        "engines_left_to_build": report.put_off,
        "manifest": report.manifest.model_dump(mode="json"),
    }
