"""The benchmarks there are: each is one line here and a module of the same name, imported when it runs."""

from __future__ import annotations

from enum import StrEnum


class Benchmark(StrEnum):
    """The benchmarks, in the order in which they run.

    The module ``resrank.benchmarks.NAME`` has a function ``run`` that names what it needs among its parameters
    (:class:`~resrank.benchmarks.suite.Setting` lists what there is) and returns a ``Measurement`` or a ``Study``.

    Attributes:
        about: What is measured, for the command's help.
        only_full: Whether it runs only when it is named or ``--full`` is given: it takes long.
    """

    about: str
    only_full: bool

    def __new__(cls, value: str, about: str = "", only_full: bool = False) -> Benchmark:
        """One line of the list below; a value alone finds the line that it names."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.about = about
        member.only_full = only_full
        return member

    RERANK = "rerank", "the whole ensemble through gRPC against its engines called directly"
    ENGINE = "engine", "the reranker's engine against ONNX Runtime in fp32, and its share of the machine's peak"
    ENCODER = (
        "encoder",
        "the encoder's engine in each precision, its share of the machine's peak, cost by passage length",
    )
    START = "start", "`export`, `serve` until it is ready, and what it occupies at rest"
    RETRIEVAL = "retrieval", "the sidecar's dense search against FAISS in one process"
    INDEXING = "indexing", "`index build` against sentence-transformers' `encode`"
    CANDIDATES = "candidates", "rerank latency by number of candidates, beside rerankers that read text"
    PASSAGES = "passages", "rerank latency by length of the passages, beside the same"
    ENCODING = "encoding", "passages encoded a second, beside sentence-transformers and infinity-emb"
    CORPORA = "corpora", "dense search by corpus size and kind of index, beside FAISS in one process and milvus-lite"
    FILTERS = "filters", "dense search with filters that keep more and less, beside the same search without one"
    BREAKDOWN = "breakdown", "where the time of one rerank and of one search goes, and a search against its parts"
    QUALITY = (
        "quality",
        "nDCG@10 on a judged collection against the latency of one search, beside a trained cross-encoder",
        True,
    )
    ROUTES = "routes", "a search by two calls of the client against one to the model `search`"
    GATEWAY = "gateway", "100 stored passages reranked by id over HTTP against the gRPC client"
    CACHE = "cache", "`rerank_text` of passages seen before against passages that are new"
    BLOCKS = "blocks", "lists longer than one pass takes, up to 10,000 candidates"
    CONCURRENCY = "concurrency", "throughput by concurrent requests against the engines alone at their best batch"
    OVERLOAD = "overload", "three times the requests that can be answered: goodput, shedding, recovery"
    PRIORITY = "priority", "searches beside an index build against searches alone"
    SOAK = "soak", "memory, file descriptors and shared memory under minutes of mixed load", True
