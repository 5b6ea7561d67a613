"""Retrieval quality: collections in BEIR layout, and the field's measures by ``ir-measures``."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ir_measures

from resrank.errors import InvalidInputError

Qrels = Mapping[str, Mapping[str, int]]
"""Question id to passage id to relevance; passages that are not named are not relevant."""

Run = Mapping[str, Mapping[str, float]]
"""Question id to passage id to score, higher is better."""

MEASURES = ("nDCG@10", "R@10", "R@100", "RR@10")
"""What is reported by default, in the names of ``ir-measures``."""


@dataclass(frozen=True)
class Collection:
    """Questions with judged passages.

    Attributes:
        queries: Question id to text, in the file's order.
        qrels: Judgements; every id in ``queries`` has at least one relevant passage.
    """

    queries: Mapping[str, str]
    qrels: Qrels


def load_collection(folder: Path, split: str = "test") -> Collection:
    """Reads the questions and judgements of a folder in BEIR layout.

    Args:
        folder: Holds ``queries.jsonl`` (or ``.jsonl.gz``) and ``qrels/SPLIT.tsv``.
        split: Which judgements.

    Returns:
        The judged questions; others of ``queries.jsonl`` belong to another split.

    Raises:
        InvalidInputError: A file is missing or a line is wrong; the message names both.
    """
    qrels_file = folder / "qrels" / f"{split}.tsv"
    qrels = _read_qrels(qrels_file)
    queries_file = next(
        (path for path in (folder / "queries.jsonl.gz", folder / "queries.jsonl") if path.is_file()), None
    )
    if queries_file is None:
        raise InvalidInputError("queries", f"{folder} has neither queries.jsonl nor queries.jsonl.gz")
    queries: dict[str, str] = {}
    try:
        raw = queries_file.read_bytes()
        lines = (gzip.decompress(raw) if queries_file.suffix == ".gz" else raw).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError("queries", f"{queries_file} cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            query_id, text = str(record["_id"]), str(record["text"])
        except (ValueError, KeyError, TypeError):
            raise InvalidInputError(
                "queries", f"{queries_file}, line {number}: not a record with _id and text"
            ) from None
        if query_id in qrels:
            queries[query_id] = text
    if missing := qrels.keys() - queries.keys():
        raise InvalidInputError("qrels", f"{qrels_file} judges {min(missing)!r}, which is not in {queries_file.name}")
    return Collection(queries, qrels)


def ranked(passage_ids: Sequence[str]) -> dict[str, float]:
    """One question's part of a run from its passages in order.

    Scores made of ranks keep the order exactly, where measures would break ties between equal scores by id.

    Args:
        passage_ids: Best first, without duplicates.

    Returns:
        Passage id to a score that falls by 1 per rank.
    """
    return {passage_id: float(len(passage_ids) - rank) for rank, passage_id in enumerate(passage_ids)}


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
    try:
        parsed = {name: ir_measures.parse_measure(name) for name in measures}
    except (NameError, ValueError) as error:
        raise InvalidInputError("measures", f"not known to ir-measures: {error}") from None
    means = ir_measures.calc_aggregate(
        list(parsed.values()),
        {query: dict(judged) for query, judged in qrels.items()},
        {query: dict(scores) for query, scores in run.items() if scores},
    )
    return {name: float(means[measure]) for name, measure in parsed.items()}


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    if not path.is_file():
        raise InvalidInputError("qrels", f"{path} is missing")
    qrels: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)  # the header: query-id, corpus-id, score
        for number, row in enumerate(rows, start=2):
            try:
                query_id, passage_id, score = row
                qrels.setdefault(query_id, {})[passage_id] = int(score)
            except ValueError:
                raise InvalidInputError("qrels", f"{path}, line {number}: not query-id, corpus-id, score") from None
    return {query: judged for query, judged in qrels.items() if any(score > 0 for score in judged.values())}
