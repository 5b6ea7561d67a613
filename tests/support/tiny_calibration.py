"""A calibration of made-up maps and figures."""

from __future__ import annotations

from resrank.core.calibration import Calibration, Isotonic, Platt
from resrank.core.calibration_file import CalibrationFile, CalibrationFit, HeldOut, JudgedData

CALIBRATION = Calibration(Platt(8.25, -3.5), Isotonic((-0.25, 0.5, 1.0), (0.0, 0.25, 0.875)), 0.3)


def calibration_file(checkpoint_sha256: str) -> CalibrationFile:
    """The file of one checkpoint."""
    held_out = HeldOut(log_loss=0.5, brier=0.25, ece=0.125)
    data = JudgedData(
        name="tiny", split="dev", questions=9, passages=90, relevant=18, reranker=held_out, with_words=held_out
    )
    return CalibrationFile(
        checkpoint_sha256=checkpoint_sha256,
        calibration=CALIBRATION,
        fit=CalibrationFit(
            collections=(data,),
            candidates="hybrid",
            depth=10,
            relevant_from=1,
            folds=5,
            seed=0,
            reranker={"platt": held_out},
            with_words={"isotonic": held_out},
            resrank="0.1.0",
        ),
    )
