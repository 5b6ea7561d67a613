"""What an evaluation leaves behind: a summary as JSON, every question as JSON lines, every ranking as a TREC run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resrank.core.run_files import write_run
from resrank.evaluation.collection import JudgedCollection
from resrank.evaluation.evaluation import Evaluation, Row
from resrank.evaluation.seen import SeenSplit

LARGEST_CHANGES = 5
"""Questions named with the largest wins, and as many with the largest losses."""


@dataclass(frozen=True, slots=True)
class Change:
    """What reranking did to one question.

    Attributes:
        question: Its id.
        text: The query.
        dense: The first measure in dense order.
        reranked: The same reranked, read in dense order.
    """

    question: str
    text: str
    dense: float
    reranked: float

    @property
    def gain(self) -> float:
        """How much better; negative where worse."""
        return self.reranked - self.dense


@dataclass(frozen=True)
class CollectionReport:
    """One collection's part of the answer.

    Attributes:
        collection: What was judged on.
        candidates: Where the candidates came from.
        evaluation: What was found.
        seen: The same apart by what training has read; None when not asked for.
        notes: What a reader has to know, a sentence each.
    """

    collection: JudgedCollection
    candidates: str
    evaluation: Evaluation
    seen: SeenSplit | None
    notes: Sequence[str]

    def changes(self) -> tuple[list[Change], list[Change]]:
        """The questions with the largest wins, and those with the largest losses, largest first."""
        rows, measure = self.evaluation.rows, self.evaluation.settings.measures[0]
        both = zip(rows[Row.DENSE].values[measure], rows[Row.RERANKED].values[measure], strict=True)
        changes = [
            Change(question, self.collection.queries[question], float(dense), float(reranked))
            for question, (dense, reranked) in zip(self.evaluation.questions, both, strict=True)
        ]
        changes.sort(key=lambda change: -change.gain)
        wins = [change for change in changes[:LARGEST_CHANGES] if change.gain > 0]
        losses = [change for change in changes[: -LARGEST_CHANGES - 1 : -1] if change.gain < 0]
        return wins, losses

    def as_json(self) -> dict[str, Any]:
        """All figures as plain dictionaries, lists, numbers and text."""
        evaluation, collection = self.evaluation, self.collection
        wins, losses = self.changes()
        return {
            "collection": collection.name,
            "split": collection.split,
            "candidates": self.candidates,
            "questions": len(evaluation.questions),
            "passages": len(collection.passages),
            "empty_passages": len(collection.empty),
            "notes": list(self.notes),
            "settings": asdict(evaluation.settings),
            "rows": {row.value: result.means() for row, result in evaluation.rows.items()},
            "differences": {
                baseline.value: {
                    row.value: asdict(evaluation.compare(row, baseline))
                    for row in evaluation.rows
                    if row is not baseline
                }
                for baseline in evaluation.baselines
            },
            "largest_wins": [asdict(change) for change in wins],
            "largest_losses": [asdict(change) for change in losses],
            "order": asdict(evaluation.order),
            "sizes": [asdict(size) for size in evaluation.sizes],
            "blocks": [asdict(block) for block in evaluation.blocks],
            "seen": None if self.seen is None else asdict(self.seen),
        }

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, ``questions.jsonl`` and ``runs/ROW.trec`` (one for each shuffle).

        Args:
            folder: Made if it does not exist; an earlier evaluation in it is replaced.
            facts: What the summary says of how it came about.
        """
        runs = folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        for earlier in runs.glob("*.trec"):  # which may have had more shuffles or rows
            earlier.unlink()
        (folder / "summary.json").write_text(
            json.dumps({**facts, **self.as_json()}, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
            for line in self._questions():
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for row, result in self.evaluation.rows.items():
            for number, run in enumerate(result.runs, start=1):
                name = row.value if row is not Row.SHUFFLED else f"{row.value}-{number}"
                write_run(runs / f"{name}.trec", run, name)

    def _questions(self) -> Iterator[dict[str, Any]]:
        evaluation, collection = self.evaluation, self.collection
        for place, question in enumerate(evaluation.questions):
            yield {
                "question": question,
                "text": collection.queries[question],
                "candidates": len(evaluation.rows[Row.CANDIDATES].runs[0][question]),
                "relevant": sum(grade > 0 for grade in collection.qrels[question].values()),
                "rows": {
                    row.value: {measure: float(values[place]) for measure, values in result.values.items()}
                    for row, result in evaluation.rows.items()
                },
            }
