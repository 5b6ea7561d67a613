"""Splits the time of one kind of request into parts that add up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.triton_statistics import ModelTime
from resrank.core.names import Model

CLIENT = "client: checks, serialisation, parsing"
TRANSPORT = "gRPC and transport"
SIDECAR = "sidecar's search, its gRPC included"
QUEUE = "queues"
BETWEEN = "Triton between steps"

TOLERANCE = 0.05
"""Share of the whole by which the parts may miss it."""

_STEP_NAMES = {
    Model.QUERY_TOKENIZER: "query tokenizer",
    Model.ENCODER: "encoder engine",
    Model.RERANK_PROMPT: "prompt layout",
    Model.RERANKER: "reranker engine",
    Model.RESIDUAL_SCORING: "scoring",
}

PARTS = (CLIENT, SIDECAR, TRANSPORT, QUEUE, BETWEEN, *_STEP_NAMES.values())
"""All parts, in the order in which they are drawn."""


@dataclass(frozen=True)
class ClientTime:
    """What the client saw of requests of one kind, in milliseconds together.

    Attributes:
        requests: How many.
        total: From the method's call to its return.
        triton: In calls to Triton.
        sidecar: In calls to the sidecar.
    """

    requests: int
    total: float
    triton: float
    sidecar: float


def time_parts(
    client: ClientTime, triton: Mapping[Model, ModelTime], ensembles: Mapping[Model, Sequence[Model]]
) -> dict[str, float]:
    """Milliseconds of one request, by part.

    What the client does itself is what it does not spend in calls; transport is the part of the calls to Triton that
    Triton's ensembles do not account for; what lies between steps is the part of the ensembles that no step does.

    Args:
        client: As the client saw it.
        triton: What its metrics page added meanwhile.
        ensembles: Each that a request calls once, to its steps.

    Returns:
        Part to milliseconds, all of ``PARTS``, those that do not occur as 0. They add up to the request's mean time,
        but for ``TOLERANCE``: the Python backend sends an answer before it takes the time at which a step ended, so
        that a step overlaps the next a little, and a remainder can come out below 0, which then counts as 0.

    Raises:
        BenchmarkError: Triton counted other requests than the client made, or a part came out further below 0 than
            that, so that the statistics do not describe these requests.
    """
    for ensemble in ensembles:
        if triton[ensemble].requests != client.requests:
            raise BenchmarkError(
                f"Triton counted {triton[ensemble].requests} requests to {ensemble.value}, "
                f"the benchmark made {client.requests}"
            )
    used = dict.fromkeys(step for steps in ensembles.values() for step in steps)
    in_triton = sum(triton[ensemble].total for ensemble in ensembles)
    queue = sum(triton[step].queue for step in used)
    compute = {step: triton[step].compute for step in used}
    parts = dict.fromkeys(PARTS, 0.0) | {
        CLIENT: client.total - client.triton - client.sidecar,
        SIDECAR: client.sidecar,
        TRANSPORT: client.triton - in_triton,
        QUEUE: queue,
        BETWEEN: in_triton - queue - sum(compute.values()),
        **{_STEP_NAMES[step]: spent for step, spent in compute.items()},
    }
    if negative := [part for part, spent in parts.items() if spent < -TOLERANCE * client.total]:
        raise BenchmarkError(f"the statistics do not fit the requests: {', '.join(negative)} came out negative")
    return {part: max(0.0, spent) / client.requests for part, spent in parts.items()}
