"""The benchmarks' names, for those who only want to name one."""

from enum import StrEnum


class Benchmark(StrEnum):
    """The benchmarks, in the order in which they run."""

    RERANK = "rerank"
    ENGINE = "engine"
    RETRIEVAL = "retrieval"
    INDEXING = "indexing"
