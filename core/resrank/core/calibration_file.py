"""``calibration.json`` beside a checkpoint: what its scores mean, and how that was found out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from resrank.core.calibration import Calibration
from resrank.core.durability import replace_file
from resrank.core.errors import CheckpointError
from resrank.core.names import CALIBRATION_FILE
from resrank.core.strict_json import Sha256, StrictModel, read_fields


class HeldOut(StrictModel):
    """How well a map tells the relevance of questions that it was not fitted to.

    Attributes:
        log_loss: Mean of -log of the relevance given to what is true; what the maps are chosen by.
        brier: Mean squared difference of relevance and judgement.
        ece: Expected calibration error: in how far the relevance given and the share of relevant passages differ.
    """

    log_loss: float
    brier: float
    ece: float


class JudgedData(StrictModel):
    """One collection that was fitted to.

    Attributes:
        name: The folder's.
        split: Which judgements.
        questions: With candidates.
        passages: Candidates of all of them together.
        relevant: Of these; what is not judged counts as not relevant.
        reranker: How well the map of the reranker's scores does on it, held out.
        with_words: The same of scores with the words' share.
    """

    name: str
    split: str
    questions: int
    passages: int
    relevant: int
    reranker: HeldOut
    with_words: HeldOut


class CalibrationFit(StrictModel):
    """How it was found out.

    Attributes:
        collections: Each counts alike, however many questions it has.
        candidates: How they were found.
        depth: Candidates of a question at most.
        relevant_from: Least grade of a relevant passage.
        folds: Parts that the questions were divided into, each once held out.
        seed: Of that division.
        reranker: Of the reranker's scores alone: each map that was tried to its figures.
        with_words: Of scores with the words' share.
        resrank: Version of ResRank.
    """

    collections: tuple[JudgedData, ...]
    candidates: str
    depth: int
    relevant_from: int
    folds: int
    seed: int
    reranker: Mapping[str, HeldOut]
    with_words: Mapping[str, HeldOut]
    resrank: str


class CalibrationFile(StrictModel):
    """The file, validated as a whole.

    Attributes:
        checkpoint_sha256: Digest of the full checkpoint whose scores these are.
        calibration: The maps.
        fit: How they were found out.
    """

    schema_version: Literal[1] = 1
    checkpoint_sha256: Sha256
    calibration: Calibration
    fit: CalibrationFit


def read_calibration_file(folder: Path) -> CalibrationFile | None:
    """Reads a checkpoint's calibration.

    Args:
        folder: The checkpoint's, full or adapter.

    Returns:
        None where it has none.

    Raises:
        CheckpointError: The file is not as ``resrank calibrate`` writes it; the message names the field.
    """
    try:
        return read_fields(CalibrationFile, folder / CALIBRATION_FILE)
    except FileNotFoundError:
        return None


def calibration_of(folder: Path, checkpoint_sha256: str) -> Calibration | None:
    """What the scores of a full checkpoint mean; None where nobody fitted that.

    Args:
        folder: The checkpoint's.
        checkpoint_sha256: Its digest.

    Raises:
        CheckpointError: The file is wrong, or another checkpoint's.
    """
    read = read_calibration_file(folder)
    if read is None:
        return None
    if read.checkpoint_sha256 != checkpoint_sha256:
        raise CheckpointError(
            f"{folder / CALIBRATION_FILE}: fitted to checkpoint {read.checkpoint_sha256}, but this one is "
            f"{checkpoint_sha256}: remove the file, or fit again with resrank calibrate"
        )
    return read.calibration


def write_calibration_file(file: CalibrationFile, folder: Path) -> None:
    """Writes ``calibration.json`` into a checkpoint folder.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        replace_file(folder / CALIBRATION_FILE, file.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder / CALIBRATION_FILE}: cannot be written: {error.strerror}") from error
