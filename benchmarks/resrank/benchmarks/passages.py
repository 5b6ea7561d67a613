"""Rerank latency against the passages' length, beside rerankers that read their text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from resrank.benchmarks.bounded_rounds import BoundedRounds
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.latency_table import SPREAD, latency_columns, latency_plot, latency_rows, text_notes
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.passage_texts import PassageTexts
from resrank.benchmarks.rerankers import STACK, rerankers
from resrank.benchmarks.study import Study
from resrank.core.progress import Notify

LENGTHS = (32, 64, 128, 256, 512)
COUNT = 100
SHORT, LONG = 64, 512
TARGET = 1.05
"""How much slower passages of ``LONG`` tokens may be than such of ``SHORT``."""

_MOST_RUNS = 8
_JUDGED_RUNS = 40


def run(deployment: Deployment, corpus: Path, environments: Path, *, notify: Notify = lambda _: None) -> Study:
    """Measures 100 candidates of 32 to 512 tokens, all sides call by call in turn.

    This stack's candidates are the vectors of those passages, so that its independence of their length is measured
    and not assumed.

    Args:
        deployment: What is served.
        corpus: Where the passages' text comes from.
        environments: Where infinity-emb's environment is.
        notify: Called with one line per step.

    Returns:
        Milliseconds of each side and length, and this stack's ratio of long to short passages.

    Raises:
        BenchmarkError: infinity-emb is not installed, or the corpus is too short.
        StackError: A server cannot be started.
    """
    source = PassageTexts(deployment, corpus)
    rounds = BoundedRounds(_MOST_RUNS)
    found: dict[int, dict[str, Side | None]] = {}
    with rerankers(deployment, environments, notify) as sides:
        vectors = {}
        for length in LENGTHS:
            notify(f"{COUNT} passages of {length} tokens")
            texts = source.of_length(length, COUNT)
            vectors[length] = sides.vectors(texts).astype("<f2")
            found[length] = rounds.measure(sides.contenders(texts, vectors[length]))
        notify(f"{_JUDGED_RUNS} more requests of this stack with each length's vectors")
        alone = interleave(
            {
                str(length): partial(lambda each, _: sides.client.rerank(sides.query, each), vectors[length])
                for length in LENGTHS
            },
            runs=_JUDGED_RUNS,
            warm_up=2,
        )
        facts, notes = sides.facts, text_notes(sides, LONG)
    flat = {length: Side.of(f"{length} tokens", alone[str(length)]) for length in LENGTHS}
    for length, sides_found in found.items():
        sides_found[STACK] = flat[length]
    return Study(
        name="passages",
        title=f"Milliseconds of one rerank of {COUNT} passages of L tokens, {SPREAD}",
        columns=latency_columns("L", found),
        rows=latency_rows(found),
        measurements=(
            Measurement(
                name=f"{LONG} tokens a passage against {SHORT}",
                unit="ms",
                measured=flat[LONG],
                baseline=flat[SHORT],
                bound=Bound.AT_MOST,
                target=TARGET,
            ),
        ),
        plots=(latency_plot("passages", "Rerank latency by length of the passages", "tokens a passage", found),),
        notes=(
            *notes,
            f"This stack's encoder read the first {deployment.spec.encoder.max_passage_tokens} tokens of a passage, "
            "when its vector was made.",
        ),
        facts=facts,
    )
