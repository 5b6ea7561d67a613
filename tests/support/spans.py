"""The spans that this process makes, kept instead of sent."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased


class Spans:
    """What ended so far, of the traces that the share of them decides for."""

    def __init__(self, patch: pytest.MonkeyPatch, share: float = 1.0) -> None:
        """Stands in for the SDK that a process sets up once for good."""
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        patch.setattr("resrank.core.tracing._TRACER", provider.get_tracer("test"))

    def ended(self) -> list[ReadableSpan]:
        """In the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """The one of this name."""
        (found,) = [span for span in self.ended() if span.name == name]
        return found

    def parent_of(self, span: ReadableSpan) -> str | None:
        """Name of the span that it is a part of."""
        if span.parent is None:
            return None
        names = {other.context.span_id: other.name for other in self.ended() if other.context is not None}
        return names.get(span.parent.span_id, f"{span.parent.span_id:016x}")
