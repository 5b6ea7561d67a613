"""Fills an index by workers on Ray, each a client of one Triton, while one process reads and one writes."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from resrank.client.aio import AsyncResRankClient
from resrank.client.index_build import (
    BuildReport,
    BuildSettings,
    CheckedCorpus,
    begin,
    distinct_passages,
    embed_batch,
    end,
    require_same_encoder,
    wanted_windows,
)
from resrank.client.sidecar import AsyncSidecar, in_blocks
from resrank.core.corpus import CorpusError, Passage, rereadable
from resrank.core.errors import (
    EncoderMismatchError,
    InvalidInputError,
    ModelNotReadyError,
    ResRankError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.sidecar.v1.retrieval_pb2 import UpsertResponse

LOCAL = "local"
"""The address of a Ray that is started for one build, on this machine."""

RUNNING = "auto"
"""The address of the Ray that runs on this machine already."""

MAX_LOCAL_WORKERS = 64
"""Each is a Python process of some 200 MB."""

_FAILURES_BORNE = 10  # batches: what fails so often is no accident, and each has waited for its retries
_BYTES_AHEAD = 256 * 2**20
_OBJECT_STORE_BYTES = 512 * 2**20
_CONNECT_S = 5.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of what a later version does
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or a thread of Ray Data that outlives the build starts another Ray
    # Where the first workers took more than a minute to start, as on a loaded machine, Ray waited for them forever.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "600",
    # Images of containers often forbid Python to keep what it compiled: each process would compile Ray for seconds.
    "PYTHONDONTWRITEBYTECODE": "",
}
_COLUMN = "batch"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Where the workers run.

    Attributes:
        address: ``host:port`` of a cluster that this machine belongs to, ``auto`` for the one that runs here, or
            ``local`` for one that is started here and ends with the build.
        workers: Processes that send batches to a Triton.

    Raises:
        InvalidInputError: That is no address, or too few or many workers.
    """

    address: str = LOCAL
    workers: int = 2

    def __post_init__(self) -> None:
        if self.address not in {LOCAL, RUNNING}:
            self.host_and_port()
        if self.workers < 1:
            raise InvalidInputError("workers", "too few", limit=1, value=self.workers)
        if self.address == LOCAL and self.workers > MAX_LOCAL_WORKERS:
            raise InvalidInputError("workers", "too many for one machine", limit=MAX_LOCAL_WORKERS, value=self.workers)

    def host_and_port(self) -> tuple[str, int]:
        """Of a cluster.

        Raises:
            InvalidInputError: The address has no such form.
        """
        host, _, port = self.address.rpartition(":")
        if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidInputError("ray", f"{self.address!r} is neither host:port nor {LOCAL!r} nor {RUNNING!r}")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """Passages that were not stored, and why.

    Attributes:
        passages: All of the batch, also where one alone was refused.
        error: What stopped it.
    """

    passages: Sequence[Passage]
    error: ResRankError

    def __str__(self) -> str:
        ids = ", ".join(repr(passage.id) for passage in self.passages)
        return f"{len(self.passages)} passages are not stored, _id {ids}: {self.error}"


@dataclass(slots=True)
class _Batch:
    """What travels between the processes, as one row of a dataset and one block of Ray's object store."""

    passages: Sequence[Passage]
    unchanged: int = 0
    vectors: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0), np.float16))
    error: ResRankError | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> _Batch:
        batch: _Batch = pickle.loads(row[_COLUMN])
        return batch

    def row(self) -> dict[str, bytes]:
        return {_COLUMN: pickle.dumps(self)}


def fill_index_on_ray(
    corpus: Path,
    tritons: Sequence[str],
    open_sidecar: Callable[[], AbstractAsyncContextManager[AsyncSidecar]],
    cluster: RayCluster,
    settings: BuildSettings | None = None,
    progress: Callable[[BuildReport], None] = lambda report: None,
    failed: Callable[[FailedBatch], None] = lambda batch: None,
) -> BuildReport:
    """As :func:`resrank.client.index_build.fill_index`, with the waiting for encoders spread over processes.

    A batch that fails is reported, and the others go on, until ten have failed. A worker that dies is replaced and its
    batch encoded again. Only what the sidecar has acknowledged counts as done, so that after whatever end the next run
    goes on where this one stopped.

    Args:
        corpus: JSON lines as BEIR has them, ``.gz`` or plain; read on this machine.
        tritons: ``host:port`` of each, as the workers reach it. They are spread over the workers; one whose Triton does
            not answer goes on with the next.
        open_sidecar: Opens what stores the embeddings; only this machine has to reach it. Called once Ray runs: Ray
            starts processes by forking, which hangs where gRPC's threads are. The process that reads the corpus opens
            one more of the same address, with the same TLS and token.
        cluster: Where the workers run.
        settings: How; ``in_flight`` is for each worker.
        progress: Called whenever something was stored or left out.
        failed: Called with each batch that failed.

    Returns:
        What was done.

    Raises:
        CorpusError: A line is bad. Lines are checked before anything is encoded.
        InvalidInputError: More workers than the cluster has CPUs.
        EncoderMismatchError: The Tritons have different encoders.
        ServerUnavailableError: Ray could not be started or reached.
        RetrievalError: The index belongs to another encoder, or the sidecar refused or failed.
        ResRankError: Batches failed; of the first one's class.
    """
    settings = settings or BuildSettings()
    with rereadable(corpus) as file:
        checked = CheckedCorpus.read(file)
        # Ray tells of workers that died on standard output, which is the caller's; its warnings are for who calls Ray.
        with redirect_stdout(sys.stderr), warnings.catch_warnings(), _connected(cluster), _event_loop() as loop:
            warnings.filterwarnings("ignore", module=r"ray\.")
            encoder_sha256 = loop.run(_encoder_of_all(tritons))
            with loop.entered(open_sidecar()) as sidecar:
                report = loop.run(begin(checked, encoder_sha256, sidecar, settings))
                batches = _encoded(checked, encoder_sha256, tritons, sidecar, cluster, settings)
                failures = _store(report, batches, encoder_sha256, sidecar, loop, settings, progress, failed)
                if failures:
                    raise _summary(checked, report, failures)
                loop.run(end(checked, report, sidecar, settings))
                return report


class _EventLoop:
    """Runs coroutines in a thread of its own, and leaves to Ray the one that signals interrupt."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def begin(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self.begin(work).result()

    @contextmanager
    def entered(self, manager: AbstractAsyncContextManager[_Result]) -> Iterator[_Result]:
        async def enter() -> _Result:
            return await manager.__aenter__()

        async def leave() -> None:
            await manager.__aexit__(None, None, None)

        value = self.run(enter())
        try:
            yield value
        finally:
            self.run(leave())


@contextmanager
def _event_loop() -> Iterator[_EventLoop]:
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="sidecar")
    thread.start()
    running = _EventLoop(loop)
    try:
        yield running
    finally:
        running.run(_end_of_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_of_tasks() -> None:
    """Lets what was cancelled, or nobody waits for any more, come to its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _encoder_of_all(tritons: Sequence[str]) -> str:
    digests: dict[str, str] = {}
    for address in tritons:
        async with AsyncResRankClient(address) as client:
            digests.setdefault(await client.encoder_sha256(), address)
    if len(digests) > 1:
        told = ", ".join(f"{address} has {sha256}" for sha256, address in digests.items())
        raise EncoderMismatchError(f"one index is of one encoder, but {told}")
    return next(iter(digests))


@contextmanager
def _connected(cluster: RayCluster) -> Iterator[None]:
    os.environ.update(_ENVIRONMENT)
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.address == LOCAL:
        # A CPU for each worker and one for what Ray Data runs itself; they only say how many processes there may be.
        quiet |= {"num_cpus": cluster.workers + 1, "include_dashboard": False}
        quiet |= {"object_store_memory": _OBJECT_STORE_BYTES}
    elif cluster.address != RUNNING:
        _require_answer(cluster)
    try:
        ray.init(cluster.address, **quiet)
    except Exception as error:  # Ray raises whatever comes, bare exceptions among them
        ray.shutdown()
        said = str(error).partition("\n")[0]
        what = "did not start" if cluster.address == LOCAL else f"at {cluster.address} cannot be joined"
        raise ServerUnavailableError(f"Ray {what}: {said}") from error
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cluster.workers > cpus:
            raise InvalidInputError("workers", "more than the cluster has CPUs", limit=cpus, value=cluster.workers)
        yield
    finally:
        ray.shutdown()


def _require_answer(cluster: RayCluster) -> None:
    # Ray itself tries for minutes, and then ends the process.
    try:
        socket.create_connection(cluster.host_and_port(), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ServerUnavailableError(f"no Ray answers at {cluster.address}: {error.strerror or error}") from error


def _encoded(
    checked: CheckedCorpus,
    encoder_sha256: str,
    tritons: Sequence[str],
    sidecar: AsyncSidecar,
    cluster: RayCluster,
    settings: BuildSettings,
) -> Iterator[_Batch]:
    """Batches as they are encoded, in any order; what is ahead of who takes them is bounded in bytes."""
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # a block for each batch, whatever its size
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=_BYTES_AHEAD)
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    everyone = replace(settings, in_flight=settings.in_flight * cluster.workers)
    batches = ray.data.from_items([{"corpus": str(checked.path.absolute())}], override_num_blocks=1).flat_map(
        _read,
        fn_kwargs={
            "repeated": checked.repeated,
            "sidecar": sidecar,
            "settings": settings,
        },
        num_cpus=0,
        scheduling_strategy=here,
        max_retries=0,  # read again it would find other passages stored, and Ray take its batches for the earlier ones
    )
    encoded = batches.map(
        _Worker,
        fn_constructor_kwargs={
            "corpus": checked.path,
            "tritons": tritons,
            "encoder_sha256": encoder_sha256,
            "timeout_s": everyone.batch_timeout_s,
            "turns": ray.remote(num_cpus=0)(_Turns).remote() if len(tritons) > 1 else None,
        },
        num_cpus=1,
        concurrency=cluster.workers,
    )
    return map(_Batch.of, encoded.iter_rows())


def _read(
    row: dict[str, Any], *, repeated: set[int], sidecar: AsyncSidecar, settings: BuildSettings
) -> Iterator[dict[str, bytes]]:
    """Runs on the driver's machine, which has the file and reaches the sidecar: batches of what is not stored yet."""

    async def windows() -> AsyncIterator[tuple[list[Passage], int]]:
        async with sidecar as client:
            async for window in wanted_windows(distinct_passages(Path(row["corpus"]), repeated), client, settings):
                yield window

    found = windows()

    async def following() -> tuple[list[Passage], int] | None:
        return await anext(found, None)

    with asyncio.Runner() as runner:
        while (window := runner.run(following())) is not None:
            wanted, unchanged = window
            yield _Batch([], unchanged).row()
            # One call of the client: it cuts texts into requests and has as many under way as a build's others.
            for passages in in_blocks(wanted, min(settings.batch_size * settings.in_flight, MAX_MESSAGE_RECORDS)):
                yield _Batch(passages).row()


class _Turns:
    """Gives every worker another Triton to begin with."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self) -> int:
        """A number that nobody had."""
        self._taken += 1
        return self._taken - 1


class _Worker:
    """Encodes batches by one Triton, and by the next one where that does not answer."""

    def __init__(
        self, *, corpus: Path, tritons: Sequence[str], encoder_sha256: str, timeout_s: float, turns: Any
    ) -> None:
        first = 0
        if turns is not None:
            import ray

            first = ray.get(turns.take.remote()) % len(tritons)
        self._tritons = [*tritons[first:], *tritons[:first]]
        self._corpus, self._encoder_sha256, self._timeout_s = corpus, encoder_sha256, timeout_s
        self._clients: dict[str, AsyncResRankClient] = {}
        self._runner = asyncio.Runner()

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        batch = _Batch.of(row)
        if not batch.passages:
            return row
        for _ in range(len(self._tritons)):
            try:
                batch.vectors = self._runner.run(self._embed(batch.passages)).astype("<f2")
                batch.error = None
                break
            except (ServerUnavailableError, ModelNotReadyError) as error:
                batch.error = error
                self._tritons.append(self._tritons.pop(0))
            except ResRankError as error:
                batch.error = error
                break
        return batch.row()

    async def _embed(self, passages: Sequence[Passage]) -> NDArray[np.float32]:
        address = self._tritons[0]
        if address not in self._clients:
            async with AsyncExitStack() as kept:
                client = await kept.enter_async_context(AsyncResRankClient(address, timeout_s=self._timeout_s))
                sha256 = await client.encoder_sha256()
                if sha256 != self._encoder_sha256:
                    raise EncoderMismatchError(
                        f"the index is of encoder {self._encoder_sha256}, {address} has {sha256}"
                    )
                kept.pop_all()  # it stays open
            self._clients[address] = client
        client = self._clients[address]
        try:
            vectors = await embed_batch(self._corpus, client, passages, patience_s=self._timeout_s)
            require_same_encoder(self._encoder_sha256, await client.encoder_sha256())
        except ResRankError:  # whoever answers there next is asked for its encoder again
            del self._clients[address]
            await client.close()
            raise
        return vectors


def _store(
    report: BuildReport,
    batches: Iterator[_Batch],
    encoder_sha256: str,
    sidecar: AsyncSidecar,
    loop: _EventLoop,
    settings: BuildSettings,
    progress: Callable[[BuildReport], None],
    failed: Callable[[FailedBatch], None],
) -> list[FailedBatch]:
    """Stores batches as they come, some at a time; the failed ones are returned."""
    failures: list[FailedBatch] = []
    storing: set[Future[UpsertResponse]] = set()

    def leave(most: int) -> None:
        while len(storing) > most:
            for future in wait(storing, return_when=FIRST_COMPLETED).done:
                storing.remove(future)
                report.count(future.result())
                progress(report)

    try:
        while len(failures) < _FAILURES_BORNE and (batch := _next(batches)) is not None:
            report.unchanged += batch.unchanged
            if batch.error is not None:
                failures.append(FailedBatch(batch.passages, batch.error))
                failed(failures[-1])
            elif batch.passages:
                leave(settings.in_flight - 1)
                storing.add(loop.begin(sidecar.upsert(encoder_sha256, batch.passages, batch.vectors)))
            progress(report)
        leave(0)
    finally:
        for future in storing:
            future.cancel()
    return failures


def _next(batches: Iterator[_Batch]) -> _Batch | None:
    try:
        return next(batches, None)
    except Exception as error:  # Ray's, which have what a task raised in them, and Ray Data's
        cause = getattr(error, "cause", None)
        if isinstance(cause, ResRankError):
            raise cause from None
        said = str(error).strip().rpartition("\n")[2]
        raise ServerFailedError(f"Ray stopped the build, which may be run again: {said}") from error


def _summary(checked: CheckedCorpus, report: BuildReport, failures: Sequence[FailedBatch]) -> ResRankError:
    first = failures[0].error
    passages = sum(len(failure.passages) for failure in failures)
    ended = "; nothing was encoded after that" if len(failures) == _FAILURES_BORNE else ""
    sentence = (
        f"{len(failures)} batches with {passages} passages failed{ended}, the first one because of this: {first} "
        f"({report.stored + report.unchanged} of {report.passages} passages are stored: the same command does the rest)"
    )
    return CorpusError(str(checked.path), sentence) if isinstance(first, InvalidInputError) else type(first)(sentence)
