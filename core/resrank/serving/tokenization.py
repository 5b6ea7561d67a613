"""``passage_tokenizer`` and ``query_tokenizer``: TEXT to the token ids that the encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resrank.checkpoint import read_spec
from resrank.names import Tensor
from resrank.serving.step import Arrays, Outcome, StepRequest, run_each
from resrank.tokenization import EncoderTokenizer


class TokenizationStep:
    """TEXT BYTES [B, 1] to INPUT_IDS and ATTENTION_MASK INT64 [B, L]."""

    def __init__(self, folder: Path, *, for_queries: bool) -> None:
        """Reads the tokenizer.

        Args:
            folder: Holds ``resrank.json`` and the encoder's ``tokenizer.json``.
            for_queries: Whether texts are queries, else passages.

        Raises:
            CheckpointError: One of the files is missing or wrong.
        """
        self._tokenizer = EncoderTokenizer(folder, read_spec(folder).encoder, for_queries=for_queries)

    def run(self, requests: Sequence[StepRequest]) -> list[Outcome]:
        """Tokenizes each request by itself (see the protocol)."""
        return run_each(self._tokenize, requests)

    def _tokenize(self, request: StepRequest) -> Arrays:
        batch = self._tokenizer.encode(request.inputs[Tensor.TEXT][:, 0].tolist(), truncate=request.truncate)
        return {Tensor.INPUT_IDS: batch.input_ids, Tensor.ATTENTION_MASK: batch.attention_mask}
