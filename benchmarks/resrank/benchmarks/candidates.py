"""Rerank latency against the number of candidates, beside rerankers that read the passages' text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resrank.benchmarks.bounded_rounds import BoundedRounds
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.latency_table import SPREAD, latency_columns, latency_plot, latency_rows, text_notes
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.passage_texts import PassageTexts
from resrank.benchmarks.rerankers import INFINITY, LISTWISE, SENTENCE_TRANSFORMERS, STACK, rerankers
from resrank.benchmarks.study import Study
from resrank.core.progress import Notify

COUNTS = (10, 20, 50, 100, 200, 500, 1000)
TOKENS = 128
JUDGED = 100
TARGETS = {SENTENCE_TRANSFORMERS: 10.0, INFINITY: 10.0, LISTWISE: 40.0}
"""How many times faster than each side, at ``JUDGED`` candidates."""

SLOTS_ALONE_TARGETS = {SENTENCE_TRANSFORMERS: 100.0, INFINITY: 100.0}
"""The same for a reranker without text."""

_MOST_RUNS = 10
_DISTINCT = 200  # vectors are encoded once and repeated: reranking them costs the same


def run(deployment: Deployment, corpus: Path, environments: Path, *, notify: Notify = lambda _: None) -> Study:
    """Measures 10 to 1000 candidates of 128 tokens, all sides call by call in turn.

    Args:
        deployment: What is served.
        corpus: Where the passages' text comes from.
        environments: Where infinity-emb's environment is.
        notify: Called with one line per step.

    Returns:
        Milliseconds of each side and count, and the ratios at 100 candidates.

    Raises:
        BenchmarkError: infinity-emb is not installed, or the corpus is too short.
        StackError: A server cannot be started.
    """
    texts = PassageTexts(deployment, corpus).of_length(TOKENS, max(COUNTS))
    rounds = BoundedRounds(_MOST_RUNS)
    found: dict[int, dict[str, Side | None]] = {}
    with rerankers(deployment, environments, notify) as sides:
        notify(f"encoding {_DISTINCT} passages of {TOKENS} tokens")
        vectors = np.resize(sides.vectors(texts[:_DISTINCT]), (max(COUNTS), deployment.spec.encoder.embedding_dim))
        for count in COUNTS:
            notify(f"{count} candidates")
            found[count] = rounds.measure(sides.contenders(texts[:count], vectors[:count]))
        facts = dict(sides.facts)
        if sides.reader is not None:
            tokens = sides.reader.tokens(sides.query, texts[:JUDGED])
            facts[f"tokens of the text-listwise sequence at {JUDGED}"] = tokens
        notes = text_notes(sides, TOKENS)
    targets = SLOTS_ALONE_TARGETS if deployment.spec.reranker.prompt is None else TARGETS
    return Study(
        name="candidates",
        title=f"Milliseconds of one rerank of N passages of {TOKENS} tokens, {SPREAD}",
        columns=latency_columns("N", found),
        rows=latency_rows(found),
        measurements=tuple(
            Measurement(
                name=f"{JUDGED} candidates of {TOKENS} tokens",
                unit="ms",
                measured=slow,
                baseline=ours,
                bound=Bound.AT_LEAST,
                target=target,
            )
            for label, target in targets.items()
            if (slow := found[JUDGED][label]) is not None and (ours := found[JUDGED][STACK]) is not None
        ),
        plots=(latency_plot("candidates", "Rerank latency by number of candidates", "candidates", found),),
        notes=notes,
        facts=facts,
    )
