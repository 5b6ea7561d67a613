"""What training reads: a question with candidate passages, each with a label."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from resrank.core.passage import encoder_text


class LabelKind(StrEnum):
    """What the labels of a list mean."""

    GRADES = "grades"
    """Graded relevance: whole numbers, 0 for not relevant."""

    SCORES = "scores"
    """A teacher's scores, of which only the order counts."""


@dataclass(frozen=True, slots=True)
class TrainingPassage:
    """A passage as an index would hold it.

    Attributes:
        title: Its title; may be empty.
        text: Its body.
    """

    title: str
    text: str

    @property
    def encoder_text(self) -> str:
        """What the encoder reads."""
        return encoder_text(self.title, self.text)


@dataclass(frozen=True, slots=True)
class CandidateList:
    """A question and its candidates.

    Two labels of a list always differ, so that there is something to learn, and no passage stands in it twice.

    Attributes:
        id: Distinct within its source.
        query: The question; empty where ``query_vector`` stands for it.
        passages: The candidates in the order they were given or retrieved in, best first.
        labels: One per passage, finite.
        kind: What the labels mean.
        source: Name of the source it comes from.
        query_vector: Of a question that has no text: its embedding, little-endian FP32 [d].
        wording: What a reranker that reads text reads in place of the text that such a question has not.
    """

    id: str
    query: str
    passages: tuple[TrainingPassage, ...]
    labels: tuple[float, ...]
    kind: LabelKind
    source: str
    query_vector: bytes | None = None
    wording: str = ""

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self.passages)

    @property
    def relevant(self) -> tuple[bool, ...]:
        """Which passages are relevant: by grade those above 0, by score the best."""
        if self.kind is LabelKind.SCORES:
            best = max(self.labels)
            return tuple(label == best for label in self.labels)
        return tuple(label > 0 for label in self.labels)
