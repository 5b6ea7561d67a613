"""``/v1/models``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from resrank.core.errors import ResRankError
from resrank.gateway.error_forms import Schema
from resrank.gateway.failures import unknown_model
from resrank.gateway.gateway import Gateway, gateway_of
from resrank.gateway.request_facts import facts_of
from resrank.gateway.routes.answers import json_response
from resrank.gateway.schemas.openai import OpenAIModel, OpenAIModels
from resrank.gateway.settings import ANY_MODEL

router = APIRouter(tags=["models"])

_ASKING_S = 2.0


@router.get("/v1/models", response_model=OpenAIModels)
async def models(request: Request) -> Response:
    """The names that ``model`` of a request may have."""
    gateway = gateway_of(request)
    facts_of(request).schema = Schema.OPENAI.value
    root = await _encoder(gateway)
    return json_response(OpenAIModels(data=[OpenAIModel(id=name, root=root) for name in _names(gateway)]))


@router.get("/v1/models/{name:path}", response_model=OpenAIModel)
async def model(request: Request, name: str) -> Response:
    """One of them."""
    gateway = gateway_of(request)
    facts_of(request).schema = Schema.OPENAI.value
    if not gateway.settings.serves(name):
        raise unknown_model(name, gateway.settings.models)
    return json_response(OpenAIModel(id=name, root=await _encoder(gateway)))


def _names(gateway: Gateway) -> list[str]:
    return [name for name in gateway.settings.models if name != ANY_MODEL]


async def _encoder(gateway: Gateway) -> str | None:
    try:
        return await gateway.client.encoder_sha256(timeout_s=_ASKING_S)
    except ResRankError:  # the names hold all the same
        return None
