"""The encoder as it is before training: what retrieves the candidates that are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from resrank.core.checkpoint import CheckpointSpec, encoder_identity, read_spec
from resrank.model.modeling import ResRankModel
from resrank.training.batches import Tokenizers
from resrank.training.embedding_table import Progress, encode_side
from resrank.training.mining import FloatMatrix, HalfMatrix
from resrank.training.stage_config import ModelConfig
from resrank.training.trainable import TrainableResRank
from resrank.training.vector_cache import Side, VectorCache

Encoding = Callable[[str], AbstractContextManager[Progress]]
"""Told what is encoded; gives, for as long as that takes, what is told how many texts are done."""


class StartEncoder:
    """Implements :class:`resrank.training.mining.TextEncoder`; loads the model when it is first asked for vectors."""

    def __init__(
        self,
        start: Path,
        config: ModelConfig,
        device: torch.device,
        encoding: Encoding,
        cache: VectorCache | None = None,
    ) -> None:
        """Names the checkpoint.

        Args:
            start: The full checkpoint that training starts from.
            config: Its precision is the vectors'.
            device: Where to encode.
            encoding: Shows how far it is.
            cache: Of vectors of this encoder.
        """
        self._start = start
        self._config = config
        self._device = device
        self._encoding = encoding
        self._cache = cache
        self._spec = read_spec(start)
        self._model: TrainableResRank | None = None

    @property
    def identity(self) -> str:
        """Digest of all that decides the vectors, as far as candidates depend on it."""
        return vectors_identity(self._spec, self._config)

    def encode_passages(self, texts: Sequence[str]) -> HalfMatrix:
        """Encodes passages, fp16 [len(texts), d], rounded as an index stores them."""
        vectors: HalfMatrix = self._encode("passages", texts).numpy()
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> FloatMatrix:
        """Encodes queries, fp32 [len(texts), d]."""
        vectors: FloatMatrix = self._encode("queries", texts).numpy()
        return vectors

    def _encode(self, side: Side, texts: Sequence[str]) -> Tensor:
        if self._model is None:
            model = ResRankModel.from_checkpoint(self._start, verify_hashes=False)
            self._model = TrainableResRank(model, self._config).to(self._device)
        tokenizers = Tokenizers.from_checkpoint(self._start, self._spec)
        with self._encoding(f"encoding {side}") as progress:
            return encode_side(self._model, tokenizers, side, texts, progress=progress, cache=self._cache)


def vectors_identity(spec: CheckpointSpec, config: ModelConfig) -> str:
    """Digest of all that decides the vectors of an encoder that is not trained, precision included."""
    return f"{encoder_identity(spec)}-{config.compute.precision}"
