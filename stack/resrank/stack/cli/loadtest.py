"""``resrank loadtest``: load on a running stack, and a report."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from resrank.stack.cli.options import MetricsPortOption, RetrievalPortOption, TritonPortOption
from resrank.stack.ports import METRICS_PORT, RETRIEVAL_PORT, TRITON_PORT

if TYPE_CHECKING:
    from resrank.loadtest.orders import RunOrder, SaturateOrder
    from resrank.loadtest.target import Target

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Send load to a running stack, and report what it made of it.\n\n"
    "Scenarios are YAML files: what is called, how often, on what data, and what must hold. Those in "
    "`loadtest/scenarios` are a start; docs/loadtest.md tells every field.\n\n"
    "Load goes to this machine unless `--host` and `--yes-i-own-this-host` say otherwise. Exit codes: 0 all "
    "objectives are kept, 1 one is missed, 2 nothing could be run.",
    epilog="Examples: `resrank loadtest run loadtest/scenarios/search.yaml --headless` · "
    "`resrank loadtest saturate loadtest/scenarios/rerank.yaml --high 100`",
)

ScenarioArgument = Annotated[Path, typer.Argument(metavar="SCENARIO.yaml", help="What to call, how often, on what.")]
LoadHostOption = Annotated[str, typer.Option("--host", help="Where the servers run.")]
OwnedOption = Annotated[
    bool, typer.Option("--yes-i-own-this-host", help="Needed for any host but this machine: it may not stand the load.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the report [default: var/loadtest/NAME-TIME, NAME the file's].")
]


@app.command(
    epilog="Examples: `resrank loadtest run loadtest/scenarios/search.yaml --headless --out var/report` · "
    "`resrank loadtest run loadtest/scenarios/mixed.yaml` (locust's web interface) · "
    "`resrank loadtest run SCENARIO.yaml --master --workers 2 --headless`, and twice "
    "`resrank loadtest run SCENARIO.yaml --worker`"
)
def run(
    scenario: ScenarioArgument,
    headless: Annotated[
        bool, typer.Option("--headless", help="Run once and end; without it, locust's web interface starts runs.")
    ] = False,
    master: Annotated[bool, typer.Option("--master", help="Command workers instead of making calls.")] = False,
    worker: Annotated[
        bool, typer.Option("--worker", help="Make the calls that a master on this machine orders.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="With --master --headless: how many to wait for [default: 1].")
    ] = None,
    out: OutOption = None,
    host: LoadHostOption = "127.0.0.1",
    owned: OwnedOption = False,
    triton_port: TritonPortOption = TRITON_PORT,
    metrics_port: MetricsPortOption = METRICS_PORT,
    retrieval_port: RetrievalPortOption = RETRIEVAL_PORT,
    master_port: Annotated[int, typer.Option(min=1, max=65534, help="Where workers find their master.")] = 5557,
    web_port: Annotated[int, typer.Option(min=1, max=65535, help="Of locust's web interface.")] = 8089,
) -> None:
    """Run a scenario and write a report: HTML with plots, CSV and JSON.

    Headless, the exit code is 1 when an objective of the scenario is missed. In the web interface every run writes a
    report of its own.
    """
    if master and worker:
        raise typer.BadParameter("--master commands and --worker obeys: give one of them")
    if workers is not None and not (master and headless):
        raise typer.BadParameter("--workers says how many a --master that is --headless waits for")
    target = _target(host, owned, triton_port, metrics_port, retrieval_port)
    from resrank.loadtest.orders import Role, RunOrder

    _check(scenario)
    _become(
        RunOrder(
            scenario=scenario,
            target=target,
            out=out or _folder(scenario),
            role=Role.MASTER if master else Role.WORKER if worker else Role.LOCAL,
            headless=headless,
            workers=workers or 1,
            master_port=master_port,
            web_port=web_port,
        )
    )


@app.command(
    epilog="Examples: `resrank loadtest saturate loadtest/scenarios/rerank.yaml` · "
    "`resrank loadtest saturate loadtest/scenarios/search.yaml --low 2 --high 64 --tolerance 0.1`"
)
def saturate(
    scenario: ScenarioArgument,
    low: Annotated[float, typer.Option(help="Calls a second to start at.")] = 1.0,
    high: Annotated[float, typer.Option(help="Calls a second to end at.")] = 256.0,
    tolerance: Annotated[
        float, typer.Option(help="The rate found is at most this share below one that misses the objectives.")
    ] = 0.05,
    warmup_s: Annotated[float, typer.Option("--warmup", help="Seconds of each probe that are not judged.")] = 3.0,
    probe_s: Annotated[
        float, typer.Option("--probe", help="Seconds of each probe that are; up to four times as many at low rates.")
    ] = 20.0,
    out: OutOption = None,
    host: LoadHostOption = "127.0.0.1",
    owned: OwnedOption = False,
    triton_port: TritonPortOption = TRITON_PORT,
    metrics_port: MetricsPortOption = METRICS_PORT,
    retrieval_port: RetrievalPortOption = RETRIEVAL_PORT,
) -> None:
    """Find the highest rate of a scenario's calls that keeps its objectives.

    In the open loop: doubles the rate until they are missed, then bisects. Takes the scenario's mix, data, deadline and
    SLO, not its load. Prints the rate and writes saturation.json.
    """
    target = _target(host, owned, triton_port, metrics_port, retrieval_port)
    from resrank.core.config_file import validate
    from resrank.loadtest.orders import SaturateOrder
    from resrank.loadtest.saturation import Search

    _check(scenario)
    fields = {"low": low, "high": high, "tolerance": tolerance, "warmup_s": warmup_s, "probe_s": probe_s}
    search = validate(Search, fields)
    _become(SaturateOrder(scenario=scenario, target=target, out=out or _folder(scenario), search=search))


def _target(host: str, owned: bool, triton_port: int, metrics_port: int, retrieval_port: int) -> Target:
    if find_spec("locust") is None:
        raise ModuleNotFoundError("No module named 'locust'", name="locust")
    from resrank.loadtest.target import Target, require_owned

    require_owned(host, owned=owned)
    return Target(host=host, triton_port=triton_port, metrics_port=metrics_port, retrieval_port=retrieval_port)


def _check(scenario: Path) -> None:
    from resrank.loadtest.scenario import load_scenario

    load_scenario(scenario)


def _folder(scenario: Path) -> Path:
    return Path("var/loadtest", f"{scenario.stem}-{datetime.now():%Y%m%d-%H%M%S}")


def _become(order: RunOrder | SaturateOrder) -> NoReturn:
    """Goes on as a process that gevent patches from its first import on: this one has imported too much already."""
    from resrank.loadtest.orders import Order

    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "resrank.loadtest", Order(what=order).model_dump_json()])
