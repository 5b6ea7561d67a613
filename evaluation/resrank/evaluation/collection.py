"""A whole judged collection in BEIR layout: questions, judgements and passages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Self

from resrank.core.collection import Collection, Qrels, load_collection
from resrank.core.corpus import Passage, check_corpus, corpus_file, read_passages
from resrank.training.exclusion import is_question_itself


@dataclass(frozen=True)
class JudgedCollection:
    """What rankings are judged on.

    Attributes:
        name: The folder's name.
        split: Name of the judgements.
        queries: Question id to text, in the file's order.
        qrels: Judgements; every question has at least one relevant passage.
        passages: Passage id to passage, in the file's order.
        empty: Ids of passages with neither title nor text. They cannot be encoded and stand in no ranking, but their
            judgements count.
    """

    name: str
    split: str
    queries: Mapping[str, str]
    qrels: Qrels
    passages: Mapping[str, Passage]
    empty: frozenset[str]

    @classmethod
    def load(cls, folder: Path, split: str, *, qrels_file: Path | None = None, questions: int | None = None) -> Self:
        """Reads a folder in BEIR layout.

        Args:
            folder: Holds corpus, queries and ``qrels``, each plain or gzipped.
            split: Which judgements.
            qrels_file: Judgements from elsewhere instead of those of ``split``.
            questions: How many of the judged questions are taken, from the first on; None takes all.

        Raises:
            InvalidInputError: A file is missing or a line of one is wrong; the message names both.
        """
        judged = _first(load_collection(folder, split, qrels_file=qrels_file), questions)
        corpus = corpus_file(folder)
        empty: list[str] = []
        _, repeated = check_corpus(corpus, on_empty=empty.append)
        passages = (
            passage
            for passage in read_passages(corpus, on_empty=lambda _: None)  # they were told by the check
            if passage.line not in repeated
        )
        return cls(
            name=folder.resolve().name,
            split=split if qrels_file is None else qrels_file.stem,
            queries=judged.queries,
            qrels=judged.qrels,
            passages={passage.id: passage for passage in passages},
            empty=frozenset(empty),
        )

    @cached_property
    def own_passages(self) -> frozenset[str]:
        """Ids of questions that are a passage themselves: the passage has their id and their words.

        Where questions are drawn from the corpus (ArguAna, Quora, SciDocs), each finds itself first. BEIR's evaluation
        leaves passages with the question's id out of its rankings, and so does this one; but in a collection that
        numbers questions and passages alike an equal id means nothing, and a passage that is judged relevant to its own
        question is an answer.
        """
        return frozenset(
            id_
            for id_, text in self.queries.items()
            if (passage := self.passages.get(id_)) is not None
            and self.qrels[id_].get(id_, 0) <= 0
            and is_question_itself(text, passage)
        )


def _first(collection: Collection, count: int | None) -> Collection:
    queries = dict(islice(collection.queries.items(), None if count is None else min(count, len(collection.queries))))
    return Collection(queries, {query: collection.qrels[query] for query in queries})
