"""Each question's candidates, from this project's own index or from a file, with the vectors that the index stores."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from resrank.client.index_build import fill_index
from resrank.client.sidecar import AsyncSidecar
from resrank.core.corpus import Passage
from resrank.core.errors import IndexFolderError, InvalidInputError, RetrievalError
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.progress import Progress
from resrank.core.run_files import NO_RANKING, Ranking, read_candidates
from resrank.core.search import SearchMode
from resrank.core.sidecar.searching import check_encoder
from resrank.core.terms import query_terms
from resrank.evaluation.backends import Backend
from resrank.evaluation.collection import JudgedCollection
from resrank.evaluation.passes import Question
from resrank.evaluation.scorer import Float16, Float32

SidecarOf = Callable[[Path], AbstractAsyncContextManager[AsyncSidecar]]


@dataclass(frozen=True)
class GivenCandidates:
    """Candidates that a file gives.

    Attributes:
        rankings: Of the judged questions that it has candidates for, without empty passages and without
            those that are the question itself.
        notes: What of it was left out, a sentence each.
    """

    rankings: Mapping[str, Ranking]
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of the passages that it names."""
        named = sorted(set(chain.from_iterable(ranking.ids for ranking in self.rankings.values())))
        return hashlib.sha256("\0".join(named).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path, retriever: str | None, collection: JudgedCollection) -> GivenCandidates:
        """Reads a file for one collection.

        Args:
            path: As :func:`~resrank.core.run_files.read_candidates` takes it.
            retriever: Which of several retrievers' lists.
            collection: What its ids mean.

        Raises:
            InvalidInputError: The file is wrong, names passages that the collection does not have, or has candidates
                for none of its judged questions.
        """
        read = read_candidates(path, retriever)
        judged = {question: ranking for question, ranking in read.items() if question in collection.queries}
        if not judged:
            raise InvalidInputError(
                "candidates",
                f"{path} has candidates for no question that split {collection.split} of {collection.name} judges, "
                f"its first is {next(iter(read))!r}",
            )
        known = collection.passages.keys() | collection.empty
        for question, ranking in judged.items():
            if unknown := [passage for passage in ranking.ids if passage not in known]:
                raise InvalidInputError(
                    "candidates",
                    f"{path} gives question {question!r} passage {unknown[0]!r}, which is not in {collection.name}",
                )
        notes = []
        if others := len(read) - len(judged):
            notes.append(f"questions of {path.name} that are not among the judged ones and are left out: {others}")
        if empty := sum(passage in collection.empty for ranking in judged.values() for passage in ranking.ids):
            notes.append(f"empty passages among the candidates of {path.name}, which are left out: {empty}")
        judged = {question: _without(ranking, collection.empty) for question, ranking in judged.items()}
        judged, themselves = _without_own(judged, collection)
        return cls(judged, (*notes, *themselves))


@dataclass(frozen=True)
class OwnIndex:
    """An index of the evaluation's own, filled as needed.

    Attributes:
        folder: Made if it does not exist.
        scratch: Folder for a file of the passages to index.
        sidecar_of: Opens the folder's sidecar.
    """

    folder: Path
    scratch: Path
    sidecar_of: SidecarOf

    @classmethod
    def of(
        cls,
        collection: JudgedCollection,
        backend: Backend,
        indexes: Path | None,
        scratch: Path,
        sidecar_of: SidecarOf,
        source: SearchMode | GivenCandidates,
    ) -> OwnIndex:
        """The index of a collection: one for each encoder, and never vectors of two engines in one.

        One for the passages of each file, too: BM25 is of what an index holds.

        Args:
            collection: What it holds.
            backend: Whose encoder makes the vectors.
            indexes: Folder that keeps indexes for the next time; None for one below ``scratch``.
            scratch: Folder that goes afterwards.
            sidecar_of: Opens the sidecar of an index folder.
            source: Where candidates come from.
        """
        name = f"{collection.name}-{backend.encoder_sha256[:12]}-{backend.through}"
        if isinstance(source, GivenCandidates):
            name += f"-{source.sha256[:12]}"
        return cls((indexes or scratch / "indexes") / name, scratch, sidecar_of)


@dataclass(frozen=True)
class RunningIndex:
    """The index of a running sidecar, which is read and never written.

    Attributes:
        address: ``host:port``.
    """

    address: str


async def find_questions(
    backend: Backend,
    collection: JudgedCollection,
    source: SearchMode | GivenCandidates,
    place: OwnIndex | RunningIndex,
    depth: int,
    progress: Progress,
) -> tuple[list[Question], list[str]]:
    """Makes the judged questions ready to be ranked.

    Args:
        backend: Embeds passages and queries.
        collection: What is evaluated on.
        source: Where candidates come from. For those of a file no other passages are embedded, and all of the file's
            are, whatever the depth: words count in the collection that they are.
        place: The index.
        depth: Candidates of each question at most.
        progress: Called as the work goes on.

    Returns:
        The questions, those without candidates too, and what a reader has to know, a sentence each.

    Raises:
        RetrievalError: The index belongs to another encoder, or is not this collection's.
        ResRankError: Whatever the servers raise.
    """
    wanted = list(collection.passages.values())
    if isinstance(source, GivenCandidates):
        wanted = [
            collection.passages[id_]
            for id_ in dict.fromkeys(chain.from_iterable(found.ids for found in source.rankings.values()))
        ]
    texts = list(collection.queries.values())
    async with _index(backend, wanted, place, collection.name, progress) as sidecar:
        embeddings = await asyncio.to_thread(backend.scorer.embed_queries, texts)
        described = await sidecar.describe()
        notes = []
        if isinstance(source, GivenCandidates):
            rankings = dict(source.rankings)
        else:
            if others := described.record_count - len(wanted):
                notes.append(f"passages of the index that are not in {collection.name}: {others}")
            rankings = {}
            for (question, text), embedding in zip(collection.queries.items(), embeddings, strict=True):
                k = depth + 1 if question in collection.own_passages and depth < MAX_MESSAGE_RECORDS else depth
                rankings[question] = await _search(sidecar, source, text, embedding, k, backend)
                progress("finding candidates", len(rankings), len(texts))
            rankings, themselves = _without_own(rankings, collection)
            notes += themselves
        cut = {question: Ranking(found.ids[:depth], found.scores[:depth]) for question, found in rankings.items()}
        vectors = await _vectors(sidecar, list(dict.fromkeys(chain.from_iterable(f.ids for f in cut.values()))))
        words = {}
        for question, text in collection.queries.items():
            words[question] = await _lexical_shares(sidecar, text, cut.get(question, NO_RANKING).ids)
            progress("looking words up", len(words), len(texts))
    questions = []
    for (id_, text), embedding in zip(collection.queries.items(), embeddings, strict=True):
        found = cut.get(id_, NO_RANKING)
        stored = np.empty((len(found), len(embedding)), np.float16)
        for row, passage in enumerate(found.ids):
            stored[row] = vectors[passage]
        questions.append(Question(id_, text, found, embedding, stored, words[id_]))
    return questions, notes


@asynccontextmanager
async def _index(
    backend: Backend, passages: Sequence[Passage], place: OwnIndex | RunningIndex, name: str, progress: Progress
) -> AsyncIterator[AsyncSidecar]:
    """The sidecar of an index that holds these passages."""
    if isinstance(place, RunningIndex):
        async with AsyncSidecar(place.address) as sidecar:
            check_encoder((await sidecar.describe()).encoder_sha256, backend.encoder_sha256)
            if missing := await sidecar.changed(passages):
                raise RetrievalError(
                    f"the index at {place.address} does not hold {len(missing)} of the {len(passages)} passages of "
                    f"{name} as they are there, the first is {missing[0].id!r}: build it from that corpus"
                )
            yield sidecar
        return
    corpus = place.scratch / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for passage in passages:
            fields = {"_id": passage.id, "title": passage.title, "text": passage.text, "metadata": passage.metadata}
            file.write(json.dumps(fields) + "\n")
    async with place.sidecar_of(place.folder) as sidecar:
        async with backend.passage_encoder() as encoder:
            await fill_index(
                corpus,
                encoder,
                sidecar,
                replace(backend.build, prune=True),  # one that is kept holds what an earlier corpus of the name had
                lambda report: progress("embedding passages", report.stored + report.unchanged, report.passages),
            )
        corpus.unlink()
        yield sidecar


async def _search(
    sidecar: AsyncSidecar, mode: SearchMode, text: str, embedding: Float32, depth: int, backend: Backend
) -> Ranking:
    if mode is SearchMode.LEXICAL and not query_terms(text):
        return NO_RANKING  # which the sidecar refuses, rightly: there is nothing to look for
    found = await sidecar.search(
        text,
        None if mode is SearchMode.LEXICAL else embedding,
        mode=mode,
        k=depth,
        encoder_sha256=backend.encoder_sha256,
        lexical_weight=backend.join.weight,
        cosine_map=backend.join.cosine_map,
    )
    return Ranking(tuple(found.ids), found.scores)


async def _lexical_shares(sidecar: AsyncSidecar, text: str, ids: Sequence[str]) -> Float32:
    """BM25 of passages as shares of the best in the index, FP32 [len(ids)]."""
    scores, best = await sidecar.word_scores(text, ids)
    shares: Float32 = np.asarray([scores[id_] for id_ in ids], np.float32) / np.float32(best or 1.0)
    return shares


async def _vectors(sidecar: AsyncSidecar, ids: Sequence[str]) -> Mapping[str, Float16]:
    vectors = await sidecar.vectors(ids)
    if missing := [id_ for id_ in ids if id_ not in vectors]:
        raise IndexFolderError(f"the index lost passage {missing[0]!r} while it was read")
    return vectors


def _without(ranking: Ranking, passages: frozenset[str]) -> Ranking:
    kept = [place for place, passage in enumerate(ranking.ids) if passage not in passages]
    return Ranking(tuple(ranking.ids[place] for place in kept), ranking.scores[kept])


def _without_own(rankings: Mapping[str, Ranking], collection: JudgedCollection) -> tuple[dict[str, Ranking], list[str]]:
    """Rankings in which no question finds itself, and a note when one did."""
    themselves = {
        question: frozenset({question})
        for question, ranking in rankings.items()
        if question in collection.own_passages and question in ranking.ids
    }
    left = {
        question: _without(ranking, themselves.get(question, frozenset())) for question, ranking in rankings.items()
    }
    note = f"questions that are a passage themselves, which their rankings leave out: {len(themselves)}"
    return left, [note] if themselves else []
