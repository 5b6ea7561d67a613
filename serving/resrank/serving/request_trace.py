"""Which trace a request belongs to, and what a model adds to it.

Triton makes a span for each model of a request that came with a trace context, and tells the model of it. It makes none
for requests between models: there the context travels as a request parameter, and the models' own spans stand alone.

Triton 2.51 takes the header's value to end at the next zero byte in memory (``GrpcServerCarrier::Get`` calls strlen),
and where that is not its end begins a trace of its own: of a hundred requests one to six. Clients send the parameter,
too, so that the models know better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from resrank.core.names import Parameter
from resrank.core.tracing import Attributes, read_context, span, write_traceparent


@dataclass(frozen=True)
class RequestTrace:
    """The trace of a request.

    Attributes:
        context: What a model's spans belong to.
        seen_by_triton: Whether Triton makes a span of the model's own.
    """

    context: Context
    seen_by_triton: bool

    @property
    def traceparent(self) -> str | None:
        """The same, for a request to another model."""
        return write_traceparent(self.context)


def read_trace(request: Any, parameters: Mapping[str, object]) -> RequestTrace | None:
    """The trace that a request belongs to.

    Args:
        request: A ``pb_utils.InferenceRequest``.
        parameters: Its parameters. A caller of Triton may name a trace there, too.

    Returns:
        None when nobody traces it.
    """
    trace = getattr(request, "trace", None)  # Tritons before 24.03 have none
    told = None if trace is None else trace().get_context()
    given = parameters.get(Parameter.TRACEPARENT)
    named = read_context(given) if isinstance(given, str) else None
    if told:
        context = read_context(json.loads(told).get(Parameter.TRACEPARENT, ""))
        if not named or _trace_id(named) == _trace_id(context):
            return RequestTrace(context, seen_by_triton=True)
    return RequestTrace(named, seen_by_triton=False) if named else None


def _trace_id(context: Context) -> int:
    return get_current_span(context).get_span_context().trace_id


@contextmanager
def traced_part(
    trace: RequestTrace | None, name: str, attributes: Attributes | None = None
) -> Iterator[RequestTrace | None]:
    """A span around a part of a request's work.

    Args:
        trace: The request's; None when nobody traces it, and then nothing is made.
        name: What the part is.
        attributes: What is known of it.

    Yields:
        What goes along with requests to others, made inside.
    """
    if trace is None:
        yield None
        return
    with span(name, context=trace.context, attributes=attributes):
        yield RequestTrace(contexts.get_current(), seen_by_triton=False)
