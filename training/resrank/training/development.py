"""The development score: what the best checkpoint is chosen by, and what dense retrieval alone reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from resrank.core.errors import InvalidInputError
from resrank.core.measures import evaluate, ranked
from resrank.training.batches import Tokenizers
from resrank.training.config import Choose, EvaluationConfig
from resrank.training.embedding_table import EmbeddingTable, Progress
from resrank.training.list_scores import score_lists
from resrank.training.lists import CandidateList, LabelKind
from resrank.training.sources import DevelopmentSet
from resrank.training.trainable import TrainableResRank
from resrank.training.vector_cache import VectorCache

MEASURE = "nDCG@10"
_LISTS_PER_PASS = 8
_SHUFFLE_SEED = 0xD01  # the same shuffles in every run, so that runs can be compared


@dataclass(frozen=True)
class SetScore:
    """nDCG@10 of the same lists, ranked in three ways.

    Attributes:
        name: The development set.
        retrieved: By the model, with the candidates in the order they were given or retrieved in.
        shuffled: By the model, with the candidates in a random order, the same in every evaluation.
        dense: By the cosine of the encoder's vectors, as it stands.
        lists: How many lists each is a mean of.
    """

    name: str
    retrieved: float
    shuffled: float
    dense: float
    lists: int

    @property
    def score(self) -> float:
        """The worse of both orders: a model that copies positions gains nothing by it."""
        return min(self.retrieved, self.shuffled)


@dataclass(frozen=True)
class DevelopmentScore:
    """The scores of all development sets.

    Attributes:
        sets: At least one, in the config's order.
    """

    sets: tuple[SetScore, ...]

    def gain(self, dense_start: DevelopmentScore, choose: Choose) -> float:
        """What is gained over the encoder's own order before training: above 0, a model is worth keeping.

        Args:
            dense_start: The score before the first step, of the same sets.
            choose: How the sets' gains become one.
        """
        gains = [now.score - start.dense for now, start in zip(self.sets, dense_start.sets, strict=True)]
        return min(gains) if choose is Choose.WORST else sum(gains) / len(gains)

    @property
    def values(self) -> dict[str, float]:
        """What logs say: the means over the sets, and every set's own after its name."""
        orders = ("retrieved", "shuffled", "dense")
        means = {order: sum(getattr(part, order) for part in self.sets) / len(self.sets) for order in orders}
        if len(self.sets) == 1:
            return means
        return means | {f"{part.name}/{order}": getattr(part, order) for part in self.sets for order in orders}


class Development:
    """Scores a model on the development sets; vectors are computed again only when the encoder has changed."""

    def __init__(
        self,
        sets: Sequence[DevelopmentSet],
        config: EvaluationConfig,
        tokenizers: Tokenizers,
        cache: VectorCache | None = None,
    ) -> None:
        """Cuts the lists to what is evaluated.

        Args:
            sets: Lists at full length, best first.
            config: How many lists, and how long.
            tokenizers: Of the checkpoint.
            cache: Of vectors of the encoder, if it is not trained.

        Raises:
            InvalidInputError: No list of a set has a relevant passage within ``config.candidates``.
        """
        self._sets = [_Cut(part, config) for part in sets]
        self._tokenizers = tokenizers
        self._cache = cache
        self._table: EmbeddingTable | None = None

    def evaluate(
        self, model: TrainableResRank, *, encoder_changed: bool, progress: Progress = lambda done, of: None
    ) -> DevelopmentScore:
        """Scores the model as it stands.

        Args:
            model: Its training mode is put back afterwards.
            encoder_changed: Whether the encoder was trained since the last evaluation.
            progress: Called while texts are encoded.
        """
        if self._table is None or encoder_changed:
            lists = [candidates for part in self._sets for candidates in part.lists]
            self._table = EmbeddingTable.build(model, self._tokenizers, lists, progress=progress, cache=self._cache)
        return DevelopmentScore(tuple(self._score(model, part, self._table) for part in self._sets))

    def _score(self, model: TrainableResRank, part: _Cut, table: EmbeddingTable) -> SetScore:
        def ndcg(lists: Sequence[CandidateList]) -> float:
            found = score_lists(model, self._tokenizers, table, lists, lists_per_pass=_LISTS_PER_PASS)
            return mean_ndcg(lists, found)

        retrieved = ndcg(part.lists)
        # With relations the model itself puts candidates in order, whatever theirs is.
        canonical = model.spec.reranker.slots.content.has_relations
        return SetScore(
            name=part.name,
            retrieved=retrieved,
            shuffled=retrieved if canonical else ndcg(part.shuffled),
            dense=mean_ndcg(part.lists, [_cosines(table, candidates) for candidates in part.lists]),
            lists=len(part.lists),
        )


class _Cut:
    """A set as it is evaluated, in retrieved order and shuffled."""

    def __init__(self, part: DevelopmentSet, config: EvaluationConfig) -> None:
        # A list whose relevant passages all stand further down scores 0 in every order, and one whose passages are all
        # alike 1: neither tells anything. By a teacher's scores the relevant one is the best of the whole list.
        useful = [
            cut
            for candidates in part.lists
            if any(candidates.relevant[: config.candidates])
            and len(set(_gains(cut := _first(candidates, config.candidates)))) > 1
        ]
        if not useful:
            raise InvalidInputError(
                "development.candidates",
                f"no list of {part.name} has a relevant passage among its first {config.candidates}",
            )
        # Spread evenly, since lists of one source stand together.
        spread = np.linspace(0, len(useful) - 1, min(config.lists, len(useful))).round().astype(int)
        self.name = part.name
        self.lists = [useful[index] for index in spread]
        self.shuffled = [
            reordered(candidates, _shuffle(candidates, number)) for number, candidates in enumerate(self.lists)
        ]


def mean_ndcg(lists: Sequence[CandidateList], scores: Sequence[NDArray[np.float32]]) -> float:
    """Mean nDCG@10 over lists ranked by scores.

    Gains are the grades, and 1 for a teacher's best; the ideal order is that of the list's own passages.

    Args:
        lists: The lists.
        scores: FP32 [N] of each; equal scores keep the list's order.
    """
    qrels = {
        str(number): {str(row): gain for row, gain in enumerate(_gains(candidates))}
        for number, candidates in enumerate(lists)
    }
    run = {
        str(number): ranked([str(row) for row in np.argsort(-found, kind="stable")])
        for number, found in enumerate(scores)
    }
    return evaluate(qrels, run, [MEASURE])[MEASURE]


def reordered(candidates: CandidateList, order: Sequence[int] | NDArray[np.int64]) -> CandidateList:
    """The list with its passages (and labels) in another order, or some of them.

    Args:
        candidates: The list.
        order: Positions in it, from 0.
    """
    return replace(
        candidates,
        passages=tuple(candidates.passages[row] for row in order),
        labels=tuple(candidates.labels[row] for row in order),
    )


def _first(candidates: CandidateList, count: int) -> CandidateList:
    return reordered(candidates, range(min(count, len(candidates))))


def _shuffle(candidates: CandidateList, number: int) -> NDArray[np.int64]:
    return np.random.default_rng((_SHUFFLE_SEED, number)).permutation(len(candidates))


def _gains(candidates: CandidateList) -> list[int]:
    if candidates.kind is LabelKind.SCORES:
        return [int(relevant) for relevant in candidates.relevant]
    return [int(label) for label in candidates.labels]


def _cosines(table: EmbeddingTable, candidates: CandidateList) -> NDArray[np.float32]:
    passages, query = table.gather([candidates], torch.device("cpu"))
    cosines: NDArray[np.float32] = functional.cosine_similarity(passages[0].float(), query, dim=-1).numpy()
    return cosines
