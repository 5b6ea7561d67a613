"""``search`` while an index is built, against ``search`` alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton_grpc
from numpy.typing import ArrayLike

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.study import Plot, Series, Study
from resrank.client import ResRankClient
from resrank.core.addresses import NO_PROXY
from resrank.core.collection import read_questions
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.loadtest.figures import Latency
from resrank.stack.local_stack import LocalStack

TARGET = 2.0

_WARM_UP = 5
_TIMEOUT_S = 120.0
_POLL_S = 0.2
_BEGINS_S = 120.0
"""A build reads the corpus and what the index holds before it encodes."""

_PARTS = 4  # of each side's searches, each with a 95th percentile of its own


def run(deployment: Deployment, corpus: Path, *, searches: int = 40, notify: Notify = lambda _: None) -> Study:
    """Measures searches one after the other: alone, while the corpus is encoded and stored again and again, and alone.

    Args:
        deployment: What is served.
        corpus: What is indexed and searched: JSON lines as BEIR has them, its questions in a file beside it.
        searches: In each of the three parts.
        notify: Called with one line per step.

    Raises:
        CorpusError: A line of the corpus is bad.
        BenchmarkError: The build failed, or did not begin.
        StackError: A server cannot be started.
    """
    texts = [question.text for question in read_questions(corpus.parent)]
    notify("starting Triton and the sidecar")
    with tempfile.TemporaryDirectory() as folder, LocalStack(deployment.repository, Path(folder, "index")) as stack:
        command = [
            *(
                sys.executable,
                "-m",
                "resrank.stack",
                "index",
                "upsert",
                str(corpus),
                "--index",
                str(Path(folder, "index")),
            ),
            *("--triton-url", stack.triton.grpc_address),
        ]
        notify("building the index alone")
        started = time.perf_counter()
        _check(subprocess.run(command, capture_output=True, text=True, check=False))
        build_s = time.perf_counter() - started
        with (
            ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_TIMEOUT_S) as client,
            triton_grpc.InferenceServerClient(stack.triton.grpc_address, channel_args=NO_PROXY) as triton,
        ):
            encoded = _encoded(triton)
            _search(client, texts, _WARM_UP)
            notify(f"{searches} searches alone")
            alone = _search(client, texts, searches)
            notify(f"{searches} searches while the index is built")
            with _building(command) as check:
                _wait_until_it_encodes(lambda: _encoded(triton), check)
                before, since = _encoded(triton), time.perf_counter()
                during = _search(client, texts, searches)
                beside = (_encoded(triton) - before) / (time.perf_counter() - since)
            notify(f"{searches} searches alone again")
            alone += _search(client, texts, searches)
    return _study(alone, during, encoded / build_s, beside)


def _search(client: ResRankClient, texts: Sequence[str], count: int) -> list[float]:
    """Milliseconds of each search."""
    spent = []
    for number in range(count):
        started = time.perf_counter()
        client.search(texts[number % len(texts)], truncate=True)
        spent.append(1e3 * (time.perf_counter() - started))
    return spent


@contextmanager
def _building(command: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Runs a command again and again, so that there is a build under way however long the searches take.

    Yields:
        Raises the error of one that failed; it is raised at the end in any case.
    """
    stop = threading.Event()
    failed: list[BenchmarkError] = []

    def build() -> None:
        while not stop.is_set() and not failed:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                while process.poll() is None and not stop.wait(_POLL_S):
                    pass
                if process.poll() is None:
                    process.terminate()
                    return
                output, errors = process.communicate()
            try:
                _check(subprocess.CompletedProcess(command, process.returncode, output, errors))
            except BenchmarkError as error:
                failed.append(error)

    def check() -> None:
        if failed:
            raise failed[0]

    builder = threading.Thread(target=build)
    builder.start()
    try:
        yield check
    finally:
        stop.set()
        builder.join()
    check()


def _wait_until_it_encodes(encoded: Callable[[], int], check: Callable[[], None]) -> None:
    before, deadline = encoded(), time.monotonic() + _BEGINS_S
    while encoded() == before:
        check()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"the build beside the searches encoded nothing for {_BEGINS_S:g} s")
        time.sleep(_POLL_S)


def _check(ended: subprocess.CompletedProcess[str]) -> None:
    if ended.returncode:
        raise BenchmarkError(f"the index could not be built: {ended.stderr.strip()}")


def _encoded(triton: triton_grpc.InferenceServerClient) -> int:
    """Passages encoded for indexes so far."""
    (statistics,) = triton.get_inference_statistics(Model.EMBED_BULK.value).model_stats
    return int(statistics.inference_count)


def _latency(spent: ArrayLike) -> Mapping[str, float]:
    """Percentiles of milliseconds, as a load test reports them."""
    found = Latency.of(np.asarray(spent, np.float32) / 1e3)
    assert found is not None
    return found.percentiles


def _study(alone: list[float], during: list[float], build: float, beside: float) -> Study:
    def tails(spent: list[float]) -> list[float]:
        return [_latency(part)["p95"] for part in np.array_split(spent, _PARTS)]

    rows = []
    for name, spent in (("alone", alone), ("while an index is built", during)):
        found = _latency(spent)
        rows.append((name, len(spent), found["p50"], found["p95"], max(spent)))
    return Study(
        name="priority",
        title="search, 100 candidates, one after the other: alone, and while an index is built",
        columns=("searches", "number", "median, ms", "p95, ms", "longest, ms"),
        rows=tuple(rows),
        measurements=(
            Measurement(
                "search p95 while an index is built",
                "ms",
                Side.of("while an index is built", tails(during)),
                Side.of("alone", tails(alone)),
                Bound.AT_MOST,
                TARGET,
            ),
        ),
        plots=(
            Plot(
                "priority",
                "search beside an index build",
                "share of searches",
                "ms",
                tuple(
                    Series(
                        label,
                        tuple((np.arange(len(spent)) + 1) / len(spent)),
                        tuple(sorted(spent)),
                    )
                    for label, spent in (("alone", alone), ("while an index is built", during))
                ),
            ),
        ),
        facts={"passages/s of a build alone": build, "passages/s of the build beside searches": beside},
        notes=("A search embeds the query, asks the index and reranks 100 candidates; the build takes what is left.",),
    )
