"""``/rerank``, ``/v1/rerank``, ``/v2/rerank`` and ``/v1/ranking``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import Discriminator, Tag

from resrank.gateway.bounded_json import BoundedJsonRoute
from resrank.gateway.error_forms import Schema, body_schema
from resrank.gateway.gateway import Gateway, gateway_of
from resrank.gateway.request_facts import facts_of
from resrank.gateway.reranking import Ranking
from resrank.gateway.routes.answers import json_response
from resrank.gateway.schemas.cohere import CohereAnswer, CohereRerank, cohere_answer
from resrank.gateway.schemas.nim import NimAnswer, NimRanking, nim_answer
from resrank.gateway.schemas.tei import TeiRank, TeiRerank, tei_answer
from resrank.gateway.schemas.weaviate import WeaviateAnswer, WeaviateRerank, weaviate_answer

router = APIRouter(route_class=BoundedJsonRoute, tags=["rerank"])


def _tag(body: Any) -> str | None:
    """Which schema a body is of; None of one that mixes two."""
    if not isinstance(body, Mapping):
        return _OF_CLASS.get(type(body), Schema.COHERE.value)
    if "texts" in body and ("documents" in body or "document_ids" in body):
        return None
    return body_schema(body).value


_OF_CLASS: dict[type, str] = {
    CohereRerank: Schema.COHERE.value,
    TeiRerank: Schema.TEI.value,
    WeaviateRerank: Schema.WEAVIATE.value,
}

RerankBody = Annotated[
    Annotated[CohereRerank, Tag(Schema.COHERE.value)]
    | Annotated[TeiRerank, Tag(Schema.TEI.value)]
    | Annotated[WeaviateRerank, Tag(Schema.WEAVIATE.value)],
    Discriminator(
        _tag,
        custom_error_type="unknown_schema",
        custom_error_message="give texts (TEI) or documents or document_ids (Cohere, Jina), not both",
    ),
]
RerankAnswer = CohereAnswer | list[TeiRank] | WeaviateAnswer


@router.post("/v2/rerank", response_model=RerankAnswer)
async def rerank_v2(request: Request, body: Annotated[RerankBody, Body()]) -> Response:
    """Rerank: Cohere v2's schema, or TEI's or Weaviate's by the body's keys."""
    return await _rerank(request, body, version="2", include_texts=False)


@router.post("/v1/rerank", response_model=RerankAnswer)
async def rerank_v1(request: Request, body: Annotated[RerankBody, Body()]) -> Response:
    """Rerank: the schema of Cohere v1, Jina and vLLM, or TEI's or Weaviate's by the body's keys."""
    return await _rerank(request, body, version="1", include_texts=True)


@router.post("/rerank", response_model=RerankAnswer)
async def rerank(request: Request, body: Annotated[RerankBody, Body()]) -> Response:
    """Rerank: the schema of TEI, of Jina and vLLM, or of Weaviate, by the body's keys."""
    return await _rerank(request, body, version="1", include_texts=True)


@router.post("/v1/ranking", response_model=NimAnswer)
async def ranking(request: Request, body: NimRanking) -> Response:
    """Rerank: NVIDIA NIM's schema."""
    gateway = gateway_of(request)
    facts_of(request).schema = Schema.NIM.value
    gateway.model(body.model)
    found = await gateway.rank(request, body.task())
    return json_response(nim_answer(found), _headers(found))


async def _rerank(
    request: Request, body: CohereRerank | TeiRerank | WeaviateRerank, *, version: str, include_texts: bool
) -> Response:
    gateway = gateway_of(request)
    facts_of(request).schema = _OF_CLASS[type(body)]
    match body:
        case CohereRerank():
            return await _cohere(request, gateway, body, version, include_texts)
        case TeiRerank():
            found = await gateway.rank(request, body.task())
            return json_response(tei_answer(found, body), _headers(found))
        case WeaviateRerank():
            found = await gateway.rank(request, body.task())
            return json_response(weaviate_answer(found, body), _headers(found))


async def _cohere(
    request: Request, gateway: Gateway, body: CohereRerank, version: str, include_texts: bool
) -> Response:
    model = gateway.model(body.model)
    task = body.task(include_texts=include_texts)
    found = await gateway.rank(request, task)
    answer = cohere_answer(
        found,
        task,
        request_id=facts_of(request).id,
        model=model,
        version=version,
    )
    return json_response(answer, _headers(found))


def _headers(ranking: Ranking) -> dict[str, str]:
    """What schemas without room for it are told beside the answer."""
    headers = {"X-ResRank-Reranked": "true" if ranking.reranked else "false"}
    if ranking.reason is not None:
        headers["X-ResRank-Reason"] = ranking.reason
    if ranking.truncated:
        headers["X-ResRank-Truncated"] = _places(ranking.truncated)
    if ranking.unusable:
        headers["X-ResRank-Unusable"] = _places(tuple(sorted(ranking.unusable)))
    return headers


def _places(places: tuple[int, ...]) -> str:
    shown = ",".join(map(str, places[:100]))
    return shown if len(places) <= 100 else f"{shown},..."
