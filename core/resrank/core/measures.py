"""The field's measures of a ranking, by ``ir-measures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from subprocess import CalledProcessError
from typing import Any

import ir_measures

from resrank.core.collection import Qrels
from resrank.core.errors import InvalidInputError

Run = Mapping[str, Mapping[str, float]]
"""Question id to passage id to score, higher is better."""

MEASURES = ("nDCG@10", "RR@10", "AP", "R@100")
"""What is reported by default, in the names of ``ir-measures``: nDCG, mean reciprocal rank, mean average precision and
recall."""


_DEEPEST = 1_000_000
"""Largest cutoff: a thousand times the longest list here, and far from where a provider's integers end."""


def ranked(passage_ids: Sequence[str]) -> dict[str, float]:
    """One question's part of a run from its passages in order.

    Scores made of ranks keep the order exactly, where measures would break ties between equal scores by id.

    Args:
        passage_ids: Best first, without duplicates.

    Returns:
        Passage id to a score that falls by 1 per rank.
    """
    return {passage_id: float(len(passage_ids) - rank) for rank, passage_id in enumerate(passage_ids)}


def check_measures(measures: Sequence[str]) -> None:
    """Refuses what cannot be computed, before anything else is.

    Args:
        measures: Names of ``ir-measures``, for instance ``nDCG@10`` or ``AP(rel=2)``.

    Raises:
        InvalidInputError: One is unknown, has no provider installed here, or goes by two of the names.
    """
    names: dict[Any, str] = {}
    for name, measure in _parse(measures).items():
        if (known := names.setdefault(measure, name)) != name:
            raise InvalidInputError("measures", f"{known} and {name} are the same")
        try:
            found = list(ir_measures.iter_calc([measure], {"q": {"p": 1}}, {"q": {"p": 1.0}}))
        except (ValueError, AssertionError, OSError, CalledProcessError) as error:  # each provider has its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInputError("measures", f"{name} cannot be computed here: {reason}") from None
        if len(found) != 1:
            raise InvalidInputError("measures", f"{name} is not one number for each question")


def per_question(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, dict[str, float]]:
    """Measures of each judged question; a question without an answer has 0.

    Args:
        qrels: The judgements.
        run: The ranking to judge; questions that are not judged are passed over.
        measures: Names of ``ir-measures``.

    Returns:
        Name to question id to value, both in the order given.

    Raises:
        InvalidInputError: A measure is unknown.
    """
    names = {measure: name for name, measure in _parse(measures).items()}
    values = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    metrics = ir_measures.iter_calc(
        list(names),
        {query: dict(judged) for query, judged in qrels.items()},
        {query: dict(scores) for query, scores in run.items() if scores},
    )
    for metric in metrics:
        values[names[metric.measure]][metric.query_id] = float(metric.value)
    return values


def evaluate(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, float]:
    """Means of measures over all judged questions; a question without an answer counts as 0.

    Args:
        qrels: The judgements.
        run: The ranking to judge.
        measures: Names of ``ir-measures``.

    Returns:
        Name to mean, in the order of ``measures``.

    Raises:
        InvalidInputError: A measure is unknown.
    """
    values = per_question(qrels, run, measures)
    return {name: sum(values[name].values()) / len(qrels) for name in measures}


def _parse(measures: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for name in dict.fromkeys(measures):
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError) as error:
            raise InvalidInputError("measures", f"not known to ir-measures: {error}") from None
        # trec_eval ends the whole process on a cutoff below 1.
        if (cutoff := measure.params.get("cutoff", 1)) < 1:
            raise InvalidInputError("measures", f"{name} has a cutoff too small", limit=1, value=cutoff)
        if cutoff > _DEEPEST:
            raise InvalidInputError("measures", f"{name} has a cutoff too large", limit=_DEEPEST, value=cutoff)
        parsed[name] = measure
    return parsed
