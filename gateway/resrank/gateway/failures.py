"""The one table from errors to HTTP statuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)

RETRY_AFTER_S = 1
"""What a shed caller is told to wait: queues hold about one second of work."""


@dataclass(frozen=True)
class Failure:
    """A refused or failed request, apart from the schema that says so.

    Attributes:
        status: HTTP status.
        kind: In one word of this project, for answers, logs and metrics.
        message: One sentence for the caller.
        field: What of the request is wrong; None where that is no field.
        retry_after_s: When to come again; None where nobody can say.
    """

    status: int
    kind: str
    message: str
    field: str | None = None
    retry_after_s: int | None = None


class RefusedError(Exception):
    """The gateway itself refuses a request.

    Attributes:
        failure: Why.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.kind)


_KINDS: dict[type[ResRankError], tuple[int, str]] = {
    InvalidInputError: (422, "invalid_input"),
    QueueFullError: (429, "queue_full"),
    CollectionNotFoundError: (404, "unknown_collection"),
    RetrievalError: (502, "retrieval_failed"),
    ServerUnavailableError: (503, "unavailable"),
    ModelNotReadyError: (503, "model_not_ready"),
    DeadlineExceededError: (504, "deadline"),
    ResRankError: (502, "upstream_failed"),
}


def failure_of(error: BaseException) -> Failure:
    """What becomes of an error: its class's line, else that of its nearest base.

    Args:
        error: What a request ended with.
    """
    if isinstance(error, RefusedError):
        return error.failure
    for kind in type(error).__mro__:
        if kind in _KINDS:
            status, name = _KINDS[kind]
            field = error.field if isinstance(error, InvalidInputError) else None
            return Failure(status, name, str(error), field, RETRY_AFTER_S if status == 429 else None)
    return Failure(500, "internal", "the gateway failed; its log has the cause under this request's id")


def unknown_model(model: str, served: Sequence[str]) -> RefusedError:
    """Refuses a model that is not served.

    Args:
        model: What the request names.
        served: What there is.
    """
    names = ", ".join(served)
    return RefusedError(Failure(404, "unknown_model", f"model: {shorten(model)} is not served here; there is {names}"))


def malformed(message: str) -> RefusedError:
    """Refuses a body that is no JSON."""
    return RefusedError(Failure(400, "malformed", message))


def too_large(limit: int, value: int | None) -> Failure:
    """Of a body that is longer than may be.

    Args:
        limit: Bytes.
        value: Bytes that it says it has; None where it does not say.
    """
    found = "more" if value is None else value
    return Failure(413, "too_large", f"body: too many bytes (limit {limit}, got {found})", "body")


def too_many_elements(limit: int) -> Failure:
    """Of a body that would take too much to parse.

    Args:
        limit: Lists, objects and elements.
    """
    message = f"body: too many lists, objects and elements (limit {limit}, got more)"
    return Failure(413, "too_large", message, "body")


def shorten(text: str) -> str:
    """A caller's text as messages show it."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def of_validation(errors: Sequence[dict[str, Any]]) -> Failure:
    """The first of pydantic's findings as one sentence: field, what is wrong, and what was given where it is short.

    Args:
        errors: As ``ValidationError.errors()`` has them.
    """
    # Of a value that could be one of several kinds every kind complains; what came furthest says most, and of those
    # what is not about the kind.
    found = max(errors, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))
    field, problem = field_name(found["loc"]), _problem(found)
    if found["type"] == "value_error":  # of the whole, whose sentence names its field
        name, colon, rest = problem.partition(": ")
        if colon and name.isidentifier():
            field, problem = name, rest
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Failure(422, "invalid_input", f"{field}: {problem}{more}", field)


_KINDS_OF_VALUE = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "list": "a list",
    "model": "an object",
    "dict": "an object",
}
"""How pydantic's types of errors begin to what they want."""


def _problem(found: dict[str, Any]) -> str:
    given, context = found.get("input"), found.get("ctx", {})
    match found["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "there is no such field"
        case "value_error":
            return str(context["error"])
        case "too_short":
            return f"too few elements (limit {context['min_length']}, got {context['actual_length']})"
        case "greater_than_equal" | "less_than_equal" if _is_short(given):
            bound = context.get("ge", context.get("le"))
            return f"out of range (limit {bound}, got {given})"
    kind = _KINDS_OF_VALUE.get(found["type"].partition("_")[0])
    if kind is not None and not field_name(found["loc"]).removeprefix("body"):
        kind = f"{kind}, as JSON (Content-Type: application/json)"
    problem = str(found["msg"]).replace("Input should be", "must be") if kind is None else f"must be {kind}"
    return f"{problem}, not {_as_it_came(given)}" if _is_short(given) else problem


def field_name(location: Sequence[int | str]) -> str:
    """``documents[3].text`` of pydantic's location, without ``body`` and the names of alternatives.

    Args:
        location: As pydantic has it.
    """
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in _NO_FIELDS and not part[0].isupper():
            name += f".{part}" if name else part
    return name or "body"


_SHORT = 40  # signs of a value in a message
_FEW = 5  # values
_NO_FIELDS = frozenset({"body", "query_string", "cohere", "tei", "weaviate", "str", "int", "float", "bool", "list"})


def _as_it_came(value: object) -> str:
    return shorten(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_short(value: object) -> bool:
    if isinstance(value, int | float):
        return abs(value) < 1e15
    if isinstance(value, list):
        return len(value) <= _FEW and all(not isinstance(element, list) and _is_short(element) for element in value)
    return isinstance(value, str) and len(value) <= _SHORT
