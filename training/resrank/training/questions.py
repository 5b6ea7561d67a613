"""The questions of one data source, with what becomes of them: lists to train on, and lists that are held back."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from resrank.core.collection import load_collection
from resrank.core.corpus import corpus_file, read_passages
from resrank.core.errors import InvalidInputError
from resrank.core.progress import Notify
from resrank.core.run_files import read_candidates
from resrank.training.data_config import (
    BeirSource,
    CandidatesConfig,
    ListwiseSource,
    Origin,
    SourceConfig,
    SyntheticSource,
)
from resrank.training.exclusion import is_question_itself, question_key
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.listwise_file import ListwiseFile
from resrank.training.mining import FloatMatrix, HalfMatrix, NegativeIndex, Rows, mine
from resrank.training.passages import PassageReader, drawn_pools, logged_questions
from resrank.training.pool import JudgedQuestion, PassagePool, PoolBuilder, merged_grades, pooled
from resrank.training.synthetic import refuse_too_few, sentences, synthetic_lists, wordings

_Count = tuple[int, str]  # so many of what was left out

_DIVISIBLE = 5  # questions of a log, of which a fifth can be kept apart


class CandidateRetriever(Protocol):
    """What is needed of :class:`resrank.training.mining.Retriever`."""

    def retrieve(self, pool: PassagePool, queries: Sequence[str], depth: int) -> Rows:
        """Finds each query's candidates in the pool."""

    def vectors(self, pool: PassagePool) -> HalfMatrix:
        """The pool's vectors, fp16 [P, d]."""

    def index(self, pool: PassagePool) -> AbstractContextManager[NegativeIndex]:
        """An index over them."""

    def query_vectors(self, texts: Sequence[str]) -> FloatMatrix:
        """Questions' vectors, fp32 [Q, d]."""


class Lists(NamedTuple):
    """What a source gives.

    Attributes:
        train: Lists to train on.
        held_back: Lists to choose the best checkpoint by.
    """

    train: Sequence[CandidateList]
    held_back: Sequence[CandidateList]


class Questions(Protocol):
    """The questions of one source."""

    @property
    def name(self) -> str:
        """What logs and reports call it."""

    @property
    def queries(self) -> Sequence[str]:
        """Texts of all questions, those held back too."""

    @property
    def held_back_texts(self) -> Iterable[str]:
        """What the encoder reads of the passages that no training list may have."""

    def apart_from(self, texts: Collection[str]) -> Questions:
        """The same without such passages in the lists to train on."""

    def lists(self, retriever: CandidateRetriever, notify: Notify) -> Lists:
        """Makes the lists, and tells how many and what was left out."""


class QuestionReader:
    """Reads sources; a corpus that two of them share is read once."""

    def __init__(self, candidates: CandidatesConfig, excluded: Collection[bytes], passages: PassageReader) -> None:
        """Takes what all sources share.

        Args:
            candidates: Where candidates come from.
            excluded: Keys of questions (``question_key``) of which not even the wording may be used.
            passages: Reads the passages of synthetic sources.
        """
        self._retrieved = candidates.origin is Origin.RETRIEVED
        self._depth = candidates.depth
        self._excluded = excluded
        self._passages = passages
        self._corpora: dict[Path, _Corpus] = {}

    def read(self, source: SourceConfig, hold_back: int) -> Questions:
        """Reads the questions of a source: those to hold back, and as many more as its limit says.

        Args:
            source: The source; one without passages of its own cannot be read.
            hold_back: Lists to hold back.

        Raises:
            InvalidInputError: A file or line is wrong, or there are too few questions or passages.
        """
        match source:
            case BeirSource():
                return self._read_folder(source, hold_back)
            case ListwiseSource():
                return self._read_file(source, hold_back)
            case SyntheticSource():
                return self._read_passages(source, hold_back)

    def _read_file(self, source: ListwiseSource, hold_back: int) -> _FileLists:
        file = ListwiseFile(source.path, source.label)
        lists = list(_interned(_chosen(file, source, hold_back)))
        if self._retrieved and any(candidates.kind is not LabelKind.GRADES for candidates in lists):
            raise InvalidInputError(
                "data.candidates.origin",
                f"retrieved needs grades, and {source.path} has a teacher's scores, which no other passage can be "
                "compared with: set it to given",
            )
        ids = _held_back(lists, source, hold_back)
        left_out = (
            (file.nothing_to_rank, "list with nothing to rank"),
            (file.repeated_passages, "passage repeated in its list"),
        )
        return _FileLists(
            source.label,
            [candidates for candidates in lists if candidates.id not in ids],
            [candidates for candidates in lists if candidates.id in ids],
            left_out,
            self._depth if self._retrieved else None,
        )

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
            own = corpus.rows.get(id_)
            if own is not None and (grades.get(own, 0) > 0 or not is_question_itself(query, corpus.pool.passages[own])):
                own = None  # questions and passages that are numbered alike, or an answer
            questions.append(JudgedQuestion(id_, query, grades, own))
        left_out = [
            (len(corpus.empty), "empty passage"),
            (unknown, "judgement of a passage that is not in the corpus"),
        ]
        given = None
        if source.candidates is not None:
            given = self._given(source.candidates, source.retriever, corpus, {question.id for question in questions})
            found = [question for question in questions if question.id in given]
            left_out.append((len(questions) - len(found), "question without candidates in their file"))
            questions = found
        chosen = list(_chosen(questions, source, hold_back))
        return _JudgedQuestions(
            source.label, chosen, _held_back(chosen, source, hold_back), left_out, corpus.pool, self._depth, given
        )

    def _given(
        self, file: Path, retriever: str | None, corpus: _Corpus, judged: Collection[str]
    ) -> dict[str, list[int]]:
        """Rows of the candidates of judged questions, by the questions' ids."""
        given = {}
        for question, ranking in read_candidates(file, retriever).items():
            if question not in judged:
                continue
            for passage in ranking.ids:
                if passage not in corpus.rows and passage not in corpus.empty:
                    raise InvalidInputError(
                        "candidates", f"{file} gives question {question!r} passage {passage!r}, which the corpus lacks"
                    )
            rows = dict.fromkeys(corpus.rows[passage] for passage in ranking.ids if passage in corpus.rows)
            given[question] = list(rows)[: self._depth]
        return given

    def _read_passages(self, source: SyntheticSource, hold_back: int) -> SyntheticLists:
        assert source.path is not None  # one without is made of the others
        questions = None
        if source.queries is not None:
            questions = [
                query for query in logged_questions(source.queries) if question_key(query) not in self._excluded
            ]
            if not questions:
                raise InvalidInputError(f"data: {source.queries}", "holds no question but excluded ones")
        passages = self._passages(source.path)
        pool, apart = drawn_pools(passages, source.passages, divided=hold_back > 0)
        refuse_too_few(source.label, len(pool) + len(apart), held_back=hold_back > 0, limit=source.passages)
        return SyntheticLists(source.label, pool, apart, questions, source.lists, hold_back)

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
class _FileLists:
    """Implements :class:`Questions` for a file of lists."""

    name: str
    items: Sequence[CandidateList]
    held_back: Sequence[CandidateList]
    left_out: Sequence[_Count]
    depth: int | None  # of retrieval from all passages; None keeps the file's candidates

    @property
    def queries(self) -> list[str]:
        return [item.query for item in (*self.items, *self.held_back)]

    @property
    def held_back_texts(self) -> Iterable[str]:
        return (passage.encoder_text for item in self.held_back for passage in item.passages)

    def apart_from(self, texts: Collection[str]) -> _FileLists:
        kept, passages = [], 0
        for item in self.items:
            rows = [row for row, passage in enumerate(item.passages) if passage.encoder_text not in texts]
            labels = [item.labels[row] for row in rows]
            passages += len(item) - len(rows)
            if len(rows) == len(item):
                kept.append(item)
            elif len(set(labels)) > 1 and (item.kind is LabelKind.SCORES or any(labels)):
                kept.append(replace(item, passages=tuple(item.passages[row] for row in rows), labels=tuple(labels)))
        left_out = [
            *self.left_out,
            (passages, "passage of a held back list"),
            (len(self.items) - len(kept), "list with nothing to rank without these"),
        ]
        return replace(self, items=kept, left_out=left_out)

    def lists(self, retriever: CandidateRetriever, notify: Notify) -> Lists:
        if self.depth is None:
            held_back = f" and {len(self.held_back)} held back" if self.held_back else ""
            notify(f"{self.name}: {len(self.items)} lists{held_back}{told(self.left_out)}")
            return Lists(self.items, self.held_back)
        found: list[Sequence[CandidateList]] = []
        for name, lists in ((self.name, self.items), (f"{self.name}, held back", self.held_back)):
            if not lists:
                found.append(())
                continue
            pool, questions = pooled(lists)
            rows = retriever.retrieve(pool, [question.query for question in questions], self.depth).tolist()
            found.append(_mined(questions, pool, rows, self.name, name, self.left_out, self.depth, notify))
        return Lists(*found)


@dataclass(frozen=True, slots=True)
class _JudgedQuestions:
    """Implements :class:`Questions` for a folder in BEIR layout."""

    name: str
    items: Sequence[JudgedQuestion]
    held_back: frozenset[str]
    left_out: Sequence[_Count]
    pool: PassagePool
    depth: int
    given: dict[str, list[int]] | None

    @property
    def queries(self) -> list[str]:
        return [item.query for item in self.items]

    @property
    def held_back_texts(self) -> Iterable[str]:
        return ()  # a corpus is what its questions share, in training and in service

    def apart_from(self, texts: Collection[str]) -> _JudgedQuestions:
        return self

    def lists(self, retriever: CandidateRetriever, notify: Notify) -> Lists:
        if self.given is None:
            # One more where a question is a passage itself: it finds itself first, as no search of others would.
            deeper = any(item.own is not None for item in self.items)
            rows = retriever.retrieve(self.pool, self.queries, self.depth + deeper).tolist()
        else:
            rows = [self.given[item.id] for item in self.items]
        rows = [
            [row for row in found if row != item.own][: self.depth]
            for item, found in zip(self.items, rows, strict=True)
        ]
        lists = _mined(self.items, self.pool, rows, self.name, self.name, self.left_out, self.depth, notify)
        return Lists(
            [candidates for candidates in lists if candidates.id not in self.held_back],
            [candidates for candidates in lists if candidates.id in self.held_back],
        )


@dataclass(frozen=True, slots=True)
class SyntheticLists:
    """Implements :class:`Questions` for passages without judgements.

    Attributes:
        name: Of the source.
        pool: What training lists are made of.
        apart: What held back lists are made of; None where there are none.
        questions: Asked by people; None takes sentences of the passages.
        count: Lists to train on.
        hold_back: Lists to hold back.
    """

    name: str
    pool: PassagePool
    apart: PassagePool | None
    questions: Sequence[str] | None
    count: int
    hold_back: int

    @property
    def queries(self) -> list[str]:
        """None has a text."""
        return []

    @property
    def held_back_texts(self) -> Iterable[str]:
        """Those of the passages kept apart."""
        return () if self.apart is None else self.apart.texts()

    def apart_from(self, texts: Collection[str]) -> SyntheticLists:
        """The same without such passages in the lists to train on."""
        builder = PoolBuilder()
        for passage in self.pool.passages:
            if passage.encoder_text not in texts:
                builder.add(passage)
        return replace(self, pool=builder.build())

    def lists(self, retriever: CandidateRetriever, notify: Notify) -> Lists:
        """Makes the lists, and tells how many."""
        apart = self.apart if self.hold_back and self.apart else None
        of_train, of_held_back = self._divided(apart is not None)
        train = self._made(retriever, self.pool, self.count, of_train)
        held_back = [] if apart is None else self._made(retriever, apart, self.hold_back, of_held_back)
        wording = "sentences of them" if self.questions is None else f"{len(self.questions)} questions"
        also = f" and {len(held_back)} held back" if held_back else ""
        notify(f"{self.name}: {len(train)} lists{also} made of {len(self.pool)} passages and {wording}")
        return Lists(train, held_back)

    def _divided(self, divided: bool) -> tuple[Sequence[str] | None, Sequence[str] | None]:
        """The questions of training and of held back lists: a fifth is kept apart, as of the passages."""
        if not divided or self.questions is None or len(self.questions) < _DIVISIBLE:
            return self.questions, self.questions
        by_hash = _some(self.questions, len(self.questions))
        apart = -(-len(by_hash) // 5)
        return by_hash[apart:], by_hash[:apart]

    def _made(
        self, retriever: CandidateRetriever, pool: PassagePool, count: int, questions: Sequence[str] | None
    ) -> list[CandidateList]:
        refuse_too_few(self.name, len(pool), held_back=False)
        questions = sentences(pool.passages, count) if questions is None else _some(questions, count)
        vectors, asked = retriever.vectors(pool), retriever.query_vectors(questions)
        with retriever.index(pool) as index:
            return synthetic_lists(pool, vectors, index, wordings(questions, asked, vectors, index), count, self.name)


def _some(questions: Sequence[str], count: int) -> list[str]:
    """As many questions as lists need at most, by a hash."""
    return heapq.nsmallest(count, questions, key=lambda text: hashlib.sha256(text.encode()).digest())


def _mined(
    questions: Sequence[JudgedQuestion],
    pool: PassagePool,
    rows: Sequence[Sequence[int]],
    source: str,
    name: str,
    left_out: Sequence[_Count],
    depth: int,
    notify: Notify,
) -> Sequence[CandidateList]:
    mined = mine(questions, pool, rows, source)
    left_out = [
        *left_out,
        (mined.without_relevant, f"question with no relevant passage among the first {depth}"),
        (mined.nothing_to_rank, "question with nothing to rank"),
    ]
    notify(f"{name}: {len(mined.lists)} lists from a pool of {len(pool)} passages{told(left_out)}")
    return mined.lists


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
    """All items, or those of development data and, past ``skip``, of the limit; no others are kept in memory."""
    if source.limit is None and not source.skip:
        return items
    if source.limit is None:
        ordered = sorted(items, key=_hash)
    else:
        ordered = heapq.nsmallest(hold_back + source.skip + source.limit, items, key=_hash)
    # Where hold_back alone leaves none, that is what is told, by _held_back.
    if source.skip and hold_back < len(ordered) <= hold_back + source.skip:
        raise InvalidInputError(
            "data.train.skip" if hold_back else "skip",
            f"{source.label} would have no list left",
            limit=len(ordered) - hold_back - 1,
            value=source.skip,
        )
    return ordered[:hold_back] + ordered[hold_back + source.skip :]


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


def told(counts: Iterable[_Count]) -> str:
    """What was left out, as the end of a sentence; empty when nothing was."""
    parts = [f"{count} × {what}" for count, what in counts if count]
    return f"; left out: {', '.join(parts)}" if parts else ""
