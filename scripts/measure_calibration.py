"""How far a checkpoint's calibration carries: its maps on judged questions that it was not fitted to.

    python scripts/measure_calibration.py checkpoint ../data/nfcorpus:test ../data/cranfield --indexes var/calibration

Candidates and scores are made as ``resrank calibrate`` makes them. Of each collection: the share of relevant
candidates, the mean relevance told, and log loss, Brier score and ECE of the checkpoint's map and of none.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from resrank.core.calibration import UNCALIBRATED
from resrank.core.calibration_file import read_calibration_file
from resrank.evaluation.calibrate import CalibrationRequest, judge
from resrank.evaluation.calibration import figures
from resrank.evaluation.names import Through
from resrank.stack.cli.calibrate import named_split
from resrank.stack.evaluated_checkpoint import EvaluatedCheckpoint
from resrank.stack.index_sidecar import sidecar_of


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("collections", nargs="+", metavar="COLLECTION[:SPLIT]")
    parser.add_argument("--indexes", type=Path)
    options = parser.parse_args()
    file = read_calibration_file(options.checkpoint)
    if file is None:
        parser.error(f"{options.checkpoint} has no calibration")
    request = CalibrationRequest(
        tuple(map(named_split, options.collections)),
        file.fit.depth,
        file.fit.relevant_from,
        file.fit.folds,
        file.fit.seed,
        options.indexes,
    )
    evaluated = EvaluatedCheckpoint(Through.TORCH, options.checkpoint, None, None)
    with tempfile.TemporaryDirectory() as scratch:
        judged = judge(
            request,
            evaluated.open,
            partial(sidecar_of, to_fill=True),
            Path(scratch),
            notify=lambda line: print(line, flush=True),
            progress=lambda *_: None,
        )
    print("| collection | questions | scores | relevant | told | map | log loss | Brier | ECE |")
    print("|---|---|---|---|---|---|---|---|---|")
    maps = {"reranker": file.calibration.reranker, "with_words": file.calibration.with_words}
    for one in judged:
        for kind, fitted in maps.items():
            scores = one.scores(kind)
            for relevance in (fitted, UNCALIBRATED):
                told = relevance.of(scores.scores)
                found = figures(told, scores)
                name, questions = f"{one.collection.name} {one.collection.split}", scores.questions[-1] + 1
                print(
                    f"| {name} | {questions} | {kind} | {scores.relevant.mean():.4f} | {told.mean():.4f} | "
                    f"{relevance.name} | {found.log_loss:.4f} | {found.brier:.4f} | {found.ece:.4f} |"
                )


if __name__ == "__main__":
    main()
