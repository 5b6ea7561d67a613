"""Stage 2: passages are encoded inside the step, and the ranking loss reaches the encoder through x_i and e_i."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from resrank.training.batches import TextPool, Tokenizers, padded_rows, ranking_batch
from resrank.training.lists import CandidateList
from resrank.training.losses.ranking import ranking_loss
from resrank.training.stage_config import JointConfig
from resrank.training.stages.encoding import ChunkCount, contrastive_loss, encode_step
from resrank.training.stages.scores import weighted_ranking
from resrank.training.stages.stage import Backward
from resrank.training.stored_vectors import as_stored
from resrank.training.trainable import TrainableResRank


class Joint:
    """As :class:`resrank.training.stages.stage.Stage`; L = weight·L_rank + λ·L_enc, end to end."""

    name = "joint"

    def __init__(
        self,
        config: JointConfig,
        model: TrainableResRank,
        tokenizers: Tokenizers,
        *,
        chunk_count: ChunkCount = lambda needed: needed,
    ) -> None:
        """Prepares the stage and gives gradients to everything that may be trained.

        Args:
            config: Of the stage.
            model: What is trained.
            tokenizers: Of the checkpoint.
            chunk_count: Where processes shard the model, all must make the same passes.

        Raises:
            InvalidInputError: Nothing can be trained.
        """
        self.config = config
        self.groups = model.parameter_groups(config.groups)
        self._model = model
        self._tokenizers = tokenizers
        self._chunk_count = chunk_count
        self._loss = ranking_loss(config.ranking.kind, config.ranking.temperature)

    def step(self, lists: Sequence[CandidateList], backward: Backward) -> dict[str, float]:
        """As :meth:`Stage.step`; the parts are ``ranking`` and, where they count, ``penalty`` and ``contrastive``."""
        device = self._model.device
        pool = TextPool(passage.encoder_text for candidates in lists for passage in candidates.passages)
        queries, passages = encode_step(
            self._model, self._tokenizers, lists, pool, self.config.encoding, self._chunk_count
        )
        batch = ranking_batch(self._tokenizers.prompt, lists, device)
        rows = padded_rows([pool.passage_rows(candidates) for candidates in lists]).to(device)
        candidates = as_stored(passages.embeddings)[rows]
        scores: Tensor = self._model("rank", batch.input_ids, batch.slots, batch.last, candidates, queries.embeddings)
        ranking = self._loss(scores, batch.labels, batch.valid)
        loss, parts = weighted_ranking(
            self.config.ranking, self._model, ranking, scores, candidates, queries.embeddings, batch.valid
        )
        if self.config.contrastive.weight > 0:
            parts["contrastive"] = contrastive_loss(
                self.config.contrastive,
                lists,
                pool,
                queries.embeddings,
                passages.embeddings,
                self._model.spec.fusion.cosine_map,
            )
            loss = loss + self.config.contrastive.weight * parts["contrastive"]
        backward(loss)
        for encoding in (passages, queries):
            encoding.backward()
        return {"loss": loss.item()} | {name: part.item() for name, part in parts.items()}
