"""``passage_tokenizer`` and ``query_tokenizer``: TEXT to the token ids that the encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.buckets import bucket_length
from resrank.core.checkpoint import read_spec
from resrank.core.names import Parameter, Tensor
from resrank.core.tokenization import EncoderTokenizer
from resrank.serving.bucket_parameters import read_buckets
from resrank.serving.step import Answer, Arrays, StepRequest, run_each


class TokenizationStep:
    """TEXT BYTES [B, 1] to INPUT_IDS and ATTENTION_MASK INT64 [B, L]; to who asks, TOKENS_CUT, TOKENS_READ [B, 1]."""

    def __init__(self, folder: Path, parameters: Mapping[str, str] | None = None, *, for_queries: bool) -> None:
        """Reads the tokenizer.

        Args:
            folder: Holds ``resrank.json`` and the encoder's ``tokenizer.json``.
            parameters: Of the model's config: with ``token_buckets``, L is one of them, and the longest bounds a text's
                tokens where the checkpoint's own limit does not.
            for_queries: Whether texts are queries, else passages.

        Raises:
            CheckpointError: One of the files is missing or wrong.
            InvalidInputError: The buckets are no ascending lengths.
        """
        spec = read_spec(folder).encoder
        self._buckets = read_buckets(parameters, Parameter.TOKEN_BUCKETS)
        if self._buckets:
            limit = "max_query_tokens" if for_queries else "max_passage_tokens"
            spec = spec.model_copy(update={limit: min(getattr(spec, limit), self._buckets[-1])})
        self._tokenizer = EncoderTokenizer(folder, spec, for_queries=for_queries)

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        """Tokenizes each request by itself (see the protocol)."""
        return run_each(self._tokenize, requests)

    def _tokenize(self, request: StepRequest) -> Arrays:
        batch = self._tokenizer.encode(request.inputs[Tensor.TEXT][:, 0].tolist(), truncate=request.truncate)
        ids, mask = batch.input_ids, batch.attention_mask
        if self._buckets:
            width = ids.shape[1]
            padding = ((0, 0), (0, bucket_length(width, self._buckets) - width))
            ids, mask = np.pad(ids, padding), np.pad(mask, padding)
        outputs: dict[Tensor, NDArray[Any]] = {Tensor.INPUT_IDS: ids, Tensor.ATTENTION_MASK: mask}
        # By name: repositories of earlier versions have no such outputs, and of queries no TOKENS_CUT.
        if Tensor.TOKENS_CUT in request.wanted:
            outputs[Tensor.TOKENS_CUT] = batch.tokens_cut[:, np.newaxis]
        if Tensor.TOKENS_READ in request.wanted:
            outputs[Tensor.TOKENS_READ] = mask.sum(axis=1, keepdims=True, dtype=np.int32)
        return outputs
