"""What routes share: settings, the client and what is built on it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from resrank.client import AsyncResRankClient
from resrank.core.errors import InvalidInputError
from resrank.gateway.embedding import Embedder
from resrank.gateway.failures import unknown_model
from resrank.gateway.metrics import GatewayMetrics
from resrank.gateway.request_facts import facts_of
from resrank.gateway.reranking import Ranking, Reranker, RerankTask
from resrank.gateway.settings import GatewaySettings
from resrank.gateway.shared_report import SharedReport


@dataclass(frozen=True)
class Gateway:
    """One gateway's parts.

    Attributes:
        settings: How it is set up.
        client: Speaks to Triton and the sidecar.
        reranker: Reranks for every schema.
        embedder: Embeds for every schema.
        metrics: What is counted.
        report: What the servers behind say of themselves.
    """

    settings: GatewaySettings
    client: AsyncResRankClient
    reranker: Reranker
    embedder: Embedder
    metrics: GatewayMetrics
    report: SharedReport

    def tells_in_full(self, request: Request) -> bool:
        """Whether a request, which may have needed no key, may be told of addresses and servers' own words."""
        return self.settings.keys is None or facts_of(request).caller is not None

    def model(self, wanted: str | None) -> str:
        """The name under which a request finds the model.

        Args:
            wanted: As it names it.

        Raises:
            RefusedError: It is not served.
        """
        if not self.settings.serves(wanted):
            raise unknown_model(wanted or "", self.settings.models)
        return self.settings.models[0] if wanted is None else wanted

    async def rank(self, request: Request, task: RerankTask) -> Ranking:
        """Reranks for a request, of which it notes counts.

        Args:
            request: Whose it is.
            task: What it asks for.

        Raises:
            InvalidInputError: There are too many documents, or one of the rules for them is broken.
            ResRankError: What the client raises.
        """
        most = self.settings.max_documents
        if len(task.documents) > most:
            raise InvalidInputError(task.field, "too many in one request", limit=most, value=len(task.documents))
        facts = facts_of(request)
        facts.counts["documents"] = len(task.documents)
        ranking = await self.reranker.rank(task)
        facts.counts |= {"truncated": len(ranking.truncated), "unusable": len(ranking.unusable)}
        if ranking.reason is not None:
            facts.counts["not_reranked"] = ranking.reason
        return ranking


def gateway_of(request: Request) -> Gateway:
    """The gateway that a request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway
