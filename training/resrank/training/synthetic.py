"""Training lists of passages that nobody has judged: made of the encoder's vectors alone.

A list is a topic c, some neighbouring passages' mean, and a question about it that is worded as people word theirs:

    c = normalised mean of a passage and 1 to 4 of its 11 nearest
    q = a·c + √(1 − a²)·r, normalised, with a uniform in [0.35, 0.8]
    r = normalised residual of a question that was asked: what is left of it without its share of the direction of the
        mean of the 3 passages nearest to it

Its candidates are the 100 passages nearest to q, and those among the m nearest to c are relevant, m log-uniform in
[2, 30]. So what is relevant hangs together, and q alone does not say where: the model has to read it off the cosines
between the candidates. A reranker that reads text reads that of the question whose residual was taken: were these lists
without text, a text would tell that a list is of another kind. Constants: measured on HotpotQA, NFCorpus, Cranfield and
TREC DL, docs/experiments/relations.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.mining import FloatMatrix, HalfMatrix, NegativeIndex, Rows
from resrank.training.pool import PassagePool

DEPTH = 100
"""Candidates of a list, and the fewest passages that lists are made of."""

_NEIGHBOURS = 11
_FEWEST_MEMBERS, _MOST_MEMBERS = 1, 4
_LEAST_TOPIC, _MOST_TOPIC = 0.35, 0.8
_FEWEST_RELEVANT, _MOST_RELEVANT = 2, 30
_NEAREST_TO_QUESTION = 3
_SEED = 0x5EED  # lists are data: the same ones for every seed of a run
_TRIES = 4  # lists drawn for each that is wanted, before a corpus counts as hopeless
_LONGEST_SENTENCE = 300  # characters
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Unit = NDArray[np.float32]
"""Rows of length 1, FP32 [n, d]."""


@dataclass(frozen=True)
class Wordings:
    """How questions that were asked differ from what they find.

    Attributes:
        texts: The questions.
        residuals: r above, FP32 [len(texts), d].
    """

    texts: tuple[str, ...]
    residuals: Unit


def refuse_too_few(name: str, found: int, *, held_back: bool, limit: int | None = None) -> None:
    """Says how many passages lists need.

    Args:
        name: The source.
        found: Passages that were read of it.
        limit: How many were to be read at most, where that was told.
        held_back: Whether a fifth of them is kept for development lists, which need as many.

    Raises:
        InvalidInputError: There are fewer.
    """
    needed = 5 * DEPTH if held_back else DEPTH
    if found < needed:
        why = f", of which development lists take a fifth (a list has {DEPTH})" if held_back else ", a list's length"
        cause = f"its field passages lets {found} be read" if found == limit else f"it has {found}"
        raise InvalidInputError(f"data: {name}", f"synthetic lists need {needed} distinct passages{why}; {cause}")


def sentences(passages: Sequence[TrainingPassage], count: int) -> list[str]:
    """A sentence each of some passages, in place of questions that nobody has logged.

    Args:
        passages: At least one, each with a title or a text.
        count: How many, of distinct passages as far as there are enough.
    """
    rng = np.random.default_rng((_SEED, 1))
    order = np.resize(rng.permutation(len(passages)), count)
    found = []
    for row in order:
        passage = passages[row]
        parts = [part.strip() for part in _SENTENCE_END.split(passage.text) if part.strip()] or [passage.title.strip()]
        found.append(parts[int(rng.integers(len(parts)))][:_LONGEST_SENTENCE])
    return found


def wordings(texts: Sequence[str], questions: FloatMatrix, vectors: HalfMatrix, index: NegativeIndex) -> Wordings:
    """How questions differ from what they find; one in the direction of its passages' mean does not, and is left out.

    Args:
        texts: The questions.
        questions: FP32 [Q, d], theirs, none all zero.
        vectors: FP16 [P, d], the passages'.
        index: Over these.
    """
    unit = _unit(questions)
    nearest = index.nearest(unit, min(_NEAREST_TO_QUESTION, len(vectors)))
    found = _unit(_unit(vectors[nearest].astype(np.float32)).mean(axis=1))
    rest = unit - (unit * found).sum(axis=1, keepdims=True) * found
    (differ,) = np.nonzero(np.linalg.norm(rest, axis=1) > 1e-6)
    return Wordings(tuple(texts[row] for row in differ), _unit(rest[differ]))


def synthetic_lists(
    pool: PassagePool, vectors: HalfMatrix, index: NegativeIndex, asked: Wordings, count: int, source: str
) -> list[CandidateList]:
    """Makes lists whose questions are vectors.

    Args:
        pool: At least :data:`DEPTH` passages.
        vectors: FP16 [P, d], theirs.
        index: Over these.
        asked: Of :func:`wordings`.
        count: How many.
        source: Name that the lists carry.

    Raises:
        InvalidInputError: The passages are so alike that no list has both relevant passages and others.
    """
    if not asked.texts:
        raise InvalidInputError(f"data: {source}", "no question differs from the passages that it finds")
    lists: list[CandidateList] = []
    for attempt in range(_TRIES):
        rng = np.random.default_rng((_SEED, 2, attempt))
        topics, questions, texts = _draw(rng, _unit(vectors.astype(np.float32)), index, asked, count)
        near = index.nearest(topics, min(_MOST_RELEVANT, len(pool)))
        found = index.nearest(questions, DEPTH)
        sizes = np.exp(rng.uniform(math.log(_FEWEST_RELEVANT), math.log(_MOST_RELEVANT), count)).round().astype(int)
        for question, text, relevant, size, rows in zip(questions, texts, near, sizes, found, strict=True):
            labels = np.isin(rows, relevant[:size])
            if not labels.any() or labels.all():
                continue
            lists.append(
                CandidateList(
                    id=f"{attempt}-{len(lists)}",
                    query="",
                    passages=tuple(pool.passages[row] for row in rows.tolist()),
                    labels=tuple(labels.astype(float).tolist()),
                    kind=LabelKind.GRADES,
                    source=source,
                    query_vector=question.astype("<f4").tobytes(),
                    wording=text,
                )
            )
            if len(lists) == count:
                return lists
    raise InvalidInputError(
        f"data: {source}",
        f"gives {len(lists)} lists with relevant passages and others in {_TRIES * count} draws, not {count}: ask for "
        "fewer, or add passages that differ",
    )


def _draw(
    rng: np.random.Generator, unit: Unit, index: NegativeIndex, asked: Wordings, count: int
) -> tuple[Unit, Unit, list[str]]:
    """Topics c and questions q, FP32 [count, d] each, and the texts that these are worded like."""
    seeds = rng.integers(len(unit), size=count)
    neighbours: Rows = index.nearest(unit[seeds], min(_NEIGHBOURS + 1, len(unit)))
    topics = np.empty((count, unit.shape[1]), np.float32)
    for number, seed in enumerate(seeds):
        others = neighbours[number][neighbours[number] != seed][:_NEIGHBOURS]
        members = rng.choice(others, min(len(others), int(rng.integers(_FEWEST_MEMBERS, _MOST_MEMBERS + 1))), False)
        topics[number] = unit[[seed, *members]].mean(axis=0)
    topics = _unit(topics)
    share = rng.uniform(_LEAST_TOPIC, _MOST_TOPIC, (count, 1)).astype(np.float32)
    drawn = rng.integers(len(asked.texts), size=count)
    questions = _unit(share * topics + np.sqrt(1 - share**2) * asked.residuals[drawn])
    return topics, questions, [asked.texts[row] for row in drawn]


def _unit(vectors: NDArray[np.float32]) -> Unit:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Unit = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
