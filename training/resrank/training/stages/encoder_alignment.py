"""Stage 1a: the encoder learns to tell relevant passages from others, by InfoNCE."""

from __future__ import annotations

from collections.abc import Sequence

from resrank.training.batches import TextPool, Tokenizers
from resrank.training.lists import CandidateList
from resrank.training.stage_config import EncoderAlignmentConfig
from resrank.training.stages.encoding import ChunkCount, contrastive_loss, encode_step
from resrank.training.stages.stage import Backward
from resrank.training.trainable import TrainableResRank


class EncoderAlignment:
    """As :class:`resrank.training.stages.stage.Stage`; one relevant passage and some others of each list are encoded.

    Which ones follows from the list's order: the first relevant and the first others. In-batch negatives are those
    of the lists of one pass in one process.
    """

    name = "encoder_alignment"

    def __init__(
        self,
        config: EncoderAlignmentConfig,
        model: TrainableResRank,
        tokenizers: Tokenizers,
        *,
        chunk_count: ChunkCount = lambda needed: needed,
    ) -> None:
        """Prepares the stage and gives gradients to the encoder alone.

        Args:
            config: Of the stage.
            model: What is trained.
            tokenizers: Of the checkpoint.
            chunk_count: Where processes shard the model, all must make the same passes.

        Raises:
            InvalidInputError: The encoder is frozen.
        """
        self.config = config
        self.groups = model.parameter_groups(config.groups)
        self._model = model
        self._tokenizers = tokenizers
        self._chunk_count = chunk_count

    def step(self, lists: Sequence[CandidateList], backward: Backward) -> dict[str, float]:
        """As :meth:`Stage.step`; the part is ``contrastive``."""
        pool = TextPool(text for candidates in lists for text in self._chosen(candidates))
        queries, passages = encode_step(
            self._model, self._tokenizers, lists, pool, self.config.encoding, self._chunk_count
        )
        contrastive = contrastive_loss(
            self.config.contrastive,
            lists,
            pool,
            queries.embeddings,
            passages.embeddings,
            self._model.spec.fusion.cosine_map,
        )
        loss = self.config.contrastive.weight * contrastive
        backward(loss)
        passages.backward()
        queries.backward()
        return {"loss": loss.item(), "contrastive": contrastive.item()}

    def _chosen(self, candidates: CandidateList) -> list[str]:
        relevant = candidates.relevant
        texts = [passage.encoder_text for passage in candidates.passages]
        others = [text for text, is_relevant in zip(texts, relevant, strict=True) if not is_relevant]
        return [*texts[relevant.index(True) :][:1], *others[: self.config.contrastive.hard_negatives]]
