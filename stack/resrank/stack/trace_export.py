"""Where the stack's processes send spans: OpenTelemetry's variables, and Triton's flags for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from resrank.core.errors import InvalidInputError, StackError
from resrank.core.extras import install_command
from resrank.core.tracing import ENDPOINT_VARIABLE, has_exporter, traces_endpoint

_SAMPLER, _SAMPLER_ARGUMENT = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_ALWAYS = ("always_on", "parentbased_always_on")
_NEVER = ("always_off", "parentbased_always_off")
_SHARE = ("traceidratio", "parentbased_traceidratio")


@dataclass(frozen=True)
class TraceExport:
    """A collector, and which traces begin at the stack itself.

    Attributes:
        url: Takes OTLP over HTTP.
        rate: Of requests that come without a trace context, one of so many is traced; 0 for none. Those that come with
            one are traced always.
        environment: What the processes are told, beside their own environment.
        named: Whether the environment names the service.
    """

    url: str
    rate: int
    environment: Mapping[str, str]
    named: bool

    @classmethod
    def read(cls, endpoint: str | None, environment: Mapping[str, str] = os.environ) -> Self | None:
        """Takes OpenTelemetry's variables.

        Args:
            endpoint: Of the collector, ``http://host:4318``; None for what the environment says.
            environment: The variables.

        Returns:
            None where no collector is named, or OpenTelemetry is switched off.

        Raises:
            InvalidInputError: A variable has a value that it cannot have, or that Triton does not know.
            StackError: The extra ``otel`` is not installed.
        """
        told = {} if endpoint is None else {ENDPOINT_VARIABLE: endpoint}
        url = traces_endpoint({**environment, **told})
        if url is None:
            return None
        if not has_exporter():
            raise StackError(f"traces need OpenTelemetry's SDK and exporter: {install_command('otel')}")
        named = bool(environment.get("OTEL_SERVICE_NAME")) or "service.name=" in environment.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        return cls(url, _rate(environment), told, named)

    @property
    def triton_flags(self) -> list[str]:
        """Options of ``tritonserver``."""
        settings = [
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            f"rate={self.rate}",
            "count=-1",
            f"opentelemetry,url={self.url}",
            *(() if self.named else ("opentelemetry,resource=service.name=resrank-triton",)),
        ]
        return [f"--trace-config={setting}" for setting in settings]


def _rate(environment: Mapping[str, str]) -> int:
    """Triton's sampling rate for OpenTelemetry's sampler, whose default is to trace everything."""
    sampler = environment.get(_SAMPLER) or _ALWAYS[0]
    if sampler in _ALWAYS:
        return 1
    if sampler in _NEVER:
        return 0
    if sampler not in _SHARE:
        known = " or ".join((*_ALWAYS, *_NEVER, *_SHARE))
        raise InvalidInputError(_SAMPLER, "Triton knows no such sampler", limit=known, value=sampler)
    told = environment.get(_SAMPLER_ARGUMENT) or "1"
    try:
        share = float(told)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidInputError(_SAMPLER_ARGUMENT, "must be a share", limit="0 to 1", value=told)
    return round(1 / share) if share > 0 else 0
