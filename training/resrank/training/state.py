"""A run's state on disk: everything from which it goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from resrank.core.durability import flush, flush_tree
from resrank.core.errors import CheckpointError, TrainingError
from resrank.training.config import TrainConfig
from resrank.training.development import DevelopmentScore
from resrank.training.lists import TrainingPassage
from resrank.training.sources import TrainingData

_FIELDS_FILE = "state.json"
_TENSORS_FILE = "tensors.safetensors"
_PREFIX = "step-"
# What may differ between a run and its continuation: none of it changes what is computed from what.
_FREE_FIELDS = {"output": True, "threads": True, "checkpoints": True, "logging": True}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(_Record):
    """What a run computes from; a state of another origin is not gone on from.

    Attributes:
        config: The run's config.
        weights: Digests of the start checkpoint: of all its fields, and of its weights, by file or folder.
        data: Digest of all training and development lists.
        processes: How many processes shared the lists of a step.
    """

    config: TrainConfig
    weights: dict[str, str | None]
    data: str
    processes: int


class Best(_Record):
    """The best score so far.

    Attributes:
        stage: Where it was found.
        step: Steps of that stage done.
        total_step: Steps of all stages done.
        score: The score.
        gain: What it has gained over dense-start, as ``development.choose`` says.
    """

    stage: str
    step: int
    total_step: int
    score: DevelopmentScore
    gain: float


class Progress(_Record):
    """Where a run stands.

    Attributes:
        stage: The stage that runs.
        step: Its steps done.
        total_step: Steps of all stages done.
        position: Of the next list in the stream.
        seconds: Spent so far.
        dense_start: The score before the first step, whose ``dense`` is the encoder's own order; None before that.
        best: None before the first evaluation of a trained model.
    """

    stage: str
    step: int
    total_step: int
    position: int
    seconds: float
    dense_start: DevelopmentScore | None
    best: Best | None

    @property
    def kept(self) -> Best | None:
        """What the run's checkpoint is: the best, if it is above dense-start."""
        return self.best if self.best is not None and self.best.gain > 0 else None


class _Fields(_Record):
    origin: Origin
    progress: Progress


class StateFolder:
    """The last complete states of a run, each in a folder of its own.

    A state is written aside, flushed to the disk, and renamed: a process killed at any time, or a disk that fills up,
    leaves the states before it as they were.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Takes the folder, which need not exist yet.

        Args:
            folder: ``state/`` of a run.
            keep: How many states stay.
        """
        self._folder = folder
        self._keep = keep

    def write(self, origin: Origin, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Adds a state and removes the oldest beyond ``keep``.

        Args:
            origin: What the run computes from.
            progress: Where it stands.
            tensors: Whole, on the CPU.

        Raises:
            OSError: The disk is full or cannot be written; nothing that was there is touched.
        """
        final = self._folder / f"{_PREFIX}{progress.total_step:08d}"
        partial = self._folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fields = _Fields(origin=origin, progress=progress)
            (partial / _FIELDS_FILE).write_text(fields.model_dump_json(indent=2) + "\n", encoding="utf-8")
            try:
                save_file(dict(tensors), partial / _TENSORS_FILE)
            except SafetensorError as error:  # its word for every failed write
                raise OSError(str(error)) from error
            flush_tree(partial)
            partial.rename(final)
            flush(self._folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    @property
    def last(self) -> Path | None:
        """The newest state, or None."""
        complete = self._complete()
        return complete[-1] if complete else None

    def read(self, origin: Origin) -> tuple[Progress, dict[str, Tensor]]:
        """Reads the newest state.

        Args:
            origin: What the run that is to go on computes from.

        Returns:
            Where it stands, and its tensors.

        Raises:
            TrainingError: There is no state, or it is of another config, other weights or other data.
            CheckpointError: It is damaged.
        """
        newest = self.last
        if newest is None:
            raise TrainingError(f"{self._folder}: holds no state to resume from")
        try:
            fields = _Fields.model_validate_json((newest / _FIELDS_FILE).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{newest / _FIELDS_FILE}: not a readable state ({reason}): remove {newest}"
            ) from None
        _refuse_another(newest, fields.origin, origin)
        try:
            return fields.progress, load_file(newest / _TENSORS_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{newest / _TENSORS_FILE}: not a readable state ({error}): remove {newest}"
            ) from None

    def _complete(self) -> list[Path]:
        """Complete states, oldest first."""
        return sorted(path for path in self._folder.glob(f"{_PREFIX}*") if path.is_dir())


def data_sha256(data: TrainingData) -> str:
    """Digest of every training and development list, in order: of what a position in the stream means.

    Args:
        data: What a run reads.
    """
    digest = hashlib.sha256()
    numbers: dict[TrainingPassage, int] = {}
    digest.update(repr([(source.name, source.weight, len(source.lists)) for source in data.train]).encode())
    digest.update(repr([(part.name, len(part.lists)) for part in data.development]).encode())
    for lists in (*(source.lists for source in data.train), *(part.lists for part in data.development)):
        for candidates in lists:
            digest.update(f"{candidates.id}\0{candidates.query}\0{candidates.kind}\0{candidates.labels}".encode())
            digest.update((candidates.query_vector or b"") + candidates.wording.encode())
            for passage in candidates.passages:
                if passage in numbers:  # a text that stands in many lists is read once
                    digest.update(f"\0{numbers[passage]}".encode())
                else:
                    numbers[passage] = len(numbers)
                    digest.update(f"\0\0{passage.title}\0{passage.text}".encode())
    return digest.hexdigest()


def _refuse_another(folder: Path, written: Origin, wanted: Origin) -> None:
    """Names the first difference between what a state was computed from and what is to go on."""
    for name, digest in written.weights.items():
        if wanted.weights.get(name) != digest:
            raise TrainingError(
                f"{folder}: its {name} was another at the start (sha256 {digest}, this run's is "
                f"{wanted.weights.get(name)})"
            )
    before, now = (_flat(origin.config.model_dump(mode="json", exclude=_FREE_FIELDS)) for origin in (written, wanted))
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field):
            raise TrainingError(
                f"{folder}: is of another config: {field} was {before.get(field)}, is {now.get(field)}; resume with "
                "the same one, or start again with --force"
            )
    if written.data != wanted.data:
        raise TrainingError(
            f"{folder}: was trained on other data: a file in data.train or data.development has changed"
        )
    if written.processes != wanted.processes:
        raise TrainingError(f"{folder}: is of {written.processes} processes, these are {wanted.processes}")


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Nested fields under dotted names."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = {str(number): item for number, item in enumerate(value)}.items()
    else:
        return {path: value}
    return {name: leaf for key, child in children for name, leaf in _flat(child, f"{path}.{key}".lstrip(".")).items()}
