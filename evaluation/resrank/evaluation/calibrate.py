"""From judged collections to a checkpoint's calibration: candidates, scores, and the fit."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resrank.core import __version__
from resrank.core.calibration import Calibration
from resrank.core.calibration_file import CalibrationFile, CalibrationFit, JudgedData
from resrank.core.errors import InvalidInputError
from resrank.core.progress import Notify, Progress
from resrank.core.search import SearchMode
from resrank.evaluation.backends import Backend
from resrank.evaluation.calibration import Fitted, JudgedScores, fit_relevance
from resrank.evaluation.candidates import OwnIndex, SidecarOf, find_questions
from resrank.evaluation.collection import JudgedCollection
from resrank.evaluation.passes import present
from resrank.evaluation.run import OpenBackend

_MODE = SearchMode.HYBRID
"""How a search finds candidates unless it is told otherwise: a map holds for lists like those it was fitted to."""


@dataclass(frozen=True)
class CalibrationRequest:
    """What a user asked for.

    Attributes:
        collections: Folder in BEIR layout and split of each.
        depth: Candidates of a question at most.
        relevant_from: Least grade of a relevant passage.
        folds: Parts that the questions are divided into, each once held out.
        seed: Of that division.
        indexes: Folder that keeps the indexes for the next time; None forgets them.
    """

    collections: tuple[tuple[Path, str], ...]
    depth: int
    relevant_from: int
    folds: int
    seed: int
    indexes: Path | None


@dataclass(frozen=True)
class Judged:
    """One collection's candidates with scores and judgements, one question behind the other.

    Attributes:
        collection: What was judged.
        questions: INT64 [n], which question each belongs to, from 0.
        relevant: bool [n].
        reranker: FP64 [n], the reranker's scores.
        with_words: FP64 [n], with the words' share.
        checkpoint_sha256: Digest of the full checkpoint whose scores these are.
        lexical_weight: Of the words' share.
    """

    collection: JudgedCollection
    questions: NDArray[np.int64]
    relevant: NDArray[np.bool_]
    reranker: NDArray[np.float64]
    with_words: NDArray[np.float64]
    checkpoint_sha256: str
    lexical_weight: float

    def scores(self, kind: str) -> JudgedScores:
        """Those of one kind, ``reranker`` or ``with_words``."""
        return _joined([self], kind)


def run_calibration(
    request: CalibrationRequest, open_backend: OpenBackend, sidecar_of: SidecarOf, *, notify: Notify, progress: Progress
) -> CalibrationFile:
    """Fits a checkpoint's calibration.

    Args:
        request: What the user asked for.
        open_backend: Opens the checkpoint, when everything else is read.
        sidecar_of: Opens the sidecar of an index folder.
        notify: Called with one line before each step that takes seconds.
        progress: Called as the work goes on.

    Raises:
        InvalidInputError: A file is wrong, or too little can be told from the judgements.
        ResRankError: The checkpoint is not valid, or an index fails.
    """
    with tempfile.TemporaryDirectory(prefix="resrank-calibrate-") as temporary:
        judged = judge(request, open_backend, sidecar_of, Path(temporary), notify=notify, progress=progress)
    notify("fitting")
    reranker, with_words = (
        fit_relevance(_joined(judged, kind), folds=request.folds, seed=request.seed)
        for kind in ("reranker", "with_words")
    )
    return CalibrationFile(
        checkpoint_sha256=judged[0].checkpoint_sha256,
        calibration=Calibration(reranker.relevance, with_words.relevance, judged[0].lexical_weight),
        fit=_facts(request, judged, reranker, with_words),
    )


def judge(
    request: CalibrationRequest,
    open_backend: OpenBackend,
    sidecar_of: SidecarOf,
    scratch: Path,
    *,
    notify: Notify,
    progress: Progress,
) -> list[Judged]:
    """Candidates of judged questions as a search finds them, with scores: what a calibration is fitted to.

    Args:
        request: What the user asked for.
        open_backend: Opens the checkpoint, when everything else is read.
        sidecar_of: Opens the sidecar of an index folder.
        scratch: Folder that goes afterwards.
        notify: Called with one line before each step that takes seconds.
        progress: Called as the work goes on.

    Raises:
        InvalidInputError: A file is wrong, or nothing is found of a collection.
        ResRankError: The checkpoint is not valid, or an index fails.
    """
    notify("reading the collections")
    collections = [JudgedCollection.load(folder, split) for folder, split in request.collections]
    judged = []
    with open_backend(scratch, notify) as backend:
        for collection in collections:
            notify(f"{collection.name} {collection.split}: {len(collection.queries)} questions")
            place = OwnIndex.of(collection, backend, request.indexes, scratch, sidecar_of, _MODE)
            judged.append(_judged(request, collection, backend, place, progress))
    return judged


def _judged(
    request: CalibrationRequest, collection: JudgedCollection, backend: Backend, place: OwnIndex, progress: Progress
) -> Judged:
    found, _ = asyncio.run(find_questions(backend, collection, _MODE, place, request.depth, progress))
    questions = [question for question in found if question.found]
    if not questions:
        raise InvalidInputError("collections", f"{collection.name}: no judged question has candidates")
    orders = [np.arange(len(question.found)) for question in questions]
    presented = present(backend.scorer, questions, orders, what="reranking", progress=progress)
    grades = [
        [collection.qrels[question.id].get(passage, 0) for passage in question.found.ids] for question in questions
    ]
    shares = [np.zeros(len(q.found)) if q.lexical is None else q.lexical.astype(np.float64) for q in questions]
    reranker = np.concatenate([result.scores.astype(np.float64) for result in presented])
    return Judged(
        collection,
        np.repeat(np.arange(len(questions)), [len(question.found) for question in questions]),
        np.concatenate([np.array(of_one) >= request.relevant_from for of_one in grades]),
        reranker,
        reranker + backend.join.weight * np.concatenate(shares),
        backend.facts["sha256"],
        backend.join.weight,
    )


def _joined(judged: Sequence[Judged], kind: str) -> JudgedScores:
    """All collections' scores of one kind; no two questions have one number."""
    ends = np.cumsum([one.questions[-1] + 1 for one in judged])
    starts = [0, *ends[:-1].tolist()]
    return JudgedScores(
        np.concatenate([getattr(one, kind) for one in judged]),
        np.concatenate([one.relevant for one in judged]),
        np.concatenate([one.questions + start for one, start in zip(judged, starts, strict=True)]),
        np.repeat(np.arange(len(judged)), [len(one.questions) for one in judged]),
    )


def _facts(
    request: CalibrationRequest, judged: Sequence[Judged], reranker: Fitted, with_words: Fitted
) -> CalibrationFit:
    return CalibrationFit(
        collections=tuple(
            JudgedData(
                name=one.collection.name,
                split=one.collection.split,
                questions=int(one.questions[-1]) + 1,
                passages=len(one.questions),
                relevant=int(one.relevant.sum()),
                reranker=reranker.by_collection[number],
                with_words=with_words.by_collection[number],
            )
            for number, one in enumerate(judged)
        ),
        candidates=_MODE.value,
        depth=request.depth,
        relevant_from=request.relevant_from,
        folds=request.folds,
        seed=request.seed,
        reranker=reranker.held_out,
        with_words=with_words.held_out,
        resrank=__version__,
    )
