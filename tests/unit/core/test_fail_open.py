from __future__ import annotations

import pytest

from resrank.core.errors import (
    CheckpointError,
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank.core.fail_open import FOR_ANSWER, MODEL_FAILURES, Failure


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (QueueFullError("model 'rerank': full"), "shed: model 'rerank': full"),
        (DeadlineExceededError("too late"), "deadline: too late"),
        (ServerUnavailableError("nobody"), "unavailable: nobody"),
    ],
)
def test_what_failed_travels_as_a_text(error: ResRankError, text: str) -> None:
    failure = Failure.of(error)
    assert str(failure) == text
    assert Failure.parse(text) == failure
    assert Failure.parse("") is None


def test_what_the_caller_or_an_index_did_wrong_is_not_done_without() -> None:
    for error in (
        InvalidInputError("QUERY", "empty"),
        RetrievalError("of another encoder"),
        CheckpointError("no file"),
    ):
        assert not isinstance(error, MODEL_FAILURES)
    assert type(ResRankError("access refused")) not in MODEL_FAILURES


def test_little_is_kept_of_a_short_time_and_enough_of_a_long_one() -> None:
    assert FOR_ANSWER.seconds(0.1) == pytest.approx(0.01)
    assert FOR_ANSWER.seconds(60.0) == 0.25
