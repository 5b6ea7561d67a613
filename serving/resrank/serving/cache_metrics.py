"""What Triton's metrics endpoint tells of the embedding cache."""

from __future__ import annotations

from typing import Any

HITS = "resrank_embedding_cache_hits_total"
MISSES = "resrank_embedding_cache_misses_total"
USED = "resrank_embedding_cache_bytes"
LIMIT = "resrank_embedding_cache_limit_bytes"


class CacheMetrics:
    """Counters and gauges of one model instance, on Triton's own ``/metrics``.

    Args:
        pb_utils: The module ``triton_python_backend_utils``.
        model: The model's name, which becomes a label.
        limit_bytes: Memory that the cache may take.
    """

    def __init__(self, pb_utils: Any, model: str, limit_bytes: int) -> None:
        family = pb_utils.MetricFamily
        # Triton drops a metric whose family is gone.
        self._families = {
            name: family(name=name, description=description, kind=kind)
            for name, description, kind in (
                (HITS, "Passages of rerank_text that were not encoded again", family.COUNTER),
                (MISSES, "Passages of rerank_text that were encoded", family.COUNTER),
                (USED, "Memory of the vectors that are kept", family.GAUGE),
                (LIMIT, "Memory that they may take", family.GAUGE),
            )
        }
        self._metrics = {name: made.Metric(labels={"model": model}) for name, made in self._families.items()}
        self._metrics[LIMIT].set(limit_bytes)

    def record(self, *, found: int, encoded: int, bytes_used: int) -> None:
        """Counts one request; each figure that changed is a message to Triton of about 50 microseconds.

        Args:
            found: Passages that were not encoded for it.
            encoded: Passages that were.
            bytes_used: Memory of the cache behind it.
        """
        if found:
            self._metrics[HITS].increment(found)
        if encoded:
            self._metrics[MISSES].increment(encoded)
            self._metrics[USED].set(bytes_used)
