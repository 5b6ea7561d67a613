"""``/v1/embeddings`` and ``/embed``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from resrank.gateway.bounded_json import BoundedJsonRoute
from resrank.gateway.embedding import EmbedTask
from resrank.gateway.error_forms import Schema
from resrank.gateway.gateway import gateway_of
from resrank.gateway.request_facts import facts_of
from resrank.gateway.routes.answers import json_response
from resrank.gateway.schemas.openai import OpenAIEmbedding, OpenAIVectors, openai_vectors
from resrank.gateway.schemas.tei import TeiEmbed, tei_vectors

router = APIRouter(route_class=BoundedJsonRoute, tags=["embed"])


@router.post("/v1/embeddings", response_model=OpenAIVectors)
async def embeddings(request: Request, body: OpenAIEmbedding) -> Response:
    """Embed texts: OpenAI's schema. ``input_type`` says whether they are queries or documents."""
    gateway = gateway_of(request)
    _note(request, Schema.OPENAI, body.task())
    model = gateway.model(body.model)
    embedded = await gateway.embedder.embed(body.task())
    return json_response(openai_vectors(embedded, body, model))


@router.post("/embed", response_model=list[list[float]])
async def embed(request: Request, body: TeiEmbed) -> Response:
    """Embed texts: TEI's schema."""
    _note(request, Schema.TEI, body.task())
    embedded = await gateway_of(request).embedder.embed(body.task())
    return json_response(tei_vectors(embedded.vectors, body))


def _note(request: Request, schema: Schema, task: EmbedTask) -> None:
    facts = facts_of(request)
    facts.schema = schema.value
    facts.counts["documents"] = len(task.texts)
