"""What a name stands for is asked once, and once more in the middle of a swap; the requests are answered by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from resrank.client import plans, retrieval_calls, triton_calls
from resrank.client.aliases import Target, at_target
from resrank.client.calls import Call
from resrank.client.facts import FactsCache
from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    ServerUnavailableError,
)
from resrank.core.names import Model
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

V1 = pb.Alias(name="docs", collection="v1")
V2 = pb.Alias(name="docs", collection="v2", triton="new:8001")


class FactsByAddress(dict[str, FactsCache]):
    """A cache for each address, and which of them were cleared."""

    def __missing__(self, address: str) -> FactsCache:
        self[address] = FactsCache()
        return self[address]


def one_of_each(facts: FactsCache, target: Target) -> plans.Plan[Target]:
    """Asks both servers, then ends."""
    yield from plans.one(triton_calls.model_facts(Model.RERANK))
    yield from plans.one(retrieval_calls.search(pb.SearchRequest(collection=target.collection)))
    return target


def drive(name: str, answers: Sequence[Any], *, has_sidecar: bool = True) -> tuple[list[Call[Any]], Any]:
    """Runs the plan on answers in their order, errors among them; the calls that it made and its end."""
    plan = at_target(FactsByAddress().__getitem__, name, one_of_each, has_sidecar=has_sidecar)
    made: list[Call[Any]] = []
    try:
        calls = next(plan)
        for answer in answers:
            made += calls
            calls = plan.throw(answer) if isinstance(answer, Exception) else plan.send([answer])
    except StopIteration as end:
        return made, end.value
    except ResRankError as error:
        return made, error
    raise AssertionError(f"goes on with {calls}")


def asked(made: list[Call[Any]]) -> list[tuple[str, str]]:
    return [(call.method, call.address) for call in made]


def test_both_servers_are_asked_about_what_the_name_stands_for() -> None:
    made, end = drive("docs", [V2, "facts", "found"])
    assert asked(made) == [("ListAliases", ""), ("ModelConfig", "new:8001"), ("Search", "")]
    assert end == Target("v2", "new:8001")
    assert drive("docs", [V1, "facts", "found"])[1] == Target("v1", "")
    assert drive("v7", [None, "facts", "found"])[1] == Target("v7", "")  # no alias


@pytest.mark.parametrize(("name", "has_sidecar"), [("", True), ("default", True), ("docs", False)])
def test_nobody_is_asked_where_nothing_is_to_be_known(name: str, has_sidecar: bool) -> None:
    made, end = drive(name, ["facts", "found"], has_sidecar=has_sidecar)
    assert asked(made) == [("ModelConfig", ""), ("Search", "")]
    assert end == Target(name, "")


@pytest.mark.parametrize(
    "error", [EncoderMismatchError, CollectionNotFoundError, ServerUnavailableError, ModelNotReadyError]
)
def test_what_meets_a_swap_is_begun_once_more(error: type[ResRankError]) -> None:
    made, end = drive("docs", [V1, "facts", error("in the middle"), V2, "facts", "found"])
    assert end == Target("v2", "new:8001")
    assert asked(made)[3:] == [("ListAliases", ""), ("ModelConfig", "new:8001"), ("Search", "")]
    again = error("again")
    assert drive("docs", [V1, "facts", error("in the middle"), V2, "facts", again])[1] is again


def test_what_has_not_moved_is_not_begun_again_unless_the_checkpoint_may_have_changed() -> None:
    for error in (CollectionNotFoundError("x"), ServerUnavailableError("x"), ModelNotReadyError("x")):
        assert drive("docs", [V1, "facts", error, V1])[1] is error
    assert drive("docs", [V1, "facts", EncoderMismatchError("x"), V1, "facts", "found"])[1] == Target("v1", "")


def test_other_errors_are_the_callers() -> None:
    for error in (QueueFullError("x"), InvalidInputError("k", "too large")):
        assert drive("docs", [V1, "facts", error])[1] is error
