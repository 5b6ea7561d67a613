"""``resrank index``: fill an index, change it, look at it."""

from __future__ import annotations

import asyncio
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import IndexFolderError, InvalidInputError
from resrank.core.terminal import Terminal, print_json, visible
from resrank.retrieval.store_url import LOCAL, StoreUrl
from resrank.stack.cli.options import (
    CollectionOption,
    IndexOption,
    Output,
    OutputOption,
    TritonUrlOption,
    index_arguments,
)

if TYPE_CHECKING:
    from resrank.client.index_build import BuildReport, BuildSettings

app = typer.Typer(no_args_is_help=True, help="Build, change and inspect an index.", rich_markup_mode="markdown")

CorpusArgument = Annotated[
    Path, typer.Argument(help="JSON lines with _id, title and text (BEIR); .gz is unpacked.", metavar="CORPUS")
]


@app.command(epilog="Example: `resrank index build examples/hotpotqa-mini/corpus.jsonl.gz --index var/index`")
def build(
    corpus: CorpusArgument,
    index: IndexOption,
    collection: CollectionOption = "",
    triton_url: Annotated[
        list[str] | None,
        typer.Option(
            "--triton-url",
            envvar="RESRANK_TRITON_URL",
            help="host:port of Triton's gRPC endpoint; with --ray several, one option each.",
            show_default="localhost:8001",
        ),
    ] = None,
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Encode by workers on Ray: `local` starts one here for the build, `auto` takes the one that runs "
            "here, host:port a cluster that this machine belongs to.",
        ),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that send passages to a Triton, with --ray.", show_default="2 for each Triton"),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Afterwards remove what the index holds and the corpus does not.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Embed a corpus and store it; a second run does only what is missing or has changed.

    A collection that does not exist yet is made. What is stored is found at once, also while an alias names it.
    The file is checked before anything is encoded; a pipe is read once. A running sidecar that owns the folder does the
    writing; without one this command serves the folder itself meanwhile, and a second build is refused.
    A bad line is named, with exit code 2, and nothing is stored.

    With `--ray` a batch that fails is named and the others go on, until ten have failed; the exit code is that of the
    first one.
    """
    from resrank.client.index_build import BuildSettings

    settings = BuildSettings(prune=prune, make_collection=True)
    tritons = list(dict.fromkeys(triton_url or ["localhost:8001"]))
    if ray:
        _fill_on_ray(corpus, index, collection, tritons, ray, workers, settings, output)
        return
    if workers is not None:
        raise InvalidInputError("workers", "are Ray's: say where it runs by --ray")
    if len(tritons) > 1:
        raise InvalidInputError("triton-url", "several of them need --ray", limit=1, value=len(tritons))
    _fill(corpus, index, collection, tritons[0], settings, output)


@app.command(epilog="Example: `resrank index upsert new.jsonl --index var/index`")
def upsert(
    corpus: CorpusArgument,
    index: IndexOption,
    collection: CollectionOption = "",
    triton_url: TritonUrlOption = "localhost:8001",
    output: OutputOption = Output.TEXT,
) -> None:
    """Embed and store every passage of a file, also those that the index holds unchanged."""
    from resrank.client.index_build import BuildSettings

    _fill(corpus, index, collection, triton_url, BuildSettings(skip_unchanged=False, make_collection=True), output)


@app.command(epilog="Example: `resrank index delete doc-17 doc-18 --index var/index`")
def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of the passages to remove.")],
    index: IndexOption,
    collection: CollectionOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Remove passages; ids that are not in the index are reported and are no error."""
    from resrank.stack.index_sidecar import sidecar_of

    require_folder(index)

    async def run() -> list[str]:
        async with sidecar_of(index, collection) as sidecar:
            return await sidecar.delete(ids)

    missing = asyncio.run(run())
    deleted = len(set(ids)) - len(missing)
    if output is Output.JSON:
        print_json({"deleted": deleted, "missing": missing})
        return
    print(f"deleted {deleted}" + (f", not in the index: {visible(', '.join(missing))}" if missing else ""))


@app.command(epilog="Example: `resrank index describe --index var/index --output json`")
def describe(index: IndexOption, collection: CollectionOption = "", output: OutputOption = Output.TEXT) -> None:
    """Print what an index holds and to which encoder it belongs."""
    from resrank.core.sidecar.v1.retrieval_pb2 import DescribeResponse, FieldType
    from resrank.stack.index_sidecar import sidecar_of

    require_folder(index)

    async def run() -> DescribeResponse:
        async with sidecar_of(index, collection) as sidecar:
            return await sidecar.describe()

    response = asyncio.run(run())
    facts = {field.name: getattr(response, field.name) for field in response.DESCRIPTOR.fields}
    fields = {field.name: FieldType.Name(field.type).removeprefix("FIELD_TYPE_").lower() for field in response.fields}
    if output is Output.JSON:
        print_json({**facts, "fields": fields})
        return
    facts["fields"] = ", ".join(f"{name} ({kind})" for name, kind in fields.items()) or "none"
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<16}{visible(str(value))}")


@app.command(epilog="Example: `resrank index verify --index var/index`")
def verify(index: IndexOption, output: OutputOption = Output.TEXT) -> None:
    """Read everything that an index holds and compare it with what was stored; change nothing.

    For an index that no sidecar serves. Exit code 1 when something is damaged, with a line for each.
    """
    from resrank.retrieval.local.verification import verify as run

    require_local(index)
    found = run(index.folder)
    if output is Output.JSON:
        print_json({"records": found.records, "problems": list(found.problems)})
    else:
        for problem in found.problems:
            print(visible(problem))
        print(f"{found.records} records compared, {len(found.problems) or 'no'} problems")
    if found.problems:
        raise typer.Exit(1)


@app.command(epilog="Example: `resrank index backup docs.backup --index var/index --collection docs`")
def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it.", metavar="FILE")],
    index: IndexOption,
    collection: CollectionOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Write a collection into one file, as it is at one moment, while it is served and written to.

    The file has records and vectors as they were stored, and a digest; it is written beside its name and renamed. A
    second backup onto the same file meanwhile is refused.
    """
    from resrank.client.backup import BackupFacts, write_backup
    from resrank.stack.index_sidecar import sidecar_of

    require_folder(index)

    async def run() -> BackupFacts:
        async with sidecar_of(index, collection) as sidecar:
            return await write_backup(sidecar, file)

    facts = asyncio.run(run())
    if output is Output.JSON:
        print_json({"file": str(file), **dataclasses.asdict(facts)})
        return
    print(f"{facts.records} records in {visible(str(file))}, sha256 {facts.sha256}")


@app.command(epilog="Example: `resrank index restore docs.backup --index var/index --collection docs@restored`")
def restore(
    file: Annotated[Path, typer.Argument(help="What `resrank index backup` wrote.", metavar="FILE")],
    index: IndexOption,
    collection: CollectionOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Restore a file into a collection that is empty or does not exist yet, and compare it by its digest.

    The file is read to its end first: of one that is damaged or not whole nothing is stored. Nothing is encoded. A
    restore that was cut short goes on when the same command is given again.
    """
    from resrank.client.backup import BackupFacts, restore_backup
    from resrank.stack.index_sidecar import sidecar_of

    async def run() -> BackupFacts:
        async with sidecar_of(index, collection) as sidecar:
            return await restore_backup(sidecar, file)

    facts = asyncio.run(run())
    name = collection or DEFAULT_COLLECTION
    if output is Output.JSON:
        print_json({"collection": name, **dataclasses.asdict(facts)})
        return
    print(f"{facts.records} records restored into {name} and compared, sha256 {facts.sha256}")
    if collection:
        command = shlex.join(["resrank", "alias", "set", "NAME", name, *index_arguments(index)])
        print(f"to have an alias lead there: {visible(command)}")


def _fill(
    corpus: Path, index: StoreUrl, collection: str, triton_url: str, settings: BuildSettings, output: Output
) -> None:
    from resrank.client import AsyncResRankClient
    from resrank.client.index_build import fill_index
    from resrank.stack.index_sidecar import sidecar_of

    async def run(progress: Callable[[BuildReport], None]) -> BuildReport:
        async with (
            AsyncResRankClient(triton_url, timeout_s=settings.batch_timeout_s) as client,
            sidecar_of(index, collection, to_fill=True) as sidecar,
        ):
            return await fill_index(corpus, client, sidecar, settings, progress)

    with _progress_bar() as (progress, _):
        report = asyncio.run(run(progress))
    _print_report(report, settings, output)


def _fill_on_ray(
    corpus: Path,
    index: StoreUrl,
    collection: str,
    tritons: list[str],
    address: str,
    workers: int | None,
    settings: BuildSettings,
    output: Output,
) -> None:
    from resrank.client.ray_build import FailedBatch, RayCluster, fill_index_on_ray
    from resrank.stack.index_sidecar import sidecar_of

    cluster = RayCluster(address, 2 * len(tritons) if workers is None else workers)

    with _progress_bar() as (progress, say):

        def failed(batch: FailedBatch) -> None:
            say(visible(str(batch)))

        report = fill_index_on_ray(
            corpus, tritons, partial(sidecar_of, index, collection, to_fill=True), cluster, settings, progress, failed
        )
    _print_report(report, settings, output)


def _print_report(report: BuildReport, settings: BuildSettings, output: Output) -> None:
    if output is Output.JSON:
        names = ("passages", "inserted", "updated", "unchanged", "pruned", "others", "seconds")
        facts = {name: getattr(report, name) for name in names}
        print_json({**facts, "passages_per_s": report.passages_per_s})
        return
    print(
        f"{report.passages} passages: {report.inserted} inserted, {report.updated} updated, "
        f"{report.unchanged} unchanged in {report.seconds:.1f} s ({report.passages_per_s:.0f} passages/s)"
    )
    if report.pruned:
        print(f"{report.pruned} passages that the corpus does not have were removed")
    if report.others and settings.skip_unchanged:
        print(f"{report.others} passages of the index are not in the corpus: --prune removes them")


@contextmanager
def _progress_bar() -> Iterator[tuple[Callable[[BuildReport], None], Callable[[str], None]]]:
    """What shows how far a build is, and what prints a line above that."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} passages/s"),
        TimeRemainingColumn(),
    )
    # On standard error, so that --output json can be piped. It goes when the work ends: what is said then stands alone.
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("indexing", total=None, rate=0.0)

        def show(report: BuildReport) -> None:
            done = report.stored + report.unchanged
            bar.update(task, total=report.passages, completed=done, rate=report.passages_per_s)

        yield show, lambda line: bar.console.print(Text(line), soft_wrap=True)


def require_local(index: StoreUrl) -> None:
    """Refuses a store that is no folder, or a folder that is not there.

    Raises:
        InvalidInputError: It is on another server.
        IndexFolderError: There is no such folder.
    """
    if index.scheme != LOCAL:
        raise InvalidInputError("store", f"{index} is no index folder, which alone can be verified here")
    require_folder(index)


def require_folder(index: StoreUrl) -> None:
    """Refuses a folder that is not there, which a sidecar would make.

    Raises:
        IndexFolderError: It is not.
    """
    if index.scheme == LOCAL and not index.folder.is_dir():
        raise IndexFolderError(f"there is no index folder {index}: build one with `resrank index build`")
