"""Names of the Triton models, tensors and parameters: the contract of every model repository that export writes."""

from enum import IntEnum, StrEnum


class Model(StrEnum):
    """Triton models.

    ``EMBED_*``, ``RERANK`` and ``RERANK_EMBEDDED`` are ensembles, ``RERANK_TEXT`` and ``SEARCH`` business logic
    scripting (BLS). ``RERANK_EMBEDDED`` is not there where ``RERANK`` reads no vector of the query.
    ``BULK_ENCODER`` is in CPU repositories only: on a GPU ``ENCODER`` has a priority level for bulk work instead.
    """

    PASSAGE_TOKENIZER = "passage_tokenizer"
    QUERY_TOKENIZER = "query_tokenizer"
    ENCODER = "encoder"
    BULK_ENCODER = "bulk_encoder"
    RERANK_PROMPT = "rerank_prompt"
    RERANKER = "reranker"
    RESIDUAL_SCORING = "residual_scoring"
    EMBED_PASSAGE = "embed_passage"
    EMBED_QUERY = "embed_query"
    EMBED_BULK = "embed_bulk"
    RERANK = "rerank"
    RERANK_EMBEDDED = "rerank_embedded"
    RERANK_TEXT = "rerank_text"
    SEARCH = "search"


class Priority(IntEnum):
    """Priority levels of a request to the encoder; Triton takes the smaller number first."""

    INTERACTIVE = 1  # somebody waits for the answer: what a request has that names no priority
    BULK = 2  # nobody waits: the passages of an index that is built


class Tensor(StrEnum):
    """Tensor names. Shapes are given without the batch dimension."""

    TEXT = "TEXT"  # BYTES [1], UTF-8
    TOKENS_CUT = "TOKENS_CUT"  # INT32 [1] (`passage_tokenizer`, `embed_*`) or [N] (`rerank_text`), tokens not read
    # INT32 [1], tokens that the encoder read: of one text, or (`rerank`, `rerank_text`) of the query and the passages
    # that were encoded for the request. Where `rerank` has no query encoded, those of the query in the prompt.
    TOKENS_READ = "TOKENS_READ"
    INPUT_IDS = "INPUT_IDS"  # INT64 [L] (encoder) or [S] (reranker)
    ATTENTION_MASK = "ATTENTION_MASK"  # INT64 [L], 1 = token, 0 = padding on the right
    EMBEDDING = "EMBEDDING"  # FP32 [d]
    QUERY = "QUERY"  # BYTES [1], UTF-8
    PASSAGES = "PASSAGES"  # BYTES [N], UTF-8
    QUERY_EMBEDDING = "QUERY_EMBEDDING"  # FP32 [d]
    CANDIDATES = "CANDIDATES"  # FP16 [N, d], the stored passage embeddings
    CANDIDATE_COUNT = "CANDIDATE_COUNT"  # INT64 [1], how many of the N' rows are real
    PASSAGE_POSITIONS = "PASSAGE_POSITIONS"  # INT64 [N'], where in the sequence each passage stands
    LAST_POSITION = "LAST_POSITION"  # INT64 [1], where EOS stands
    PASSAGE_STATES = "PASSAGE_STATES"  # FP32 [N', d], after P_out
    QUERY_STATE = "QUERY_STATE"  # FP32 [d], after P_out
    RELATIONS = "RELATIONS"  # FP32 [N', 3K + 4], of `resrank.core.relations`
    CANDIDATE_PLACES = "CANDIDATE_PLACES"  # INT64 [N], of each candidate as it came: which place's score is its own
    SCORE_RESIDUALS = "SCORE_RESIDUALS"  # FP32 [N'], of w in a fixed length (``resrank.export.engine_head``)
    SCORES = "SCORES"  # FP32 [N], of `search` [k'], best first, as all its outputs
    IDS = "IDS"  # BYTES [k'], UTF-8
    TITLES = "TITLES"  # BYTES [k'], UTF-8
    TEXTS = "TEXTS"  # BYTES [k'], UTF-8
    METADATA = "METADATA"  # BYTES [k'], JSON objects; only where the request says include_metadata
    CANDIDATE_RANKS = "CANDIDATE_RANKS"  # INT32 [k'], places in retrieval order, from 1
    CANDIDATE_SCORES = "CANDIDATE_SCORES"  # FP32 [k'], the retriever's
    # FP32 [k'], what the scores are made of; NaN for what the search did not take
    DENSE_SCORES = "DENSE_SCORES"  # cosines with the query
    LEXICAL_SCORES = "LEXICAL_SCORES"  # BM25
    RERANK_SCORES = "RERANK_SCORES"  # the reranker's
    # BYTES [1], what a search with ``on_failure=retrieval_order`` was answered without, "outcome: message"; else empty
    FAILURE = "FAILURE"
    STAGE_MS = "STAGE_MS"  # FP32 [3], milliseconds of embed_query, retrieve, rerank; 0 for what did not run


class Parameter(StrEnum):
    """Keys in the ``parameters`` of a Triton model config, or of a request."""

    # config of `rerank`, `embed_*`, `rerank_text`, `search`: which encoder made the vectors
    ENCODER_SHA256 = "encoder_sha256"
    CHECKPOINT_SHA256 = "checkpoint_sha256"  # config of the same models
    MAX_PASSAGES = "max_passages"  # config of `rerank`, `rerank_text`, `search`: candidates in one pass
    EMBEDDING_DIM = "embedding_dim"  # config of `rerank`
    EMBED_BATCH_SIZE = "embed_batch_size"  # config of `rerank_text`: passages in one call to `embed_passage`
    EMBEDDING_CACHE_MIB = "embedding_cache_mib"  # config of `rerank_text`: memory for passages' vectors; 0 for none
    # config of `rerank`, `rerank_text`, `search`: what a share of the best lexical score counts beside a score; request
    # to `search`: another one than the checkpoint's
    LEXICAL_WEIGHT = "lexical_weight"
    # config of the same models: A, as JSON with the fields of CosineMap; missing for the identity
    COSINE_MAP = "cosine_map"
    CALIBRATION = "calibration"  # config of the same models: a Calibration as JSON; missing where none was fitted
    SLOT_CONTENT = "slot_content"  # config of the same models: vector, relations or both
    # config of `search`: the steps of `rerank` behind the encoding of the query, as JSON; missing where there is none
    RERANK_CHAIN = "rerank_chain"
    NEAR_STEPS = "near_steps"
    # config of `rerank`, `rerank_text`, `search`: whether `rerank_embedded` is there, true or false; missing for false
    TAKES_EMBEDDING = "takes_embedding"
    SCORE_RESIDUAL = "score_residual"  # config of `residual_scoring`: the factor on SCORE_RESIDUALS
    ENGINE = "engine"  # config of `encoder`, `reranker`: which engine hosts the graph
    PRECISION = "precision"  # config of the same models
    THREADS = "threads"  # config of the same models: threads in one inference, 0 for all cores
    # Config of the same models on CPUs, where requests wait in the model's process (``resrank.serving.queued``).
    NICENESS = "niceness"  # what the engine's threads add to the process's
    ENGINES = "engines"  # engines side by side; 1 where it is missing
    BATCH_ROWS = "batch_rows"  # rows that one call should have at most; all that a request may have where it is missing
    MAX_QUEUE_SIZE = "max_queue_size"  # requests that may wait; also config of `rerank_text`, `search`: under way
    VOCABULARY_SIZE = "vocabulary_size"  # config of the same models: token ids lie below
    MAX_TOKENS = "max_tokens"  # config of the same models: longest row
    # Lengths that rows are padded to, ascending, as text "16,32,64"; without them nothing is padded ahead. In the
    # configs of the steps that pad, and of engines hosted by the Python backend on a GPU, which prepare for them.
    TOKEN_BUCKETS = "token_buckets"  # config of `passage_tokenizer`, `query_tokenizer`; `encoder`
    SEQUENCE_BUCKETS = "sequence_buckets"  # config of `rerank_prompt`; `reranker`
    CANDIDATE_BUCKETS = "candidate_buckets"  # config of `rerank_prompt`; `reranker`
    TRACEPARENT = "traceparent"  # request, also between models: the trace that it belongs to, as W3C has it
    TRUNCATE = "truncate"  # request: cut texts over the token maximum instead of refusing them
    TRUNCATION_SIDE = "truncation_side"  # request: which end is cut off, left or right
    TOKEN_LIMIT = "token_limit"  # request: tokens of a passage that are read at most
    K = "k"  # request to `search`: passages to return
    CANDIDATES = "candidates"  # request to `search`: passages to retrieve and rerank
    MODE = "mode"  # request to `search`: hybrid, dense or lexical
    RERANK = "rerank"  # request to `search`: whether the reranker orders the candidates
    FUSION = "fusion"  # request to `search`: how hybrid joins both lists, weighted or rrf
    FILTER = "filter"  # request to `search`: what metadata must meet, as text (`resrank.core.filter_text`)
    INCLUDE_METADATA = "include_metadata"  # request to `search`: whether METADATA is wanted
    ON_FAILURE = "on_failure"  # request to `search`: error, or retrieval_order where models are down, full or late
    COLLECTION = "collection"  # request to `search`: whose passages, by name or alias; the default one's without it


class LoadMetric(StrEnum):
    """What models whose requests wait in their own process add to Triton's metrics, each with the label ``model``."""

    REQUESTS = "resrank_requests_total"  # label `outcome`: see `resrank.core.outcomes`
    ROWS = "resrank_rows_total"
    BATCHES = "resrank_batches_total"
    QUEUE = "resrank_queue_seconds_total"
    COMPUTE = "resrank_compute_seconds_total"
    WAITING = "resrank_waiting_requests"  # for an engine
    WAITING_LIMIT = "resrank_waiting_requests_limit"  # a second's work of the engine, see `resrank.export.queue_bounds`
    UNDER_WAY = "resrank_requests_under_way"  # in a model that calls others
    # By `search`, label `reason` (an outcome): answered without the reranker, or by words alone, as the caller wanted
    NOT_RERANKED = "resrank_not_reranked_total"


RETRIEVAL_URL_VARIABLE = "RESRANK_RETRIEVAL_URL"
"""Address of the sidecar, for the commands and, where there is no socket, for the `search` model."""

RETRIEVAL_SOCKET_VARIABLE = "RESRANK_RETRIEVAL_SOCKET"
"""Names the Unix domain socket that the sidecar listens on and the `search` model asks: the environment of both
processes has it, since a repository is never changed."""

MANIFEST_FILE = "manifest.json"
CHECKPOINT_FILE = "resrank.json"
CALIBRATION_FILE = "calibration.json"  # beside it
VERSION = "1"  # the one version folder of every model: a repository is never changed, another one is written
ENGINE_FILE = "model.onnx"  # in the version folder of `encoder` and `reranker`: what CPU engines read
PLAN_FILE = "model.plan"  # likewise: what TensorRT reads, where there is one plan
CHECKPOINT_DIR = "checkpoint"  # likewise: what torch reads
COMPACT = "compact"  # where a backbone's name or folder is asked for: a small decoder that is drawn
