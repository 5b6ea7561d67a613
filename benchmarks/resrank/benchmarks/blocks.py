"""Lists that need several passes: what they cost, and how the merged order compares with that of one long pass."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from resrank.benchmarks.corpus_sample import QUERIES
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.in_process import RerankInProcess
from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.study import Plot, Series, Study
from resrank.client import ResRankClient
from resrank.core.checkpoint import RERANKER_DIR
from resrank.core.corpus import check_corpus, read_passages
from resrank.core.progress import Notify
from resrank.core.relations import canonical_order
from resrank.core.scoring import Float32, ranking
from resrank.core.tokenization import PromptTokenizer
from resrank.stack.triton_process import TritonProcess

COUNTS = (100, 200, 500, 1000, 2000, 5000, 10_000)
LONGEST_PASS = 1000
"""One pass over more would be timed in minutes, and lies far beyond what the checkpoint was trained for."""

_LONG_RUNS_FROM = 1000  # lists that are timed once: they are many passes each already
_TOP = 10
_SCORE_TOLERANCE = 2e-3  # what else was computed together may change the padding
_TIMEOUT_S = 600.0


def run(
    deployment: Deployment,
    corpus: Path,
    *,
    runs: int = 3,
    counts: tuple[int, ...] = COUNTS,
    notify: Notify = lambda _: None,
) -> Study:
    """Measures one call of the client for lists of growing length, passages in the order of their cosines.

    The vectors are those of the corpus's first 1,000 passages, and the same with a little noise behind them.

    Args:
        deployment: What is served.
        corpus: JSON lines as BEIR has them.
        runs: Timed calls for each length below 1,000; longer lists are timed once.
        counts: The lengths, ascending.
        notify: Called with one line per step.

    Returns:
        Milliseconds by length, and up to 1,000 Kendall's tau between the merged order and that of one long pass through
        the same engine.

    Raises:
        CorpusError: A line of the corpus is bad.
        BenchmarkError: The client's scores are not those of its passes.
        StackError: Triton cannot be started.
    """
    query = QUERIES[0]
    size = deployment.spec.reranker.max_passages
    notify("starting Triton")
    with (
        TritonProcess(deployment.repository) as triton,
        ResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S) as client,
    ):
        notify("embedding the corpus")
        candidates = _candidates(client, corpus, query, counts[-1])
        client.rerank(query, candidates[: 2 * size])  # warm-up
        spent: list[list[float]] = []
        merged: list[Float32] = []
        for count in counts:
            notify(f"timing {count} candidates")
            times = []
            for _ in range(1 if count >= _LONG_RUNS_FROM else runs):
                started = time.perf_counter()
                result = client.rerank(query, candidates[:count])
                times.append(1e3 * (time.perf_counter() - started))
            spent.append(times)
            scores = np.empty(count, np.float32)
            for passage in result.passages:
                scores[passage.index] = passage.score
            merged.append(scores)
    long_pass = _LongPass(deployment, query)
    rows: list[tuple[float | None, ...]] = []
    for count, times, scores in zip(counts, spent, merged, strict=True):
        tau: float | None = None
        common: float | None = None
        if count <= LONGEST_PASS and long_pass.fits(count):
            notify(f"one pass over {count} candidates")
            whole = long_pass.scores(candidates[:count])
            tau = float(kendalltau(scores, whole).statistic)
            common = len({*ranking(scores)[:_TOP].tolist()} & {*ranking(whole)[:_TOP].tolist()})
        median = float(np.median(times))
        blocks = -(-count // size)
        rows.append((count, blocks, median, median / blocks, tau, common))
    _require_same_start(merged, size)
    passes = [-(-count // size) for count in counts]
    slope, start = np.polyfit(passes, [np.median(times) for times in spent], 1)
    return Study(
        name="blocks",
        title=f"One call for lists of growing length, in passes of {size}",
        columns=(
            "candidates",
            "passes",
            "median, ms",
            "a pass, ms",
            "Kendall's tau with one long pass",
            f"of its {_TOP} best, also among the merged {_TOP} best",
        ),
        rows=tuple(rows),
        plots=(
            Plot(
                name="blocks",
                title="Cost of long lists",
                x_label="candidates",
                y_label="one call, ms",
                series=(
                    Series(
                        "measured",
                        tuple(counts),
                        tuple(float(np.median(times)) for times in spent),
                        tuple(min(times) for times in spent),
                        tuple(max(times) for times in spent),
                    ),
                    Series(
                        "line through them", tuple(counts), tuple(start + slope * -(-count // size) for count in counts)
                    ),
                ),
                log_x=True,
                log_y=True,
            ),
        ),
        notes=(
            f"The checkpoint was trained for passes of up to {size}: a longer one is a comparison, not the truth.",
            "Lists longer than 1,000 have no long pass beside them.",
        ),
        facts={
            "a pass by least squares, ms": float(slope),
            "peak memory of the client, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    )


class _LongPass:
    """The repository's reranker in this process, without the limit on candidates that serving has."""

    def __init__(self, deployment: Deployment, query: str) -> None:
        reranker = deployment.spec.reranker
        self._steps = RerankInProcess(deployment, max_passages=LONGEST_PASS)
        prompts = PromptTokenizer(deployment.checkpoint / RERANKER_DIR, reranker)
        self._query = query
        self._embedding = self._steps.embed(query)
        self._tokens = len(prompts.encode([query.encode()])[0])
        self._length = prompts.layout.length
        self._positions = _positions(deployment.checkpoint / RERANKER_DIR)

    def fits(self, count: int) -> bool:
        """Whether the reranker knows so many positions."""
        return self._length(self._tokens, count) <= self._positions

    def scores(self, candidates: NDArray[np.float16]) -> Float32:
        """FP32 [N] of FP16 [N, d] in one pass."""
        return self._steps.score(self._query, candidates, self._embedding)


def _positions(reranker: Path) -> int:
    """``max_position_embeddings`` of a Hugging Face config."""
    return int(json.loads((reranker / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])


def _candidates(client: ResRankClient, corpus: Path, query: str, count: int) -> NDArray[np.float16]:
    """FP16 [count, d]: the passages' vectors, by descending cosine with the query."""
    _, repeated = check_corpus(corpus)
    texts = [passage.encoder_text for passage in read_passages(corpus) if passage.line not in repeated]
    vectors = client.embed_passages(texts[: min(count, LONGEST_PASS)], truncate=True)
    copies = -(-count // len(vectors))  # the first without noise
    noise = np.random.default_rng(0).standard_normal((copies, *vectors.shape), np.float32)
    noise[0] = 0.0
    scale = 0.1 * np.linalg.norm(vectors, axis=1).mean() / np.sqrt(vectors.shape[1])
    many = (vectors + scale * noise).reshape(-1, vectors.shape[1])[:count]
    asked = client.embed_queries([query], truncate=True)[0]
    halves = many.astype(np.float16)
    ordered: NDArray[np.float16] = halves[canonical_order(asked, halves).order]
    return ordered


def _require_same_start(merged: list[Float32], size: int) -> None:
    """Lists that fill their first pass have the same one, so its scores must be the same in each."""
    starts = [scores[:size] for scores in merged if len(scores) >= size]
    for start in starts[1:]:
        if not np.allclose(start, starts[0], atol=_SCORE_TOLERANCE):
            raise BenchmarkError("the same pass got other scores in a longer list")
