"""From a data config to the lists that are trained on and those that the best checkpoint is chosen by."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from resrank.core.collection import load_collection
from resrank.core.corpus import corpus_file, read_passages
from resrank.core.errors import InvalidInputError
from resrank.core.progress import Notify
from resrank.training.data_config import (
    BeirSource,
    CandidatesConfig,
    DataConfig,
    HeldBack,
    Leaks,
    ListwiseSource,
    Origin,
)
from resrank.training.exclusion import Exclusion, question_key, refuse_leaks
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.listwise_file import ListwiseFile
from resrank.training.mining import Rows, mine
from resrank.training.pool import JudgedQuestion, PassagePool, PoolBuilder, merged_grades, pooled

_Count = tuple[int, str]  # so many of what was left out


class CandidateRetriever(Protocol):
    """What is needed of :class:`resrank.training.mining.Retriever`."""

    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        """Finds each query's candidates in the pool."""


@dataclass(frozen=True, slots=True)
class Source:
    """Lists to train on.

    Attributes:
        name: What logs and reports call it.
        weight: Its share of what is trained on, relative to the other sources' weights.
        lists: At least one.
    """

    name: str
    weight: float
    lists: tuple[CandidateList, ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything a run reads.

    Attributes:
        train: The training sources.
        development: The lists that the best checkpoint is chosen by, at full length and best first. None of their
            questions is among the training lists'.
    """

    train: tuple[Source, ...]
    development: tuple[CandidateList, ...]


def load_data(
    config: DataConfig, retriever: CandidateRetriever, notify: Notify = lambda sentence: None
) -> TrainingData:
    """Reads and checks all data of a run, and retrieves candidates where they are not given.

    Args:
        config: What to read.
        retriever: Finds candidates; asked for nothing before all files are read and no question has leaked.
        notify: Told what each source gave and what was left out, a sentence at a time.

    Returns:
        The training sources and the development lists.

    Raises:
        InvalidInputError: A file or line is wrong, a source gives no list, or more lists are to be held back than a
            source has.
        LeakError: A question of ``config.exclude`` stands in a source.
    """
    hold_back = config.development.hold_back if isinstance(config.development, HeldBack) else 0
    exclusions = [Exclusion.read(path) for path in config.exclude]
    reader = _Reader(config.candidates)
    train = [reader.read(source, hold_back) for source in config.train]
    chosen_by = [] if isinstance(config.development, HeldBack) else [reader.read(config.development, 0)]
    if config.leaks is Leaks.REFUSE:
        refuse_leaks([*train, *chosen_by], exclusions)
    evaluated = {key for exclusion in exclusions for key in exclusion.questions}

    def lists_of(questions: _Questions) -> list[CandidateList]:
        lists = questions.lists(retriever, config.candidates.depth, notify)
        return _without(evaluated, lists, notify, questions.name, "list that asks an excluded question")

    development = [candidates for questions in chosen_by for candidates in lists_of(questions)]
    remaining = []
    for questions in train:
        lists = lists_of(questions)
        development += [candidates for candidates in lists if candidates.id in questions.held_back]
        remaining.append([candidates for candidates in lists if candidates.id not in questions.held_back])
    if not development:
        raise InvalidInputError("data.development", "no list is left to choose the best checkpoint by")

    keys = {question_key(candidates.query) for candidates in development}
    sources = []
    for source, lists in zip(config.train, remaining, strict=True):
        kept = _without(keys, lists, notify, source.label, "list that asks a development question")
        if not kept:
            raise InvalidInputError("data.train", f"{source.label} has no list to train on")
        sources.append(Source(source.label, source.weight, tuple(kept)))
    return TrainingData(tuple(sources), tuple(development))


def _without(
    keys: set[bytes], lists: Sequence[CandidateList], notify: Notify, name: str, what: str
) -> list[CandidateList]:
    """The lists that ask none of these questions; tells how many do."""
    kept = [candidates for candidates in lists if question_key(candidates.query) not in keys] if keys else list(lists)
    if len(kept) < len(lists):
        notify(f"{name}{_told([(len(lists) - len(kept), what)])}")
    return kept


@dataclass(frozen=True, slots=True)
class _GivenLists:
    """A source whose lists have their candidates."""

    name: str
    held_back: frozenset[str]
    items: Sequence[CandidateList]
    left_out: Sequence[_Count]

    @property
    def queries(self) -> list[str]:
        return [item.query for item in self.items]

    def lists(self, retriever: CandidateRetriever, depth: int, notify: Notify) -> Sequence[CandidateList]:
        """The lists as they are."""
        notify(f"{self.name}: {len(self.items)} lists{_told(self.left_out)}")
        return self.items


@dataclass(frozen=True, slots=True)
class _JudgedQuestions:
    """A source whose questions get their candidates by retrieval from a pool."""

    name: str
    held_back: frozenset[str]
    items: Sequence[JudgedQuestion]
    left_out: Sequence[_Count]
    pool: PassagePool

    @property
    def queries(self) -> list[str]:
        return [item.query for item in self.items]

    def lists(self, retriever: CandidateRetriever, depth: int, notify: Notify) -> Sequence[CandidateList]:
        """Retrieves the candidates."""
        mined = mine(self.items, self.pool, retriever.retrieve(self.pool, self.queries, depth), self.name)
        left_out = [
            *self.left_out,
            (mined.without_relevant, f"question with no relevant passage among the first {depth}"),
            (mined.nothing_to_rank, "question with nothing to rank"),
        ]
        notify(f"{self.name}: {len(mined.lists)} lists from a pool of {len(self.pool)} passages{_told(left_out)}")
        return mined.lists


_Questions = _GivenLists | _JudgedQuestions


class _Reader:
    """Reads sources; a corpus that two of them share is read once."""

    def __init__(self, candidates: CandidatesConfig) -> None:
        self._retrieved = candidates.origin is Origin.RETRIEVED
        self._corpora: dict[Path, _Corpus] = {}

    def read(self, source: ListwiseSource | BeirSource, hold_back: int) -> _Questions:
        """Reads the questions of a source: those to hold back, and as many more as its limit says."""
        if isinstance(source, BeirSource):
            return self._read_folder(source, hold_back)
        file = ListwiseFile(source.path, source.label)
        lists = list(_interned(_chosen(file, source, hold_back)))
        held_back = _held_back(lists, source, hold_back)
        left_out = (
            (file.nothing_to_rank, "list with nothing to rank"),
            (file.repeated_passages, "passage repeated in its list"),
        )
        if not self._retrieved:
            return _GivenLists(source.label, held_back, lists, left_out)
        if any(candidates.kind is not LabelKind.GRADES for candidates in lists):
            raise InvalidInputError(
                "data.candidates.origin",
                f"retrieved needs grades, and {source.path} has a teacher's scores, which no other passage can be "
                "compared with: set it to given",
            )
        pool, questions = pooled(lists)
        return _JudgedQuestions(source.label, held_back, questions, left_out, pool)

    def _read_folder(self, source: BeirSource, hold_back: int) -> _JudgedQuestions:
        collection = load_collection(source.path, source.split)
        corpus = self._corpus(source.path)
        unknown = 0
        questions = []
        for id_, query in collection.queries.items():
            judged = collection.qrels[id_]
            known = {passage_id: grade for passage_id, grade in judged.items() if passage_id in corpus.rows}
            unknown += len(judged.keys() - known.keys() - corpus.empty)
            grades = merged_grades((corpus.rows[passage_id], grade) for passage_id, grade in known.items())
            questions.append(JudgedQuestion(id_, query, grades))
        chosen = list(_chosen(questions, source, hold_back))
        held_back = _held_back(chosen, source, hold_back)
        left_out = (
            (len(corpus.empty), "empty passage"),
            (unknown, "judgement of a passage that is not in the corpus"),
        )
        return _JudgedQuestions(source.label, held_back, chosen, left_out, corpus.pool)

    def _corpus(self, folder: Path) -> _Corpus:
        path = corpus_file(folder).resolve()
        if path not in self._corpora:
            builder, rows, empty = PoolBuilder(), dict[str, int](), set[str]()
            for passage in read_passages(path, on_empty=empty.add):
                row = builder.add(TrainingPassage(passage.title, passage.text))
                if rows.setdefault(passage.id, row) != row:
                    raise InvalidInputError(f"{path}:{passage.line}", f"_id {passage.id!r} has other content above")
            self._corpora[path] = _Corpus(builder.build(), rows, frozenset(empty))
        return self._corpora[path]


@dataclass(frozen=True, slots=True)
class _Corpus:
    """A folder's corpus: the pool, the row of each id, and the ids of passages that cannot be encoded."""

    pool: PassagePool
    rows: dict[str, int]
    empty: frozenset[str]


class _Item(Protocol):
    @property
    def id(self) -> str: ...


_ItemT = TypeVar("_ItemT", bound=_Item)


def _chosen(items: Iterable[_ItemT], source: ListwiseSource | BeirSource, hold_back: int) -> Iterable[_ItemT]:
    """All items, or as many as limit and development data together need: then the rest is never kept in memory."""
    if source.limit is None:
        return items
    return heapq.nsmallest(hold_back + source.limit, items, key=_hash)


def _held_back(items: Sequence[_Item], source: ListwiseSource | BeirSource, hold_back: int) -> frozenset[str]:
    """Ids of the items that are development data: the same ones whatever the limit."""
    if not items:
        raise InvalidInputError("data", f"{source.path} gives {source.label} no question with something to rank")
    if hold_back >= len(items):
        raise InvalidInputError(
            "data.development.hold_back",
            f"{source.label} would have no list left to train on",
            limit=len(items) - 1,
            value=hold_back,
        )
    return frozenset(item.id for item in heapq.nsmallest(hold_back, items, key=_hash))


def _hash(item: _Item) -> bytes:
    return hashlib.sha256(item.id.encode(errors="surrogatepass")).digest()


def _interned(lists: Iterable[CandidateList]) -> Iterator[CandidateList]:
    """Keeps one object of passages that stand in many lists."""
    known: dict[TrainingPassage, TrainingPassage] = {}
    for candidates in lists:
        passages = tuple(known.setdefault(passage, passage) for passage in candidates.passages)
        yield replace(candidates, passages=passages)


def _told(counts: Iterable[_Count]) -> str:
    """What was left out, as the end of a sentence; empty when nothing was."""
    parts = [f"{count} × {what}" for count, what in counts if count]
    return f"; left out: {', '.join(parts)}" if parts else ""
