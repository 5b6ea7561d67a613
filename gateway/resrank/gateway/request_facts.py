"""What is known of a request while it is answered: for its answer, the log, and the metrics."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

_SCOPE_KEY = "resrank.request"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# W3C Trace Context, section 3.2. What a caller sends in another form is no reason to refuse the request.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass
class RequestFacts:
    """One request. Nothing here holds a text or a key.

    Attributes:
        id: The caller's ``X-Request-ID`` where it is one, else made up.
        traceparent: The caller's, where it is one.
        caller: The name of the key that was sent; None where none was.
        schema: Whose clients it comes from, as far as that is known.
        kind: Of the failure, where it failed.
        counts: Documents and the like, by what the log calls them.
    """

    id: str
    traceparent: str | None = None
    caller: str | None = None
    schema: str | None = None
    kind: str | None = None
    counts: dict[str, int | str] = field(default_factory=dict)


def begin(scope: Any) -> RequestFacts:
    """Makes the facts of a request that has just come.

    Args:
        scope: ASGI's.
    """
    headers = Headers(scope=scope)
    given, trace = headers.get("x-request-id", ""), headers.get("traceparent", "")
    facts = RequestFacts(
        given if _ID.fullmatch(given) else uuid.uuid4().hex, trace if _TRACEPARENT.fullmatch(trace) else None
    )
    scope[_SCOPE_KEY] = facts
    return facts


def facts_of(scope: Any) -> RequestFacts:
    """The facts of a request.

    Args:
        scope: ASGI's, or a request.
    """
    facts: RequestFacts = (scope.scope if isinstance(scope, Request) else scope)[_SCOPE_KEY]
    return facts
