"""``rerank_text`` with passages that it has never seen, against the same passages the second time."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from resrank.benchmarks.corpus_sample import QUERIES, passage_texts
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError, Side
from resrank.benchmarks.study import Study
from resrank.client import RerankResult, ResRankClient
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.stack.triton_process import TritonProcess

PASSAGES = 50
WORDS = (30, 120)

_FIRST, _SECOND, _VECTORS = "first time", "second time", "vectors at hand, rerank"
_TIMEOUT_S = 120.0
_WARM_UP = 1
_SCORE_TOLERANCE = 1e-3


def run(deployment: Deployment, *, runs: int = 8, notify: Notify = lambda _: None) -> Study:
    """Measures ``rerank_text`` of 50 passages, one request at a time.

    The baseline is ``rerank`` with the vectors at hand, which is what a perfect cache would come to.

    Args:
        deployment: What is served.
        runs: Timed requests of each side and length.
        notify: Called with one line per step.

    Returns:
        Milliseconds by length of the passages.

    Raises:
        BenchmarkError: The sides' scores differ.
        StackError: Triton cannot be started.
    """
    rows: list[tuple[str | float | None, ...]] = []
    notify("starting Triton")
    with (
        TritonProcess(deployment.repository) as triton,
        ResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S) as client,
    ):
        for words in WORDS:
            # A new set for each round: its first request is cold, its second warm.
            texts = [passage_texts(PASSAGES, words, seed=1000 * words + number) for number in range(_WARM_UP + runs)]
            vectors = [client.embed_passages(own, truncate=True) for own in texts]

            notify(f"{words} words: timing {runs} requests of each")
            spent: dict[str, list[float]] = {label: [] for label in (_FIRST, _SECOND, _VECTORS)}
            for number, (own, known) in enumerate(zip(texts, vectors, strict=True)):
                # Not another side first in each round: of the same passages, the first time comes before the second.
                for label, call in (
                    (_FIRST, partial(client.rerank, QUERIES[0], passages=own, truncate=True)),
                    (_SECOND, partial(client.rerank, QUERIES[0], passages=own, truncate=True)),
                    (_VECTORS, partial(client.rerank, QUERIES[0], known)),
                ):
                    started = time.perf_counter()
                    call()
                    if number >= _WARM_UP:
                        spent[label].append(1e3 * (time.perf_counter() - started))
            _require_equal(
                client.rerank(QUERIES[0], passages=texts[0], truncate=True), client.rerank(QUERIES[0], vectors[0])
            )
            sides = [Side.of(label, times) for label, times in spent.items()]
            rows += [(words, side.label, side.median, side.p95, side.median / sides[-1].median) for side in sides]
    return Study(
        name="cache",
        title=f"{Model.RERANK_TEXT} of {PASSAGES} passages, never seen before and seen before",
        columns=("words a passage", "passages", "median, ms", "p95, ms", "of rerank with vectors"),
        rows=tuple(rows),
    )


def _require_equal(one: RerankResult, other: RerankResult) -> None:
    scores = [np.array([p.score for p in sorted(found.passages, key=lambda p: p.index)]) for found in (one, other)]
    difference = float(np.abs(scores[0] - scores[1]).max())
    if not difference <= _SCORE_TOLERANCE:
        raise BenchmarkError(
            f"the scores by texts and by vectors differ by {difference:.1e} (limit {_SCORE_TOLERANCE}): "
            "the sides do not compute the same"
        )
