"""Plans without servers: what is asked in which order, and how answers become a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resrank.client import plans
from resrank.client.calls import Call
from resrank.client.facts import FactsCache
from resrank.client.results import RerankResult
from resrank.client.triton_calls import ModelFacts
from resrank.core.errors import InvalidInputError
from resrank.core.fail_open import OnFailure
from resrank.core.names import Model, Priority

SIZE = 4
QUERY = np.array([1.0, 0.5, 0.0], np.float32)


class Servers:
    """A reranker whose score is the first component less a hundredth for each place in the pass."""

    def __init__(self, slots: str) -> None:
        parameters = {
            "encoder_sha256": "e" * 64,
            "max_passages": str(SIZE),
            "embedding_dim": "3",
            "slot_content": slots,
        }
        self.parameters = parameters
        self.passes: list[NDArray[np.float16]] = []
        self.asked: list[str] = []

    def answer(self, call: Call[Any]) -> Any:
        self.asked.append(call.subject)
        if call.method == "ModelConfig":
            model = Model(call.build(1.0).name)
            return ModelFacts(model, 2, self.parameters)
        request = call.build(1.0)
        if request.model_name == Model.EMBED_QUERY:
            return QUERY[np.newaxis]
        if request.model_name == Model.EMBED_PASSAGE:
            count = request.inputs[0].shape[0]
            texts = [part.decode() for part in _strings(request.raw_input_contents[0])]
            assert len(texts) == count
            return np.stack([vector_of(text) for text in texts])
        assert request.model_name == Model.RERANK
        candidates = np.frombuffer(request.raw_input_contents[1], "<f2").reshape(-1, 3)
        self.passes.append(candidates)
        return candidates[:, 0].astype(np.float32) - 0.01 * np.arange(len(candidates), dtype=np.float32)

    def run(self, plan: plans.Plan[RerankResult]) -> RerankResult:
        try:
            calls = next(plan)
            while True:
                calls = plan.send([self.answer(call) for call in calls])
        except StopIteration as end:
            result: RerankResult = end.value
            return result


def _strings(raw: bytes) -> list[bytes]:
    strings = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        strings.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return strings


def vector_of(text: str) -> NDArray[np.float32]:
    return np.random.default_rng(int(text)).normal(size=3).astype(np.float16).astype(np.float32)


def rerank(servers: Servers, numbers: list[int], *, texts: bool) -> dict[int, float]:
    passages = [str(number) for number in numbers]
    candidates = None if texts else np.stack([vector_of(text) for text in passages])
    plan = plans.rerank(
        FactsCache(),
        "query",
        candidates,
        passages if texts else None,
        lexical_scores=None,
        lexical_weight=None,
        truncate=False,
        second_pass=False,
        on_failure=OnFailure.ERROR,
    )
    return {numbers[passage.index]: passage.score for passage in servers.run(plan).passages}


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("slots", ["relations", "both"])
def test_a_list_longer_than_a_pass_is_scored_alike_in_every_order_where_slots_hold_relations(
    slots: str, texts: bool
) -> None:
    numbers = list(range(10))
    given = rerank(Servers(slots), numbers, texts=texts)
    servers = Servers(slots)
    shuffled = np.random.default_rng(0).permutation(numbers).tolist()
    assert rerank(servers, shuffled, texts=texts) == given
    cosines = np.concatenate(
        [
            block.astype(np.float64) @ QUERY / np.linalg.norm(block.astype(np.float64), axis=1)
            for block in servers.passes
        ]
    )
    assert [len(block) for block in servers.passes] == [4, 4, 2]
    assert (np.diff(cosines) <= 0).all(), "blocks hold neighbours by their cosine with the query"


def test_one_pass_and_slots_of_vectors_ask_for_no_vector_of_the_query() -> None:
    for servers, count in ((Servers("relations"), SIZE), (Servers("vector"), 10)):
        numbers = list(range(count))
        found = rerank(servers, numbers, texts=False)
        assert "model 'embed_query'" not in servers.asked
        expected = [vector_of(str(number))[0] - 0.01 * (number % SIZE) for number in numbers]
        assert [found[number] for number in numbers] == pytest.approx(expected, abs=1e-6)


def test_a_priority_stands_in_every_request_to_triton_and_in_no_question_for_a_config() -> None:
    levels: list[int] = []

    class Watching(Servers):
        def answer(self, call: Call[Any]) -> Any:
            if call.method == "ModelInfer":
                levels.append(call.build(1.0).parameters["priority"].int64_param)
            return super().answer(call)

    def plan() -> plans.Plan[RerankResult]:
        return plans.rerank(
            FactsCache(),
            "q",
            np.eye(3, dtype=np.float32),
            None,
            lexical_scores=None,
            lexical_weight=None,
            truncate=False,
            second_pass=False,
            on_failure=OnFailure.ERROR,
        )

    Watching("vector").run(plans.prioritized(Priority.BULK, plan()))
    assert levels == [2]
    with pytest.raises(InvalidInputError, match=r"priority: unknown \(limit 1 \(interactive\) or 2 \(bulk\), got 5\)"):
        Watching("vector").run(plans.prioritized(5, plan()))  # type: ignore[arg-type]
