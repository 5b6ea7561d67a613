"""What bodies of all schemas have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from resrank.core.fail_open import OnFailure
from resrank.core.names import Priority
from resrank.core.truncation import Side
from resrank.gateway.embedding import InputType


def _rounded(timings: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(took_ms, 3) for stage, took_ms in timings.items()}


class ForeignBody(BaseModel):
    """A body of a schema that others wrote: what of it is not known here is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class OwnBody(BaseModel):
    """A body of this project's own schema: what is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    """A body of an answer."""

    model_config = ConfigDict(frozen=True)


Timings = Annotated[dict[str, float], BeforeValidator(_rounded)]
"""Milliseconds of each stage, to the microsecond."""


class DocumentText(ForeignBody):
    """A document that comes, or goes back, as an object."""

    text: str


Document = str | DocumentText
Score = Annotated[float, Field(ge=0, le=1)]


def text_of(document: Document) -> str:
    """A document's text."""
    return document if isinstance(document, str) else document.text


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


CutSide = Annotated[Side, BeforeValidator(_lower)]


_INPUT_TYPES = {
    **dict.fromkeys(("query", "search_query"), InputType.QUERY),
    **dict.fromkeys(("document", "passage", "search_document"), InputType.DOCUMENT),
}
"""Cohere's and NVIDIA's words among them."""


def _input_type(given: Any) -> Any:
    return _INPUT_TYPES.get(given, given) if isinstance(given, str) else given


InputKind = Annotated[InputType, BeforeValidator(_input_type)]


class RerankOptions(ForeignBody):
    """What every schema of reranking takes beside its own.

    Attributes:
        min_score: Least relevance of what is returned.
        on_failure: What to do where the models are down, full or late; the gateway's setting where it is missing.
        strict: Whether one document that cannot be ranked fails the request.
    """

    min_score: Score | None = None
    on_failure: OnFailure | None = None
    strict: bool = False


def priority_of(given: int | None) -> Priority:
    """Triton's level for what Cohere and vLLM call priority, where 0 is the most urgent and what is not said.

    Args:
        given: As the request has it.
    """
    return Priority.INTERACTIVE if not given or given < 0 else Priority.BULK
