"""What is sent again, when and how often.

Every request of this client only reads (embedding, scoring, searching), so sending one twice is safe. It is useful only
where no server answered. A full queue is not retried: more requests are the last thing that an overloaded server needs.
"""

from __future__ import annotations

from typing import Any

from tenacity import retry_if_exception_type, stop_after_attempt, stop_before_delay, wait_random_exponential

from resrank.client.deadline import Deadline
from resrank.core.errors import ServerUnavailableError


def retry_policy(max_attempts: int, deadline: Deadline) -> dict[str, Any]:
    """Arguments for tenacity's ``Retrying`` and ``AsyncRetrying``.

    Exponential back-off with full jitter, from up to 0.1 s to up to 2 s, so that clients that lost the same server do
    not come back in step. No retry starts that the deadline would cut off before it is sent.
    """
    return {
        "retry": retry_if_exception_type(ServerUnavailableError),
        "wait": wait_random_exponential(multiplier=0.1, max=2.0),
        "stop": stop_after_attempt(max_attempts) | stop_before_delay(deadline.remaining_s()),
        "reraise": True,
    }
