"""What a run trains on: the ``data`` part of a training config."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from resrank.core.limits import MAX_MESSAGE_RECORDS

_Count = dict[str, str]
_LISTS: _Count = {"unit": "lists"}
_PASSAGES: _Count = {"unit": "passages"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _SourceConfig(_Strict):
    path: Path = Field(description="Where it lies; a relative path counts from the working directory.")
    name: str = Field(
        default="",
        max_length=100,
        description="What logs and reports call it; empty takes the file's name without its endings, "
        "or the folder's name and the split.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Share of the training lists that this source gives, relative to the other sources' weights and "
        "whatever its size.",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Takes this many of its questions, chosen by a hash of their ids (a smaller limit's are among a "
        "larger one's); none takes all.",
        json_schema_extra=dict(_LISTS),
    )

    @property
    def label(self) -> str:
        """Its name in logs and reports."""
        return self.name or self._default_name()

    def _default_name(self) -> str:
        raise NotImplementedError


class ListwiseSource(_SourceConfig):
    """A file of JSON lines, ``{id, query, passages: [{title?, text, label | score}]}``, plain or gzipped."""

    kind: Literal["listwise"] = Field(description="A file of JSON lines with one labelled list each.")

    def _default_name(self) -> str:
        return self.path.name.removesuffix(".gz").removesuffix(".jsonl")


class BeirSource(_SourceConfig):
    """A folder in BEIR layout: the judged questions of one split, with candidates retrieved from its corpus."""

    kind: Literal["beir"] = Field(description="A folder in BEIR layout; its candidates are always retrieved.")
    split: str = Field(default="train", pattern=r"^[\w.-]+$", description="Which judgements: qrels/SPLIT.tsv.")

    def _default_name(self) -> str:
        return f"{self.path.resolve().name}-{self.split}"


SourceConfig = Annotated[ListwiseSource | BeirSource, Field(discriminator="kind")]


class HeldBack(_Strict):
    """Development data taken out of the training sources."""

    hold_back: int = Field(
        ge=1,
        description="Lists of every training source kept for development, chosen by a hash of their ids, so that "
        "neither the seed nor a source's limit changes them.",
        json_schema_extra=dict(_LISTS),
    )


def _development_kind(value: Any) -> Any:
    """Which alternative a development config is: by its fields, since ``hold_back`` needs no kind."""
    if isinstance(value, HeldBack) or (isinstance(value, dict) and "hold_back" in value):
        return "hold_back"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


DevelopmentConfig = Annotated[
    Annotated[ListwiseSource, Tag("listwise")]
    | Annotated[BeirSource, Tag("beir")]
    | Annotated[HeldBack, Tag("hold_back")],
    Discriminator(
        _development_kind,
        custom_error_type="development_kind",
        custom_error_message="must have hold_back, or kind listwise or beir",
    ),
]


class Origin(StrEnum):
    """Where a list's candidates come from."""

    GIVEN = "given"
    RETRIEVED = "retrieved"


class CandidatesConfig(_Strict):
    """Which candidates a training list has, and in which order."""

    origin: Origin = Field(
        default=Origin.GIVEN,
        description="given: a listwise file's own lists. retrieved: all passages of a file are pooled, and each "
        "question's candidates are what dense retrieval with the encoder before training finds there.",
    )
    depth: int = Field(
        default=100,
        ge=2,
        le=MAX_MESSAGE_RECORDS,
        description="Retrieved candidates per question. Relevant passages further down are never added: that taught "
        "the model to rank against the retriever.",
        json_schema_extra={**_PASSAGES, "source": "NFCorpus nDCG@10 fell from 0.299 to 0.176 with added positives"},
    )
    min_passages: int = Field(
        default=2,
        ge=2,
        description="Shortest list to train on; a list that is shorter to begin with stays whole.",
        json_schema_extra=dict(_PASSAGES),
    )
    max_passages: int = Field(
        default=50,
        ge=2,
        description="Longest list to train on; the length is drawn anew each time a list is seen.",
        json_schema_extra=dict(_PASSAGES),
    )
    shuffle: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Probability that a list's candidates stand in random order instead of best first.",
        json_schema_extra={
            "unit": "probability",
            "source": "trained in dense order alone, DL19 nDCG@10 was 0.6420 in that order and 0.2280 shuffled",
        },
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.min_passages > self.max_passages:
            raise ValueError(f"min_passages ({self.min_passages}) is above max_passages ({self.max_passages})")
        return self


class Leaks(StrEnum):
    """What becomes of training lists whose question is an evaluation question."""

    REFUSE = "refuse"
    LEAVE_OUT = "leave_out"


class DataConfig(_Strict):
    """Training sources, what must not be among them, and the development data."""

    train: tuple[SourceConfig, ...] = Field(min_length=1, max_length=100, description="The training sources.")
    exclude: tuple[Path, ...] = Field(
        default=(),
        description="Evaluation data whose questions must not stand in the training data: folders in BEIR layout, "
        "single qrels files of such folders, or files of JSON lines with query or text. Compared in the same words and "
        "without regard to case, punctuation and spacing.",
    )
    leaks: Leaks = Field(
        default=Leaks.REFUSE,
        description="What becomes of training data with such a question. refuse: the run does not start. leave_out: "
        "the lists of these questions are left out, and told.",
    )
    development: DevelopmentConfig = Field(
        description="What the best checkpoint is chosen by: a source of its own, or lists held back from training."
    )
    candidates: CandidatesConfig = Field(
        default_factory=CandidatesConfig, description="Which candidates a training list has, and in which order."
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        name, count = Counter(source.label for source in self.train).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} training sources are called {name!r}: give them distinct names")
        return self
