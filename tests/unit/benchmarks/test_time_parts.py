from __future__ import annotations

from dataclasses import replace

import pytest

from resrank.benchmarks.breakdown import breakdown_study
from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.time_parts import (
    BETWEEN,
    CLIENT,
    PARTS,
    QUEUE,
    SIDECAR,
    TOLERANCE,
    TRANSPORT,
    ClientTime,
    time_parts,
)
from resrank.benchmarks.triton_statistics import ModelTime, model_times
from resrank.core.names import Model
from resrank.loadtest.server_metrics import ModelCounters


def recorded(count: int, total: float, queue: float, compute: float) -> ModelCounters:
    """Milliseconds together."""
    return ModelCounters(requests=count, total_us=1e3 * total, queue_us=1e3 * queue, compute_us=1e3 * compute)


# Of two searches; the encoder ran twice for each, once for the embedding and once inside of rerank.
COUNTERS = {
    "query_tokenizer": recorded(4, 4, 0.4, 3.6),
    "encoder": recorded(4, 0, 1, 39),
    "rerank_prompt": recorded(2, 5, 0.5, 4.5),
    "reranker": recorded(2, 0, 1, 499),
    "residual_scoring": recorded(2, 3, 0, 3),
    "embed_query": recorded(2, 23, 0.7, 21.3),
    "rerank": recorded(2, 533, 2.2, 527.4),
    "passage_tokenizer": recorded(0, 0, 0, 0),
}
CLIENT_TIME = ClientTime(requests=2, total=600.0, triton=562.0, sidecar=30.0)
ENCODING = (Model.QUERY_TOKENIZER, Model.ENCODER)
ENSEMBLES = {
    Model.EMBED_QUERY: ENCODING,
    Model.RERANK: (Model.RERANK_PROMPT, Model.RERANKER, *ENCODING, Model.RESIDUAL_SCORING),
}


def test_counters_become_milliseconds() -> None:
    times = model_times(COUNTERS)
    assert times[Model.RERANKER] == ModelTime(2, 0.0, 1.0, 499.0)
    assert times[Model.PASSAGE_TOKENIZER] == ModelTime(0, 0.0, 0.0, 0.0)
    assert times[Model.RERANK].compute == 0.0  # its steps', which are counted there


def test_the_parts_of_a_search_are_those_worked_out_by_hand() -> None:
    parts = time_parts(CLIENT_TIME, model_times(COUNTERS), ENSEMBLES)
    assert parts == pytest.approx(
        {
            CLIENT: 4.0,
            SIDECAR: 15.0,
            TRANSPORT: 3.0,
            QUEUE: 1.45,
            BETWEEN: 2.0 + 0.1 / 2,
            "query tokenizer": 1.8,
            "encoder engine": 19.5,
            "prompt layout": 2.25,
            "reranker engine": 249.5,
            "scoring": 1.5,
        },
        abs=0.06,
    )


def test_the_parts_add_up_to_the_request() -> None:
    parts = time_parts(CLIENT_TIME, model_times(COUNTERS), ENSEMBLES)
    assert sum(parts.values()) == pytest.approx(300.0)
    assert set(parts) == set(PARTS)
    assert min(parts.values()) >= 0


def test_only_what_was_added_between_two_moments_counts() -> None:
    before = model_times(COUNTERS)
    doubled = {
        name: recorded(
            2 * int(model.requests), *(2 * us / 1e3 for us in (model.total_us, model.queue_us, model.compute_us))
        )
        for name, model in COUNTERS.items()
    }
    after = model_times(doubled)
    assert {model: after[model].since(before[model]) for model in after} == before


def test_requests_of_others_are_noticed() -> None:
    triton = model_times(COUNTERS)
    with pytest.raises(BenchmarkError, match="Triton counted 2 requests to embed_query, the benchmark made 3"):
        time_parts(replace(CLIENT_TIME, requests=3), triton, ENSEMBLES)


def test_steps_that_overlap_a_little_leave_a_sum_within_the_tolerance() -> None:
    triton = model_times(COUNTERS)
    triton[Model.RERANK] = replace(triton[Model.RERANK], total=525.0)  # 8 ms less than before, 4 of them missing
    parts = time_parts(replace(CLIENT_TIME, triton=552.0, total=590.0), triton, ENSEMBLES)
    assert parts[BETWEEN] == 0.0
    assert sum(parts.values()) == pytest.approx(295.0, rel=TOLERANCE)


def test_figures_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="gRPC and transport came out negative"):
        time_parts(replace(CLIENT_TIME, triton=500.0), model_times(COUNTERS), ENSEMBLES)


def test_table_and_bars_hold_every_part_that_occurs_and_the_sum() -> None:
    parts = time_parts(CLIENT_TIME, model_times(COUNTERS), ENSEMBLES)
    study = breakdown_study({"search": parts}, {"search": [290.0, 330.0]}, 1000, ())
    *rows, last, outside = study.rows
    assert [row[0] for row in rows] == [part for part in PARTS if parts[part]]
    assert last[:2] == ("all parts", pytest.approx(300.0))
    assert outside == ("measured from outside", pytest.approx(310.0), "103.3%")
    (plot,) = study.plots
    assert sum(series.y[0] for series in plot.series) == pytest.approx(300.0)
