"""Documents leak, not only questions: which judged passages training has read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resrank.core.collection import Qrels, load_collection
from resrank.core.corpus import Passage, corpus_file, read_passages
from resrank.core.run_files import Ranking
from resrank.evaluation.evaluation import Evaluation, Row, judged_row
from resrank.evaluation.significance import Difference, difference
from resrank.training.exclusion import document_key
from resrank.training.listwise_file import ListwiseFile

_TRAINING_SPLIT = "train"


def seen_documents(sources: Iterable[Path]) -> set[bytes]:
    """What training data hold.

    Args:
        sources: Listwise files, of which every passage counts, or folders in BEIR layout, of which those count that
            ``qrels/train.tsv`` judges.

    Returns:
        The :func:`~resrank.training.exclusion.document_key` of each passage.

    Raises:
        InvalidInputError: A source cannot be read, or a line of it is wrong.
    """
    keys: set[bytes] = set()
    for source in sources:
        keys.update(document_key(text) for text in (_judged(source) if source.is_dir() else _listed(source)))
    return keys


@dataclass(frozen=True)
class UnseenResult:
    """The first measure where training has not read the answers.

    Attributes:
        questions: How many there are of this kind.
        means: Of each row.
        differences: Of each row but the dense one from it; empty without questions.
    """

    questions: int
    means: Mapping[Row, float]
    differences: Mapping[Row, Difference]


@dataclass(frozen=True)
class SeenSplit:
    """An evaluation apart by whether training has read the relevant passages.

    Attributes:
        seen_passages: Passages of the collection that training has read.
        unseen_questions: Over the questions none of whose relevant passages were read.
        residual: Over all questions that have a relevant passage which was not read, with those that were read taken
            out of rankings and judgements, as the residual collection of relevance feedback does it.
    """

    seen_passages: int
    unseen_questions: UnseenResult
    residual: UnseenResult


def split_by_seen(
    evaluation: Evaluation, qrels: Qrels, passages: Mapping[str, Passage], documents: set[bytes]
) -> SeenSplit:
    """Judges an evaluation's rankings once more, by what training has read.

    Args:
        evaluation: The evaluation.
        qrels: Its judgements.
        passages: The collection. A relevant passage that it does not hold is in no ranking and does not count.
        documents: Of :func:`seen_documents`.
    """
    seen = {id_ for id_, passage in passages.items() if document_key(passage.encoder_text) in documents}
    relevant = {
        question: {passage for passage, grade in judged.items() if grade > 0 and passage in passages}
        for question, judged in qrels.items()
    }
    unseen = {
        question: judged for question, judged in qrels.items() if relevant[question] and not relevant[question] & seen
    }
    remaining = {
        question: {passage: grade for passage, grade in judged.items() if passage not in relevant[question] & seen}
        for question, judged in qrels.items()
        if relevant[question] - seen
    }
    return SeenSplit(
        seen_passages=len(seen),
        unseen_questions=_judge(evaluation, unseen, without={}),
        residual=_judge(evaluation, remaining, without={question: relevant[question] & seen for question in remaining}),
    )


def _judge(evaluation: Evaluation, qrels: Qrels, without: Mapping[str, set[str]]) -> UnseenResult:
    if not qrels:
        return UnseenResult(0, {}, {})
    measure = evaluation.settings.measures[0]
    values = {
        row: judged_row(
            [
                {question: _left_out(run[question], without.get(question, set())) for question in qrels}
                for run in result.runs
            ],
            qrels,
            (measure,),
        ).values[measure]
        for row, result in evaluation.rows.items()
    }
    return UnseenResult(
        questions=len(qrels),
        means={row: float(value.mean()) for row, value in values.items()},
        differences={
            row: difference(value, values[Row.DENSE], seed=evaluation.settings.seed)
            for row, value in values.items()
            if row is not Row.DENSE
        },
    )


def _left_out(ranking: Ranking, passages: set[str]) -> Ranking:
    kept = [place for place, passage in enumerate(ranking.ids) if passage not in passages]
    return Ranking(tuple(ranking.ids[place] for place in kept), ranking.scores[kept])


def _listed(path: Path) -> Iterable[str]:
    return (passage.encoder_text for candidates in ListwiseFile(path, path.name) for passage in candidates.passages)


def _judged(folder: Path) -> Iterable[str]:
    qrels = load_collection(folder, _TRAINING_SPLIT).qrels
    judged = {passage for judgements in qrels.values() for passage in judgements}
    passages = read_passages(corpus_file(folder), on_empty=lambda _: None)
    return (passage.encoder_text for passage in passages if passage.id in judged)
