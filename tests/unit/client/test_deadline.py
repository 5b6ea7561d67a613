from __future__ import annotations

import pytest

from resrank.client.deadline import Deadline
from resrank.core.errors import DeadlineExceededError
from resrank.core.fail_open import FOR_ANSWER, NOTHING, Reserve


def test_a_step_that_can_be_done_without_ends_before_the_call_does() -> None:
    deadline = Deadline(100.0)
    assert deadline.leaving(NOTHING) is deadline
    earlier = deadline.leaving(FOR_ANSWER)
    assert deadline.remaining_s() - earlier.remaining_s() == pytest.approx(0.25, abs=0.01)
    spent = deadline.leaving(Reserve(1.0, 100.0))
    with pytest.raises(DeadlineExceededError, match=r"0 s of timeout_s of 100 s passed before model 'x'"):
        spent.require("model 'x'")
    assert deadline.require("model 'y'") > 99.0
