"""The gRPC client library of ResRank: reranking, embedding and search, for threads and for asyncio."""

from resrank.client.aio import AsyncResRankClient
from resrank.client.client import ResRankClient
from resrank.client.results import HealthReport, RankedPassage, RerankResult, RetrievalHealth, SearchResult
from resrank.client.settings import TlsConfig
from resrank.core.calibration import Calibration
from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    EncoderMismatchError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.core.fail_open import Failure, OnFailure
from resrank.core.filters import F, Filter

__all__ = [
    "AsyncResRankClient",
    "Calibration",
    "CollectionNotFoundError",
    "DeadlineExceededError",
    "EncoderMismatchError",
    "F",
    "Failure",
    "Filter",
    "HealthReport",
    "InvalidInputError",
    "ModelNotReadyError",
    "OnFailure",
    "QueueFullError",
    "RankedPassage",
    "RerankResult",
    "ResRankClient",
    "ResRankError",
    "RetrievalError",
    "RetrievalHealth",
    "SearchResult",
    "ServerFailedError",
    "ServerUnavailableError",
    "TlsConfig",
]
