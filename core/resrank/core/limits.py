"""Bounds that hold whatever the checkpoint: they keep a request from costing memory before it is looked at."""

MAX_QUERY_BYTES = 8 * 1024
"""Longest query in UTF-8 bytes. Queries are some tens of tokens; 8 KiB is two orders above."""

MAX_PASSAGE_BYTES = 64 * 1024
"""Longest passage in UTF-8 bytes: about 16,000 tokens, more than any encoder here reads."""

MAX_BATCH_SIZE = 64
"""Rows in one request to a Triton model (``max_batch_size`` of every config)."""

MAX_TEXT_PASSAGES = 1024
"""Passages in one ``rerank_text`` request; the client splits longer lists into blocks."""

DEFAULT_EMBEDDING_CACHE_MIB = 256
"""Memory for vectors of passages that ``rerank_text`` has seen: 210,000 of 384 numbers, 47,000 of 2560."""

MAX_LIST_CANDIDATES = 100_000
"""Candidates or passages in one call to the client's ``rerank``: ten times the longest list that it was measured with.
They go in blocks, so this bounds the time that one call can cost a server, not its memory."""

MAX_EMBEDDING_DIM = 16384
"""Largest embedding dimension a checkpoint may have."""

MAX_GRPC_MESSAGE_BYTES = 256 * 1024 * 1024
"""gRPC message cap on both ends of the sidecar and in the client: 50,000 fp16 vectors of dimension 2560."""

MAX_UPLOAD_BYTES = 64 * 1024 * 1024
"""Largest message that the sidecar takes: 1000 records of dimension 16384 with texts of the usual length, or 500 of the
longest. gRPC reads no more of a longer one than its length."""

MAX_MESSAGE_RECORDS = 1000
"""Results, records or ids in one message of the retrieval sidecar: the usual depth of a run in TREC, and small enough
that the largest answer (1000 × (64 KiB text + 32 KiB embedding + metadata)) stays below the message cap."""

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix domain socket on Linux: ``sun_path`` of ``unix(7)`` has 108 bytes, the last of them NUL."""

MAX_ID_BYTES = 512
"""Longest record id in UTF-8 bytes."""

MAX_METADATA_BYTES = 16 * 1024
"""Keys and values of one record's metadata together, in UTF-8 bytes."""

MAX_COLLECTIONS = 100
"""Collections of one sidecar, the default one among them: each has its files open and its vectors in memory."""

MAX_ALIASES = 1000
"""Aliases of one sidecar."""

LARGEST_QUOTA = 2**63 - 1
"""Records or bytes that a collection's quota can be: what databases count with."""

MAX_FIELD_BYTES = 256
"""Longest name of metadata that is no string, in UTF-8 bytes. That of a string keeps ``MAX_METADATA_BYTES`` alone, as
before there were other types."""

MAX_FILTER_DEPTH = 32
"""Levels of a filter. A comparison is one, and so is every ``and``, ``or`` and ``not`` around it."""

MAX_FILTER_NODES = 256
"""Comparisons, ``and``, ``or`` and ``not`` in one filter."""

MAX_FILTER_VALUES = 1000
"""Values in one filter, in all its comparisons together."""

MAX_FILTER_BYTES = 256 * 1024
"""Names and strings of one filter together, in UTF-8 bytes: as many ids of 256 bytes as there may be values."""

MAX_FILTER_TEXT_BYTES = 1024 * 1024
"""Longest text form of a filter in UTF-8 bytes: what the largest filter takes with its quotes and escapes."""
