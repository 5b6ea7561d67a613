"""``resrank eval``: reads everything first, opens the checkpoint once, and evaluates collection after collection."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from resrank.core import __version__
from resrank.core.addresses import check_target
from resrank.core.errors import InvalidInputError
from resrank.core.progress import Notify, Progress
from resrank.core.run_files import check_run_ids
from resrank.core.search import SearchMode
from resrank.evaluation.backends import Backend
from resrank.evaluation.candidates import GivenCandidates, OwnIndex, RunningIndex, SidecarOf, find_questions
from resrank.evaluation.collection import JudgedCollection
from resrank.evaluation.evaluation import EvaluationSettings, evaluate_checkpoint
from resrank.evaluation.passes import Question
from resrank.evaluation.report import CollectionReport
from resrank.evaluation.seen import seen_documents, split_by_seen

OpenBackend = Callable[[Path, Notify], AbstractContextManager[Backend]]
"""Takes a scratch folder, and what is told of each step that takes seconds."""


@dataclass(frozen=True)
class EvalRequest:
    """What a user asked for.

    Attributes:
        collections: Folders in BEIR layout, with distinct names.
        split: Which judgements.
        qrels: Judgements from elsewhere; only with one collection.
        questions: How many of each collection's questions at most; None for all.
        candidates: ``lexical``, ``dense`` or ``hybrid``, or a file; only with one collection.
        retriever: Which of a file's lists.
        settings: What is measured.
        seen: Training data, to judge apart what training has not read.
        retrieval: Address of a running sidecar, in place of an index of the evaluation's own.
        indexes: Folder that keeps the indexes for the next evaluation; None forgets them.
        out: Folder that the report will be written to, or None; tried before hours of work.
        command: The command line, for the report.
    """

    collections: tuple[Path, ...]
    split: str
    qrels: Path | None
    questions: int | None
    candidates: str
    retriever: str | None
    settings: EvaluationSettings
    seen: tuple[Path, ...]
    retrieval: str | None
    indexes: Path | None
    out: Path | None
    command: str

    def __post_init__(self) -> None:
        if self.retrieval is not None:
            check_target("retrieval", self.retrieval)
        name, count = Counter(folder.resolve().name for folder in self.collections).most_common(1)[0]
        if count > 1:
            raise InvalidInputError("collections", f"{count} are called {name!r}: give them distinct names")
        if len(self.collections) > 1:
            if self.qrels is not None:
                raise InvalidInputError("qrels", "one file cannot judge several collections: evaluate them one by one")
            if self.retrieval_mode is None:
                raise InvalidInputError(
                    "candidates", "one file cannot serve several collections: evaluate them one by one"
                )
            if self.retrieval is not None:
                raise InvalidInputError("retrieval", "one running index cannot hold several collections")
        if self.retrieval_mode is None and not Path(self.candidates).is_file():
            modes = ", ".join(SearchMode)
            raise InvalidInputError("candidates", f"{self.candidates!r} is neither one of {modes} nor a file")
        if self.retriever is not None and self.retrieval_mode is not None:
            raise InvalidInputError("retriever", f"names lists of a file, but the candidates are {self.candidates}")

    @property
    def retrieval_mode(self) -> SearchMode | None:
        """How the index finds candidates; None where a file gives them."""
        return SearchMode(self.candidates) if self.candidates in set(SearchMode) else None


@dataclass(frozen=True)
class EvalReport:
    """The whole answer.

    Attributes:
        command: The command line that made it.
        through: Where the checkpoint ran.
        checkpoint: What is known of it.
        collections: One report each.
    """

    command: str
    through: str
    checkpoint: Mapping[str, Any]
    collections: tuple[CollectionReport, ...]

    def as_json(self) -> dict[str, Any]:
        """All figures as plain dictionaries, lists, numbers and text."""
        return {**self._facts(), "collections": [report.as_json() for report in self.collections]}

    def write(self, folder: Path) -> None:
        """Writes a folder per collection, see :meth:`CollectionReport.write`.

        Args:
            folder: Made if it does not exist.

        Raises:
            InvalidInputError: It cannot be written.
        """
        with _writing(folder):
            for report in self.collections:
                report.write(folder / report.collection.name, self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "resrank": __version__,
            "through": self.through,
            "checkpoint": dict(self.checkpoint),
        }


@dataclass(frozen=True)
class _Task:
    """One collection with where its candidates come from, all read and checked."""

    collection: JudgedCollection
    source: SearchMode | GivenCandidates


def run_evaluation(
    request: EvalRequest, open_backend: OpenBackend, sidecar_of: SidecarOf, *, notify: Notify, progress: Progress
) -> EvalReport:
    """Evaluates a checkpoint.

    Args:
        request: What the user asked for.
        open_backend: Opens the checkpoint, when everything else is read.
        sidecar_of: Opens the sidecar of an index folder of the evaluation's own.
        notify: Called with one line before each step that takes seconds.
        progress: Called as the work goes on.

    Raises:
        InvalidInputError: A file or a field is wrong, which is known before a model is loaded.
        ResRankError: The checkpoint is not valid, or a server cannot be started or failed.
    """
    if request.out is not None:
        with _writing(request.out):
            request.out.mkdir(parents=True, exist_ok=True)
    notify("reading the collections")
    tasks = [_read(request, folder) for folder in request.collections]
    seen = seen_documents(request.seen) if request.seen else None
    with tempfile.TemporaryDirectory(prefix="resrank-eval-") as temporary:
        scratch = Path(temporary)
        with open_backend(scratch, notify) as backend:
            reports = []
            for task in tasks:
                notify(f"{task.collection.name}: {len(task.collection.queries)} questions")
                reports.append(
                    _evaluate(
                        request, task, backend, seen, _index(request, task, backend, scratch, sidecar_of), progress
                    )
                )
            return EvalReport(request.command, backend.through, backend.facts, tuple(reports))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInputError("out", f"{folder} cannot be written ({error.strerror})") from error


def _read(request: EvalRequest, folder: Path) -> _Task:
    collection = JudgedCollection.load(folder, request.split, qrels_file=request.qrels, questions=request.questions)
    if request.out is not None:  # where the rankings go as runs, after hours of work
        check_run_ids("question", collection.queries)
        check_run_ids("passage", collection.passages)
    if request.retrieval_mode is not None:
        return _Task(collection, request.retrieval_mode)
    return _Task(collection, GivenCandidates.read(Path(request.candidates), request.retriever, collection))


def _evaluate(
    request: EvalRequest,
    task: _Task,
    backend: Backend,
    seen: set[bytes] | None,
    place: OwnIndex | RunningIndex,
    progress: Progress,
) -> CollectionReport:
    collection, settings = task.collection, request.settings
    questions, notes = asyncio.run(find_questions(backend, collection, task.source, place, settings.longest, progress))
    evaluation = evaluate_checkpoint(
        questions,
        collection.qrels,
        backend.scorer,
        settings,
        projectors=backend.projectors,
        ablations=backend.ablations,
        join=backend.join,
        progress=progress,
    )
    return CollectionReport(
        collection=collection,
        candidates=_name(request),
        evaluation=evaluation,
        seen=None if seen is None else split_by_seen(evaluation, collection.qrels, collection.passages, seen),
        notes=[*_notes(request, task, questions, backend), *notes],
    )


def _index(
    request: EvalRequest, task: _Task, backend: Backend, scratch: Path, sidecar_of: SidecarOf
) -> OwnIndex | RunningIndex:
    if request.retrieval is not None:
        return RunningIndex(request.retrieval)
    return OwnIndex.of(task.collection, backend, request.indexes, scratch, sidecar_of, task.source)


def _name(request: EvalRequest) -> str:
    if request.retrieval_mode is not None:
        return request.retrieval_mode.value
    name = Path(request.candidates).name
    return name if request.retriever is None else f"{request.retriever} of {name}"


def _notes(request: EvalRequest, task: _Task, questions: Sequence[Question], backend: Backend) -> list[str]:
    collection, settings = task.collection, request.settings
    notes = list(task.source.notes) if isinstance(task.source, GivenCandidates) else []
    if collection.empty:
        notes.append(f"empty passages of the corpus, which cannot be encoded and are left out: {len(collection.empty)}")
    outside = sum(
        grade > 0 and passage not in collection.passages
        for judged in collection.qrels.values()
        for passage, grade in judged.items()
    )
    if outside:
        notes.append(f"relevant passages that are not in the corpus and count against every ranking: {outside}")
    if unanswered := sum(not question.found for question in questions):
        notes.append(f"judged questions without candidates, which count as 0: {unanswered}")
    longest = max(len(question.found) for question in questions)
    if left_out := [str(size) for before, size in pairwise(settings.sizes) if before >= longest]:
        notes.append(f"sizes that add nothing to the longest list, of {longest} candidates: {', '.join(left_out)}")
    if min(longest, settings.depth) > backend.scorer.max_passages:
        notes.append(f"one pass takes {backend.scorer.max_passages} candidates: longer lists go in blocks")
    if backend.projectors is None and not backend.ablations:
        notes.append("without --checkpoint there are no rows of a checkpoint with a part left out")
    return notes
