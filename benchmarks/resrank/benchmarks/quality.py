"""How good a search is against how long it takes: every way to search one judged collection, question by question."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.cross_encoder import read_facts
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import Side
from resrank.benchmarks.stored_vectors import store_passages
from resrank.benchmarks.study import Plot, PlotKind, Series, Study
from resrank.benchmarks.text_models import PAIR_TOKENS, PairScorer
from resrank.client import ResRankClient
from resrank.core.errors import InvalidInputError
from resrank.core.limits import MAX_BATCH_SIZE
from resrank.core.measures import per_question, ranked
from resrank.core.progress import Notify
from resrank.core.scoring import ranking
from resrank.core.search import SearchMode
from resrank.core.sidecar.searching import encoder_mismatch
from resrank.core.terms import query_terms
from resrank.evaluation.collection import JudgedCollection
from resrank.evaluation.significance import difference, interval
from resrank.export.manifest import read_manifest
from resrank.stack.local_stack import LocalStack
from resrank.stack.triton_process import TritonProcess

MEASURE = "nDCG@10"
HYBRID = "hybrid"
"""What every other way is compared with: the best that needs no reranker."""
READING = f"{HYBRID}, cross-encoder"

Search = Callable[[str], Sequence[str]]
"""A question to the ids of its passages, best first."""

_SPLIT = "test"
_K = 10
_CANDIDATES = 100
_WARM_UP = 3
_TIMEOUT_S = 120.0
_BATCH_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Asked:
    """One way to search, asked all questions.

    Attributes:
        values: The measure of each question, FP64 [Q].
        latency: Milliseconds of one search.
    """

    values: NDArray[np.float64]
    latency: Side


def run(
    deployment: Deployment,
    collection: Path,
    questions: int | None,
    llm_repository: Path | None,
    cross_encoder: Path | None,
    *,
    notify: Notify = lambda _: None,
) -> Study:
    """Searches a collection in every way, one question at a time, all ways in turn but for the cross-encoder.

    Args:
        deployment: What is served.
        collection: Folder in BEIR layout, with ``qrels/test.tsv``.
        questions: How many of its questions are asked at most; None for all.
        llm_repository: A repository with another reranker on the same encoder; None leaves it out.
        cross_encoder: Folder of a trained cross-encoder; None leaves it out.
        notify: Called with one line per step.

    Returns:
        Each way's measure with its interval, what it gains over hybrid search, and milliseconds of one search.

    Raises:
        InvalidInputError: The collection is wrong, or questions of it are passages themselves; ``llm_repository`` has
            another encoder or the same checkpoint, or ``cross_encoder`` holds none.
        ManifestError: ``llm_repository`` is no repository.
        StackError: A server cannot be started.
    """
    judged = JudgedCollection.load(collection, _SPLIT, questions=questions)
    if judged.own_passages:
        raise InvalidInputError(
            "collection",
            f"{len(judged.own_passages)} questions of {judged.name} are passages themselves, which every search would "
            "find first: judge it with resrank eval",
        )
    facts = None if cross_encoder is None else read_facts(cross_encoder)
    with _served(deployment, judged, llm_repository, cross_encoder, notify) as ways:
        notify(f"asking {len(judged.queries)} questions, each in {len(ways)} ways")
        asked = ask(ways, judged)
    notes = [
        f"{_CANDIDATES} candidates, the best {_K} returned, the client asking step by step. Intervals are of the mean "
        "over questions, by bootstrap.",
    ]
    if facts is None:
        notes.append("Without --cross-encoder there is no model that reads the text beside.")
    else:
        notes.append(
            f"The cross-encoder is {facts.base}, trained on {facts.lists} judged lists in {facts.seconds:.0f} s "
            "(scripts/train_cross_encoder.py); it orders hybrid's candidates by their text, in torch fp32."
        )
    if llm_repository is None:
        notes.append("Without --llm-repository there is no second reranker beside.")
    return quality_study(judged, asked, notes)


def ask(ways: Mapping[str, Search], judged: JudgedCollection) -> dict[str, Asked]:
    """Asks every question in every way, in turn, one at a time, and the cross-encoder when all others are through.

    Its threads, which are this process's, spin for a while after each pass: whoever came next would pay for that.

    Args:
        ways: Label to search.
        judged: The questions and their judgements.
    """
    questions = list(judged.queries)
    answers: dict[str, dict[str, Sequence[str]]] = {label: {} for label in ways}

    def side(label: str, search: Search) -> Callable[[int], None]:
        def once(number: int) -> None:
            question = questions[(number - _WARM_UP) % len(questions)]
            answers[label][question] = search(judged.queries[question])

        return once

    sides = {label: side(label, search) for label, search in ways.items()}
    reading = sides.pop(READING, None)
    spent = interleave(sides, runs=len(questions), warm_up=_WARM_UP)
    if reading is not None:
        spent |= interleave({READING: reading}, runs=len(questions), warm_up=_WARM_UP)
    found = {}
    for label, times in spent.items():
        rankings = {question: ranked(ids) for question, ids in answers[label].items()}
        values = per_question(judged.qrels, rankings, (MEASURE,))[MEASURE]
        found[label] = Asked(np.array(list(values.values())), Side.of(label, times))
    return found


def quality_study(judged: JudgedCollection, asked: Mapping[str, Asked], notes: Sequence[str]) -> Study:
    """The table and the picture.

    Args:
        judged: What was searched.
        asked: Label to what came of it, hybrid search among them.
        notes: What belongs below.
    """
    rows: list[tuple[str | float | None, ...]] = []
    series = []
    for label, one in asked.items():
        mean = float(one.values.mean())
        low, high = interval(one.values)
        gain = None if label == HYBRID else _difference(one, asked[HYBRID])
        rows.append((label, f"{mean:.4f}", f"{low:.4f} to {high:.4f}", gain, one.latency.median, one.latency.p95))
        series.append(Series(label, (one.latency.median,), (mean,), (low,), (high,)))
    return Study(
        name="quality",
        title=f"{MEASURE} over {len(judged.queries)} questions of {judged.name}, and milliseconds of one search",
        columns=("search", MEASURE, "95 % interval", f"less {HYBRID}, paired", "median, ms", "p95, ms"),
        rows=tuple(rows),
        plots=(
            Plot(
                name="quality",
                title=f"{judged.name}: quality against latency",
                x_label="one search, median, ms",
                y_label=f"{MEASURE}, 95 % interval over questions",
                series=tuple(series),
                kind=PlotKind.POINTS,
                log_x=True,
            ),
        ),
        notes=tuple(notes),
        facts={"passages": len(judged.passages), "candidates": _CANDIDATES},
    )


def _difference(one: Asked, other: Asked) -> str:
    found = difference(one.values, other.values)
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


@contextmanager
def _served(
    deployment: Deployment,
    judged: JudgedCollection,
    llm_repository: Path | None,
    cross_encoder: Path | None,
    notify: Notify,
) -> Iterator[dict[str, Search]]:
    """Starts the servers, fills an index, loads the cross-encoder, and gives the ways to search."""
    own = deployment.manifest.checkpoint
    llm = None if llm_repository is None else read_manifest(llm_repository).checkpoint
    if llm is not None and llm.encoder_sha256 != own.encoder_sha256:
        problem = encoder_mismatch(own.encoder_sha256, llm.encoder_sha256)
        raise InvalidInputError("llm_repository", f"{llm_repository}: {problem}")
    if llm is not None and llm.name == own.name:
        raise InvalidInputError(
            "llm_repository", f"{llm_repository} serves {own.name}, as {deployment.repository} does: nothing to compare"
        )
    pairs = None if cross_encoder is None else PairScorer(cross_encoder, PAIR_TOKENS)
    with ExitStack() as stack:
        index = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        notify("starting Triton and the sidecar")
        servers = stack.enter_context(LocalStack(deployment.repository, index))

        def client(triton: str) -> ResRankClient:
            retrieval = servers.sidecar.address
            return stack.enter_context(ResRankClient(triton, retrieval=retrieval, timeout_s=_TIMEOUT_S))

        ours = client(servers.triton.grpc_address)
        notify(f"indexing {len(judged.passages)} passages of {judged.name}")
        _fill(ours, servers.sidecar.address, judged)
        reranked = {own.name: ours}
        if llm is not None and llm_repository is not None:
            notify(f"starting a Triton for {llm.name}")
            reranked[llm.name] = client(stack.enter_context(TritonProcess(llm_repository)).grpc_address)
        ways = {
            "BM25": _searching(ours, SearchMode.LEXICAL, rerank=False),
            "dense": _searching(ours, SearchMode.DENSE, rerank=False),
            HYBRID: _searching(ours, SearchMode.HYBRID, rerank=False),
        }
        for name, reranker in reranked.items():
            ways[f"dense, {name}"] = _searching(reranker, SearchMode.DENSE, rerank=True)
            ways[f"{HYBRID}, {name}"] = _searching(reranker, SearchMode.HYBRID, rerank=True)
        if pairs is not None:
            ways[READING] = _reading(ours, pairs, judged)
        yield ways


def _fill(client: ResRankClient, sidecar: str, judged: JudgedCollection) -> None:
    """Puts the collection into an empty index, passages of like length together."""
    passages = sorted(judged.passages.values(), key=lambda passage: len(passage.encoder_text))
    encoder = client.encoder_sha256()
    for start in range(0, len(passages), MAX_BATCH_SIZE):
        batch = passages[start : start + MAX_BATCH_SIZE]
        texts = [passage.encoder_text for passage in batch]
        store_passages(
            sidecar,
            encoder,
            batch,
            client.embed_passages(texts, truncate=True, bulk=True, timeout_s=_BATCH_TIMEOUT_S),
        )


def _searching(client: ResRankClient, mode: SearchMode, *, rerank: bool) -> Search:
    def search(question: str) -> list[str]:
        if mode is SearchMode.LEXICAL and not query_terms(question):
            return []  # which the sidecar refuses: there is nothing to look for
        found = client.search(question, _K, candidates=_CANDIDATES, mode=mode, rerank=rerank, truncate=True)
        return [passage.id or "" for passage in found.passages]

    return search


def _reading(client: ResRankClient, pairs: PairScorer, judged: JudgedCollection) -> Search:
    def search(question: str) -> list[str]:
        found = client.search(
            question, _CANDIDATES, candidates=_CANDIDATES, mode=SearchMode.HYBRID, rerank=False, truncate=True
        )
        ids = [passage.id or "" for passage in found.passages]
        scores = pairs.scores(question, [judged.passages[id_].encoder_text for id_ in ids])
        return [ids[place] for place in ranking(scores)[:_K]]

    return search
