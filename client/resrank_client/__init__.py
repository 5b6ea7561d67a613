"""The gRPC client library of ResRank: reranking, embedding and search, for threads and for asyncio."""

from resrank.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank_client.aio import AsyncResRankClient
from resrank_client.client import ResRankClient
from resrank_client.results import HealthReport, RankedPassage, RerankResult, RetrievalHealth, SearchResult
from resrank_client.settings import TlsConfig

__all__ = [
    "AsyncResRankClient",
    "DeadlineExceededError",
    "HealthReport",
    "InvalidInputError",
    "ModelNotReadyError",
    "QueueFullError",
    "RankedPassage",
    "RerankResult",
    "ResRankClient",
    "ResRankError",
    "RetrievalError",
    "RetrievalHealth",
    "SearchResult",
    "ServerUnavailableError",
    "TlsConfig",
]
