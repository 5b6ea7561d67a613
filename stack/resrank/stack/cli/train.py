"""``resrank train``: from a config to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.errors import ResRankError
from resrank.core.terminal import Terminal, print_json
from resrank.stack.cli.options import Output, OutputOption
from resrank.stack.own_name import own_name

if TYPE_CHECKING:
    from resrank.training.config import TrainConfig
    from resrank.training.state import Progress

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank train training/recipes/smoke.yaml` · "
    "`resrank train my.yaml --set stages.joint.steps=500 --out runs/longer` · "
    "`accelerate launch --num_processes 4 -m resrank.stack train my.yaml` · `resrank train --explain`"
)
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.yaml", help="What to train; `--explain` tells every field.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, value in YAML. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder [default: the config's `output`].")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in the folder stopped, exactly.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is in the folder.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every field of a config: type, default, unit, source.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Train encoder and reranker, in the stages that a config names.

    The best checkpoint by development nDCG@10 (the worse of retrieved and shuffled order) is kept in `OUT/checkpoint`,
    if it is above the encoder's own order before training; a run that keeps nothing ends with 1.
    """
    if explain:
        _explain(output)
        return
    if config is None:
        raise typer.BadParameter("give a config, or --explain", param_hint="CONFIG.yaml")
    if resume and force:
        raise typer.BadParameter("--resume goes on with a run and --force replaces it: give one of them")
    from resrank.training.config_file import load_config

    overrides = [*(set_ or []), *([f"output={json.dumps(str(out), ensure_ascii=False)}"] if out else [])]
    read = load_config(config, overrides)
    # Imported when the config is known to be right: torch takes seconds.
    from resrank.stack.training_run import train as run
    from resrank.training.processes import Processes
    from resrank.training.progress import RunProgress
    from resrank.training.run_folder import Opening

    processes = Processes()
    opening = Opening.RESUME if resume else Opening.FORCE if force else Opening.NEW
    console = Terminal(stderr=True, highlight=False, quiet=not processes.first)
    try:
        ended = run(read, opening, processes, RunProgress(console))
    except ResRankError:
        processes.leave(failed=True)
        raise
    processes.leave()
    if processes.first:
        _report(read, ended, output, Terminal(highlight=False))


def _explain(output: Output) -> None:
    from dataclasses import asdict

    from resrank.training.config import TrainConfig
    from resrank.training.explain import describe, explain_table

    fields = describe(TrainConfig)
    if output is Output.JSON:
        print_json([asdict(field) for field in fields])
    else:
        Terminal(highlight=False).print(explain_table(fields))


def _report(config: TrainConfig, ended: Progress, output: Output, console: Terminal) -> None:
    from resrank.training.progress import described
    from resrank.training.run_folder import RunFolder

    folder = RunFolder(config.output)
    if output is Output.JSON:
        print_json(json.loads(folder.result.read_text(encoding="utf-8")))
        return
    best = ended.best
    if best is None:
        return
    console.print(
        f"[green]✓[/] {folder.checkpoint}: after step {best.step} of {best.stage} {best.gain:+.4f} over dense-start; "
        f"{described(best.score)}",
        soft_wrap=True,
    )
    console.print(f"  serve it: {own_name()} export {folder.checkpoint} --out repository", soft_wrap=True)
