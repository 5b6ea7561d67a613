"""The curves of a run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

from resrank.core.errors import TrainingError
from resrank.training.curves import draw_curves


def record(kind: str, stage: str, total_step: int, **values: float) -> str:
    return json.dumps({"kind": kind, "stage": stage, "step": 1, "total_step": total_step, "time": 0.0, **values})


LOG = [
    record("development", "start", 0, retrieved=0.5, shuffled=0.5, dense=0.5, gain=0.0),
    record("training", "reranker_alignment", 10, loss=2.0, ranking=1.0, gate=0.1),
    record("training", "joint", 20, loss=1.5, ranking=0.5, contrastive=0.5, gate=0.2),
    record("development", "joint", 20, retrieved=0.6, shuffled=0.55, dense=0.51, gain=0.05),
]


def test_losses_scores_and_gate_are_drawn_where_the_log_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[tuple[float, float]]] = {}
    original = Axes.plot

    def plot(self: Axes, x: object, y: object, *arguments: object, **options: object) -> object:
        drawn[str(options.get("label", "gate"))] = list(zip(x, y, strict=True))  # type: ignore[call-overload]
        return original(self, x, y, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    (tmp_path / "log.jsonl").write_text("\n".join(LOG) + "\n" + '{"cut off')
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")

    assert drawn == {
        "reranker_alignment: sum": [(10, 2.0)],
        "reranker_alignment: L_rank": [(10, 1.0)],
        "joint: sum": [(20, 1.5)],
        "joint: L_rank": [(20, 0.5)],
        "joint: L_enc": [(20, 0.5)],
        "retrieved order": [(0, 0.5), (20, 0.6)],
        "shuffled": [(0, 0.5), (20, 0.55)],
        "dense, encoder as it stands": [(0, 0.5), (20, 0.51)],
        "gate": [(10, 0.1), (20, 0.2)],
    }
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape[1] == 1100
    assert np.ptp(image[..., :3]) > 0.9
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


def test_a_damaged_log_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f"{LOG[0]}\nnot json\n{LOG[1]}\n")
    with pytest.raises(TrainingError, match=r"log.jsonl, line 2: not a record of a run's log"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
