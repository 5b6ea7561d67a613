"""``/v1/search``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from resrank.client.whole_call import WholeCall
from resrank.core.documents import fit_query
from resrank.core.errors import InvalidInputError
from resrank.core.truncation import Side
from resrank.gateway.bounded_json import BoundedJsonRoute
from resrank.gateway.error_forms import Schema
from resrank.gateway.gateway import gateway_of
from resrank.gateway.request_facts import facts_of
from resrank.gateway.routes.answers import json_response
from resrank.gateway.schemas.search import Search, SearchAnswer, search_answer, search_error

router = APIRouter(route_class=BoundedJsonRoute, tags=["search"])


@router.post("/v1/search", response_model=SearchAnswer)
async def search(request: Request, body: Search) -> Response:
    """Find passages of the index and rerank them; every score part and the time of every stage."""
    facts_of(request).schema = Schema.RESRANK.value
    try:
        return json_response(await _searched(request, body))
    except InvalidInputError as error:
        raise search_error(error) from None


async def _searched(request: Request, body: Search) -> SearchAnswer:
    gateway = gateway_of(request)
    facts = facts_of(request)
    whole = WholeCall.of(gateway.client, body.on_failure)
    found = await gateway.client.search(
        fit_query(body.query, truncate=body.truncate, side=Side.RIGHT),
        body.k,
        candidates=body.candidates,
        mode=body.mode,
        fusion=body.fusion,
        lexical_weight=body.lexical_weight,
        rerank=body.rerank,
        collection=body.collection or "",
        filter=body.filter,
        include_metadata=body.include_metadata,
        truncate=body.truncate,
        route=gateway.settings.search_route,
        on_failure=body.on_failure,
        timeout_s=whole.left_s(),
    )
    facts.counts["passages"] = len(found.passages)
    if found.failure is not None:
        facts.counts["not_reranked"] = found.failure.outcome.value
    calibration, weight = None, None
    if found.reranked:
        calibration = await whole.ask_async(gateway.client.calibration, triton=found.triton)
        weight = body.lexical_weight
        if weight is None:
            weight = await whole.ask_async(gateway.client.lexical_weight, triton=found.triton)
    return search_answer(found, body, weight, calibration, facts.id)
