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
        description="Share of the training lists that this source gives (1 in development, where every set counts "
        "alike), relative to the other sources' weights and whatever its size.",
    )

    @property
    def label(self) -> str:
        """Its name in logs and reports."""
        return self.name or self._default_name()

    def _default_name(self) -> str:
        raise NotImplementedError


class _LabelledSource(_SourceConfig):
    path: Path = Field(description="Where it lies; a relative path counts from the working directory.")
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Takes this many of its questions, chosen by a hash of their ids (a smaller limit's are among a "
        "larger one's); none takes all.",
        json_schema_extra=dict(_LISTS),
    )
    skip: int = Field(
        default=0,
        ge=0,
        description="Leaves out this many first, in the order in which limit takes them and after those that are held "
        "back: the questions of another run whose limit this is. An encoder and the reranker that reads its vectors "
        "learn from different questions.",
        json_schema_extra=dict(_LISTS),
    )


class ListwiseSource(_LabelledSource):
    """A file of JSON lines, ``{id, query, passages: [{title?, text, label | score}]}``, plain or gzipped."""

    kind: Literal["listwise"] = Field(description="A file of JSON lines with one labelled list each.")

    def _default_name(self) -> str:
        return self.path.name.removesuffix(".gz").removesuffix(".jsonl")


class BeirSource(_LabelledSource):
    """A folder in BEIR layout: the judged questions of one split, with candidates from its corpus."""

    kind: Literal["beir"] = Field(description="A folder in BEIR layout, judged by one of its splits.")
    split: str = Field(default="train", pattern=r"^[\w.-]+$", description="Which judgements: qrels/SPLIT.tsv.")
    candidates: Path | None = Field(
        default=None,
        description="Each question's candidates, as `resrank eval --candidates` reads them: a TREC run, or JSON lines "
        "with qid and docids. None retrieves them with the encoder before training.",
    )
    retriever: str | None = Field(
        default=None, description="Which of several retrievers' lists in candidates; in a TREC run its tag."
    )

    @model_validator(mode="after")
    def _retriever_of_candidates(self) -> Self:
        if self.retriever is not None and self.candidates is None:
            raise ValueError("retriever names lists of candidates, which is not given")
        return self

    def _default_name(self) -> str:
        return f"{self.path.resolve().name}-{self.split}"


class SyntheticSource(_SourceConfig):
    """Passages without judgements, of which lists are made by the encoder's vectors alone."""

    kind: Literal["synthetic"] = Field(
        description="Lists made of any passages' vectors, without judgements: `resrank.training.synthetic` says how."
    )
    path: Path | None = Field(
        default=None,
        description="The passages: a folder in BEIR layout, its corpus file alone, or an index folder, which may be "
        "served meanwhile. None takes the passages and questions of the other training sources.",
    )
    queries: Path | None = Field(
        default=None,
        description="A log of questions that people asked: a text file with one in each line, or JSON lines with query "
        "or text. Only how they differ from what they find is used. None takes sentences of the passages instead.",
    )
    lists: int = Field(
        default=3000, ge=1, le=1_000_000, description="How many to make.", json_schema_extra=dict(_LISTS)
    )
    passages: int = Field(
        default=20_000,
        ge=1,
        description="Passages that are read at most, chosen by a hash of their texts: encoding them takes time.",
        json_schema_extra=dict(_PASSAGES),
    )

    @model_validator(mode="after")
    def _path_has_what_is_asked_of_it(self) -> Self:
        if self.path is None and self.queries is not None:
            raise ValueError("queries needs a path: without one the other sources' questions are taken")
        if self.path is None and self.passages != type(self).model_fields["passages"].default:
            raise ValueError("passages needs a path: without one all of the other sources' passages are taken")
        return self

    def _default_name(self) -> str:
        return "synthetic" if self.path is None else f"{self.path.resolve().name.split('.')[0]}-synthetic"


SourceConfig = Annotated[ListwiseSource | BeirSource | SyntheticSource, Field(discriminator="kind")]


class HeldBack(_Strict):
    """Development data taken out of the training sources."""

    hold_back: int = Field(
        ge=1,
        description="Lists of every training source that has a path kept for development, a set of its own for each. "
        "Judged questions are chosen by a hash of their ids, so that neither the seed nor a limit changes them, and no "
        "training list has a passage of a held back list of a file; a fifth of the passages of a synthetic source "
        "is kept for these alone.",
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
        custom_error_message="must have hold_back, or kind listwise or beir: only judged lists or lists held back of "
        "data.train can be chosen by",
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
    spread: float = Field(
        default=1.0,
        ge=1,
        le=10,
        description="A list of N passages is drawn from the first spread × N candidates; 1 takes the first N.",
        json_schema_extra={"unit": "factor", "source": "1: what retrieval hands over when asked for N"},
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
    development: tuple[DevelopmentConfig, ...] = Field(
        min_length=1,
        max_length=100,
        description="What the best checkpoint is chosen by: sets of lists of several kinds, each a source of its own "
        "or lists held back from training. development.choose says how their scores are joined.",
    )
    encoder_share: float | None = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of each labelled source's questions that encoder_alignment alone is trained on, by a hash "
        "of the question, where a stage that trains the reranker runs too; that stage has the others. On lists that "
        "the encoder was trained on, what is relevant stands first already, and nothing is left to learn. Null: all "
        "stages share all lists.",
        json_schema_extra={"unit": "share or null", "source": "half for each"},
    )
    candidates: CandidatesConfig = Field(
        default_factory=CandidatesConfig, description="Which candidates a training list has, and in which order."
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        name, count = Counter(source.label for source in self.train).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} training sources are called {name!r}: give them distinct names")
        held_back = [part for part in self.development if isinstance(part, HeldBack)]
        if len(held_back) > 1:
            raise ValueError("hold_back stands in development more than once")
        named = [part for part in self.development if not isinstance(part, HeldBack)]
        for part in named:
            if part.weight != 1.0:
                raise ValueError(f"weight of the development set {part.label} has no effect: every set counts alike")
        names = [part.label for part in named]
        if held_back:
            names += [source.label for source in self.train if not is_derived(source)]
        if not names:
            raise ValueError("development has hold_back alone, and no training source has a path to hold lists back of")
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} sets of development lists are called {name!r}: give them distinct names")
        return self

    @model_validator(mode="after")
    def _derived_has_an_origin(self) -> Self:
        if all(is_derived(source) for source in self.train):
            raise ValueError("every training source is synthetic without a path: there is no passage to make lists of")
        return self


def is_derived(source: SourceConfig) -> bool:
    """Whether a source is made of the other sources' passages."""
    return isinstance(source, SyntheticSource) and source.path is None
