"""Stage 1b: projectors, gate and reranker learn to rank vectors that were computed once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from resrank.training.batches import Tokenizers, ranking_batch
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList
from resrank.training.losses.ranking import ranking_loss
from resrank.training.stage_config import RerankerAlignmentConfig
from resrank.training.stages.scores import weighted_ranking
from resrank.training.stages.stage import Backward
from resrank.training.trainable import TrainableResRank


class RerankerAlignment:
    """As :class:`resrank.training.stages.stage.Stage`; the encoder never runs."""

    name = "reranker_alignment"

    def __init__(
        self, config: RerankerAlignmentConfig, model: TrainableResRank, tokenizers: Tokenizers, table: EmbeddingTable
    ) -> None:
        """Prepares the stage and gives gradients to all but the encoder.

        Args:
            config: Of the stage.
            model: What is trained.
            tokenizers: Of the checkpoint.
            table: Embeddings of every list that will come, by the model's encoder as it stands.

        Raises:
            InvalidInputError: Nothing of reranker, projectors and gate can be trained.
        """
        self.config = config
        self.groups = model.parameter_groups(config.groups)
        self._model = model
        self._tokenizers = tokenizers
        self._table = table
        self._loss = ranking_loss(config.ranking.kind, config.ranking.temperature)

    def step(self, lists: Sequence[CandidateList], backward: Backward) -> dict[str, float]:
        """As :meth:`Stage.step`; the parts are ``ranking`` and, with a penalty, ``penalty``."""
        device = self._model.device
        batch = ranking_batch(self._tokenizers.prompt, lists, device)
        candidates, queries = self._table.gather(lists, device)
        scores: Tensor = self._model("rank", batch.input_ids, batch.slots, batch.last, candidates, queries)
        ranking = self._loss(scores, batch.labels, batch.valid)
        loss, parts = weighted_ranking(
            self.config.ranking, self._model, ranking, scores, candidates, queries, batch.valid
        )
        backward(loss)
        return {"loss": loss.item()} | {name: part.item() for name, part in parts.items()}
