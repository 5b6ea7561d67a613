"""``/health``, ``/v1/health/live``, ``/v1/health/ready`` and ``/metrics``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from resrank.gateway.gateway import gateway_of
from resrank.gateway.metrics import CONTENT_TYPE
from resrank.gateway.routes.answers import JSON
from resrank.gateway.schemas.health import Health, health_answer

router = APIRouter(tags=["health"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Health}}


@router.get("/v1/health/live", response_model=Health)
async def live(request: Request) -> Response:
    """Whether the gateway answers. That is not whether it is full: who is shed is told 429."""
    return _response(Health(ready=True, message="live"))


@router.get("/v1/health/ready", response_model=Health, responses=_NOT_READY)
async def ready(request: Request) -> Response:
    """Whether Triton's models can be asked, and the gateway is not about to stop. A full queue is ready.

    Known to the second. Where keys are set, what exactly is in the way is told to callers with one.
    """
    if request.app.state.draining:
        return _response(Health(ready=False, message="stopping"))
    gateway = gateway_of(request)
    return _response(health_answer(await gateway.report.get(), in_full=gateway.tells_in_full(request)))


@router.get("/health", response_model=Health, responses=_NOT_READY)
async def health(request: Request) -> Response:
    """As ``/v1/health/ready``: TEI's and vLLM's path."""
    return await ready(request)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """What the gateway has counted, for Prometheus."""
    return Response(gateway_of(request).metrics.page(), media_type=CONTENT_TYPE)


def _response(health: Health) -> Response:
    return Response(health.model_dump_json(), 200 if health.ready else 503, media_type=JSON)
