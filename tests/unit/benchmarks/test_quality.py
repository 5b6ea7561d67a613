"""Ways to search are judged on a real collection, and every question is asked once in each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from resrank.benchmarks.quality import HYBRID, ask, quality_study
from resrank.benchmarks.study import PlotKind
from resrank.evaluation.collection import JudgedCollection

COLLECTION = Path(__file__).parents[3] / "examples" / "hotpotqa-mini"
QUESTIONS = 20


@pytest.fixture(scope="module")
def judged() -> JudgedCollection:
    return JudgedCollection.load(COLLECTION, "test", questions=QUESTIONS)


def test_every_way_is_judged_on_all_questions_and_compared_with_hybrid(judged: JudgedCollection) -> None:
    gold = {text: [p for p, grade in judged.qrels[id_].items() if grade] for id_, text in judged.queries.items()}
    asked: Counter[str] = Counter()

    def found(text: str) -> list[str]:
        asked[text] += 1
        return gold[text]

    one_of_two = {text: ids[:1] for text, ids in gold.items()}
    study = quality_study(
        judged, ask({"all": found, HYBRID: one_of_two.__getitem__, "none": lambda _: []}, judged), ["a note"]
    )
    assert set(asked) == set(judged.queries.values())
    assert asked.total() == QUESTIONS + 3  # once each, and three to warm up
    rows = {row[0]: row for row in study.rows}
    half = 1 / (1 + 1 / np.log2(3))  # nDCG@10 with the first of two relevant passages alone
    assert rows["all"][1:4] == ("1.0000", "1.0000 to 1.0000", f"{1 - half:+.4f} ({1 - half:+.4f} to {1 - half:+.4f})")
    assert rows[HYBRID][1:4] == (f"{half:.4f}", f"{half:.4f} to {half:.4f}", None)
    assert rows["none"][1] == "0.0000"
    assert all(isinstance(row[4], float) and row[4] > 0 for row in study.rows)


def test_the_picture_has_a_point_of_each_way_with_its_interval(judged: JudgedCollection) -> None:
    gold = {text: list(judged.qrels[id_]) for id_, text in judged.queries.items()}
    every_other = {text: ids if number % 2 else [] for number, (text, ids) in enumerate(gold.items())}
    study = quality_study(judged, ask({HYBRID: every_other.__getitem__}, judged), [])
    (plot,) = study.plots
    (series,) = plot.series
    assert (plot.kind, plot.log_x, series.label) == (PlotKind.POINTS, True, HYBRID)
    assert series.y == (0.5,)
    # Of 20 coins the mean's standard error is .112, and 95 % lie within twice that.
    assert series.low[0] == pytest.approx(0.5 - 0.22, abs=0.05)
    assert series.high[0] == pytest.approx(0.5 + 0.22, abs=0.05)
