"""The gRPC client library of ResRank: reranking, embedding and search, for threads and for asyncio."""

from resrank.client.aio import AsyncResRankClient
from resrank.client.client import ResRankClient
from resrank.client.results import HealthReport, RankedPassage, RerankResult, RetrievalHealth, SearchResult
from resrank.client.settings import TlsConfig
from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)

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
