"""Runs the stages of a config: steps, development scores, states to resume from, and the best checkpoint."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from resrank.core.checkpoint import validate_folder
from resrank.core.errors import TrainingError
from resrank.model.modeling import ResRankModel
from resrank.training.batches import Tokenizers
from resrank.training.config import TrainConfig, check_fit
from resrank.training.curves import draw_curves
from resrank.training.development import Development, DevelopmentScore
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.lists import CandidateList
from resrank.training.logs import DEVELOPMENT, TRAINING, Meter, RunLog
from resrank.training.optimization import StageOptimizer
from resrank.training.processes import Processes, whole
from resrank.training.progress import RunProgress, described
from resrank.training.run_folder import Opening, RunFolder
from resrank.training.sampling import CandidateSampler
from resrank.training.sources import Source, TrainingData, encoder_and_reranker_lists
from resrank.training.stage_config import (
    EncoderAlignmentConfig,
    GroupName,
    JointConfig,
    Mode,
    RerankerAlignmentConfig,
    StageConfig,
)
from resrank.training.stages.encoder_alignment import EncoderAlignment
from resrank.training.stages.joint import Joint
from resrank.training.stages.reranker_alignment import RerankerAlignment
from resrank.training.stages.stage import Stage
from resrank.training.start_encoder import vectors_identity
from resrank.training.state import Best, Origin, Progress, StateFolder, data_sha256
from resrank.training.stream import ListStream
from resrank.training.trainable import TrainableResRank
from resrank.training.vector_cache import VectorCache

_START = "start"  # what logs call the time before the first stage
_WEIGHTS, _MOMENTS, _RANDOM = "weights/", "moments/", "random/"  # parts of a state's tensors
_LISTS_NAMED = 8  # of those that a message about a step names


def divided(config: TrainConfig, sources: tuple[Source, ...]) -> dict[str, tuple[Source, ...]]:
    """What each stage of a run is trained on: the encoder's own stage and those of the reranker share no question.

    Args:
        config: The run; ``data.encoder_share`` and its stages decide.
        sources: All training sources.

    Returns:
        The sources of each stage that runs, by its name.

    Raises:
        InvalidInputError: A source has too few lists to be divided.
    """
    stages, share = config.active_stages, config.data.encoder_share
    if share is None or EncoderAlignment.name not in stages or len(stages) == 1:
        return dict.fromkeys(stages, sources)
    of_encoder, of_reranker = encoder_and_reranker_lists(sources, share)
    return {name: of_encoder if name == EncoderAlignment.name else of_reranker for name in stages}


class CheckpointWriter(Protocol):
    """Writes a trained model as a checkpoint that can be served."""

    def write(self, model: TrainableResRank, progress: Progress, out: Path) -> None:
        """Makes the folder.

        Args:
            model: What was trained, whole.
            progress: Where the run stands; its ``best`` is this model's score.
            out: Does not exist yet.
        """


class Trainer:
    """One run. Every process of it has its own trainer; the first one alone writes."""

    def __init__(
        self,
        config: TrainConfig,
        start: Path,
        data: TrainingData,
        folder: RunFolder,
        writer: CheckpointWriter,
        processes: Processes,
        progress: RunProgress,
        vectors: Path | None = None,
    ) -> None:
        """Checks what can be checked without loading the weights; writes nothing.

        Args:
            config: The run.
            start: The full checkpoint that it starts from.
            data: What it reads.
            folder: Where it writes.
            writer: Writes the best checkpoint.
            processes: Those that share the work.
            progress: Where it is shown how the run goes.
            vectors: Folder that remembers vectors of encoders that are not trained; None for none.

        Raises:
            CheckpointError: ``start`` is not a valid checkpoint.
            InvalidInputError: A field of the config does not fit the checkpoint, the data or the processes.
        """
        spec = validate_folder(start)
        check_fit(config, spec, processes=processes.count)
        self._config = config
        self._start = start
        self._data = data
        self._folder = folder
        self._writer = writer
        self._processes = processes
        self._progress = progress
        self._tokenizers = Tokenizers.from_checkpoint(start, spec)
        # Vectors of an encoder that is not trained are those of every other run with it.
        frozen = config.model.encoder.mode is Mode.FROZEN
        self._cache = VectorCache(vectors, vectors_identity(spec, config.model)) if vectors and frozen else None
        self._development = Development(data.development, config.development, self._tokenizers, self._cache)
        sampler, sources = CandidateSampler(config.data.candidates), divided(config, data.train)
        self._sources = sources
        self._streams = {name: ListStream(part, sampler, config.seed) for name, part in sources.items()}
        self._states = StateFolder(folder.state, config.checkpoints.keep)
        self._origin = Origin(
            config=config,
            weights={
                "encoder": spec.encoder.sha256,
                "reranker": spec.reranker.sha256,
                "projectors": spec.fusion.projectors_sha256,
                "checkpoint": spec.digest(),  # of slots, map and norms too, of which no weight tells
            },
            data=data_sha256(data),
            processes=processes.count,
        )
        self._model: TrainableResRank
        self._log: RunLog | None = None
        self._done = Progress(stage=_START, step=0, total_step=0, position=0, seconds=0.0, dense_start=None, best=None)
        self._clock = time.monotonic()

    def run(self, opening: Opening) -> Progress:
        """Trains to the end.

        Args:
            opening: What to do with a run that was in the folder before.

        Returns:
            How the run ended.

        Raises:
            TrainingError: The run cannot start or go on, a loss was not finite, the disk is full, or nothing was
                worth keeping. What the message says is on the disk can be relied on.
            InvalidInputError: A stage has nothing to train.
        """
        try:
            return self._run(opening)
        except OSError as error:
            where = error.filename or self._folder.path
            raise TrainingError(
                f"{where}: cannot be written ({error.strerror or error}); {self._what_stays()}"
            ) from error
        except KeyboardInterrupt:
            self._progress.note(f"interrupted: {self._what_stays()}")
            raise

    def _run(self, opening: Opening) -> Progress:
        saved: dict[str, Tensor] = {}
        resumed = opening is Opening.RESUME
        if resumed:
            self._folder.check(opening)
            self._done, saved = self._states.read(self._origin)
        self._model = self._build()
        if resumed:
            self._model.load_trained_state(_part(saved, _WEIGHTS))
        self._processes.place(self._model)
        if self._processes.first:
            self._folder.open(opening, self._config)
        self._processes.wait()
        self._processes.seed(self._config.seed)
        self._clock = time.monotonic() - (self._done.seconds if resumed else 0.0)
        with contextlib.ExitStack() as stack:
            if self._processes.first:
                after = self._done.total_step if resumed else None
                self._log = stack.enter_context(RunLog(self._folder.log, self._folder.tensorboard, after=after))
                stack.callback(self._draw)
            if resumed:
                self._processes.restore_random_state(_part(saved, f"{_RANDOM}{self._processes.rank}/"))
            else:
                self._evaluate_start()
            names = list(self._config.active_stages)
            for name in names[names.index(self._done.stage) if resumed else 0 :]:
                self._run_stage(name, saved if name == self._done.stage else {})
        return self._finish()

    def _run_stage(self, name: str, saved: Mapping[str, Tensor]) -> None:
        config = self._config.active_stages[name]
        first_step = self._done.step if saved else 0
        if first_step == config.steps:
            return
        self._done = self._done.model_copy(update={"stage": name, "step": first_step})
        self._progress.stage(name, config.steps, done=first_step)
        stage = self._make_stage(name, config)
        parameters = {parameter: full_name for full_name, parameter in self._model.named_parameters()}
        optimizer = StageOptimizer(stage.groups, config, parameters)
        if saved:
            optimizer.load_moments(_part(saved, _MOMENTS))
        meter = Meter()
        for step in range(first_step, config.steps):
            with meter.timed():
                meter.add(self._step(stage, optimizer, step))
            done, last = step + 1, step + 1 == config.steps
            self._done = self._done.model_copy(
                update={
                    "step": done,
                    "total_step": self._done.total_step + 1,
                    "position": self._done.position + config.lists_per_step,
                    "seconds": time.monotonic() - self._clock,
                }
            )
            self._progress.step(done)
            if done % self._config.logging.every_steps == 0 or last:
                self._report(meter, config, optimizer.learning_rates(step))
            kept = False
            if done % self._config.development.every_steps == 0 or last:
                kept = self._evaluate(encoder_changed=self._model.trains(GroupName.ENCODER))
            # With every checkpoint, too: one that is resumed from knows which is in the folder.
            if kept or done % self._config.checkpoints.every_steps == 0 or last:
                self._save(optimizer)

    def _make_stage(self, name: str, config: StageConfig) -> Stage:
        match config:
            case EncoderAlignmentConfig():
                return EncoderAlignment(config, self._model, self._tokenizers, chunk_count=self._processes.largest)
            case JointConfig():
                return Joint(config, self._model, self._tokenizers, chunk_count=self._processes.largest)
            case RerankerAlignmentConfig():
                return self._reranker_alignment(config)
        raise TypeError(f"no stage for {name}")

    def _reranker_alignment(self, config: RerankerAlignmentConfig) -> Stage:
        lists = [candidates for source in self._sources[RerankerAlignment.name] for candidates in source.lists]
        with self._progress.encoding("encoding the training lists") as encoding:
            table = EmbeddingTable.build(self._model, self._tokenizers, lists, progress=encoding, cache=self._cache)
        return RerankerAlignment(config, self._model, self._tokenizers, table)

    def _step(self, stage: Stage, optimizer: StageOptimizer, step: int) -> dict[str, float]:
        """One optimizer step.

        Returns:
            The loss and its parts, this process's means, and each group's gradient norm.
        """
        config, processes = stage.config, self._processes
        per_pass = config.lists_per_step // config.accumulate
        means: dict[str, float] = defaultdict(float)
        seen: list[CandidateList] = []

        def backward(loss: Tensor) -> None:
            (loss / config.accumulate).backward()  # type: ignore[no-untyped-call]

        for number in range(config.accumulate):
            first = self._done.position + number * per_pass + processes.rank
            last = self._done.position + (number + 1) * per_pass
            lists = [self._streams[stage.name].at(position) for position in range(first, last, processes.count)]
            seen += lists
            for name, part in stage.step(lists, backward).items():
                means[name] += part / config.accumulate
        self._refuse_non_finite("loss", means, seen, step)
        processes.average_gradients(optimizer.parameters)
        norms = optimizer.clip()
        self._refuse_non_finite("gradient", norms, seen, step)
        optimizer.step(step)
        return {**means, **{f"gradient_norm/{name}": norm for name, norm in norms.items()}}

    def _refuse_non_finite(self, what: str, values: Mapping[str, float], lists: list[CandidateList], step: int) -> None:
        """Stops all processes when one of them has met a NaN or an infinity; the weights are still those before."""
        wrong = next((f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)), None)
        if not self._processes.largest(int(wrong is not None)):
            return
        found = f"{wrong} on lists {_named(lists)}" if wrong else ""
        told = "; ".join(filter(None, self._processes.gather(found)))
        raise TrainingError(
            f"{self._done.stage}, step {step + 1}: the {what} is not finite: {told}; {self._what_stays()}"
        )

    def _report(self, meter: Meter, config: StageConfig, rates: Mapping[str, float]) -> None:
        """Logs the means since the last report."""
        means = self._processes.mean(meter.means())
        speed = config.lists_per_step * meter.steps / meter.seconds
        values = {
            **means,
            **{f"learning_rate/{name}": rate for name, rate in rates.items()},
            "gate": self._model.gate,
            "lists_per_s": speed,
        }
        self._write_log(TRAINING, values)
        self._progress.losses(self._done.step, means["loss"], speed)
        meter.clear()

    def _evaluate_start(self) -> None:
        """Measures what training starts from; the encoder's own order is what a checkpoint has to be better than."""
        with self._progress.encoding("encoding the development lists") as encoding:
            score = self._development.evaluate(self._model, encoder_changed=True, progress=encoding)
        score = self._processes.gather(score)[0]
        self._done = self._done.model_copy(update={"dense_start": score})
        for part in score.sets:
            self._progress.note(f"{part.name}: {part.lists} development lists, dense-start nDCG@10 {part.dense:.4f}")
        self._write_log(DEVELOPMENT, {**score.values, "gain": self._gain(score)})
        self._progress.development(0, score, kept=False)

    def _evaluate(self, *, encoder_changed: bool) -> bool:
        """Scores the model as it stands, and keeps it if it is the best so far and better than dense-start."""
        with self._progress.encoding("encoding the development lists") as encoding:
            found = self._development.evaluate(self._model, encoder_changed=encoder_changed, progress=encoding)
        score = self._processes.gather(found)[0]  # all must decide alike
        done = self._done
        gain = self._gain(score)
        better = done.best is None or gain > done.best.gain
        if better:
            best = Best(stage=done.stage, step=done.step, total_step=done.total_step, score=score, gain=gain)
            done = done.model_copy(update={"best": best})
        kept = better and done.kept is not None
        if kept:
            self._keep(done)
        self._done = done
        self._write_log(DEVELOPMENT, {**score.values, "gain": gain})
        self._progress.development(done.step, score, kept=kept)
        return kept

    def _gain(self, score: DevelopmentScore) -> float:
        assert self._done.dense_start is not None  # the first evaluation
        return score.gain(self._done.dense_start, self._config.development.choose)

    def _keep(self, progress: Progress) -> None:
        """Makes the model as it stands the run's checkpoint."""
        model = self._model
        if self._processes.sharded:
            weights = whole(model.trained_state())
            if self._processes.first:
                model = self._build()
                model.load_trained_state(weights)
        if self._processes.first:
            self._folder.replace_checkpoint(lambda out: self._writer.write(model, progress, out))
        self._processes.wait()

    def _save(self, optimizer: StageOptimizer) -> None:
        """Writes the state from which the run goes on after this step."""
        tensors = {f"{_WEIGHTS}{name}": value for name, value in whole(self._model.trained_state()).items()}
        tensors |= {f"{_MOMENTS}{name}": value for name, value in whole(optimizer.moments()).items()}
        for rank, state in enumerate(self._processes.gather(self._processes.random_state())):
            tensors |= {f"{_RANDOM}{rank}/{kind}": value for kind, value in state.items()}
        if self._processes.first:
            self._states.write(self._origin, self._done, tensors)
        self._processes.wait()

    def _finish(self) -> Progress:
        done, best, kept = self._done, self._done.best, self._done.kept
        if self._processes.first:
            result: dict[str, Any] = done.model_dump(mode="json", exclude={"stage", "step"})
            self._folder.finish({**result, "kept": kept is not None})
        self._processes.wait()
        if kept is None:
            assert best is not None  # every stage ends with an evaluation
            raise TrainingError(
                f"nothing was kept: the best, after step {best.step} of {best.stage}, gains {best.gain:+.4f} over "
                f"dense-start (development nDCG@10, the worse of both orders): {described(best.score)}; "
                f"{self._folder.state} holds the last step"
            )
        return done

    def _what_stays(self) -> str:
        """What is on the disk, for the message of a run that has to stop."""
        newest, kept = self._states.last, self._done.kept
        checkpoint = (
            f"{self._folder.checkpoint} is the best so far ({kept.gain:+.4f} over dense-start)"
            if kept
            else "no checkpoint was kept yet"
        )
        state = f"--resume goes on from {newest}" if newest else "there is no state to resume from"
        return f"{checkpoint}; {state}"

    def _build(self) -> TrainableResRank:
        """The model before training, the same in every process."""
        cuda = [self._processes.device] if self._processes.device.type == "cuda" else []
        # The dropout of a run that goes on is left alone: a sharded model is built once more for every checkpoint.
        with torch.random.fork_rng(cuda):
            torch.manual_seed(self._config.seed)
            return TrainableResRank(ResRankModel.from_checkpoint(self._start, verify_hashes=False), self._config.model)

    def _write_log(self, kind: str, values: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.write(kind, self._done.stage, self._done.step, self._done.total_step, values)

    def _draw(self) -> None:
        # However the run ends, and never instead of the error that ends it.
        with contextlib.suppress(OSError, TrainingError):
            draw_curves(self._folder.log, self._folder.curves)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _named(lists: list[CandidateList]) -> str:
    names = [f"{candidates.source}:{candidates.id}" for candidates in lists[:_LISTS_NAMED]]
    return ", ".join(names) + (f" and {len(lists) - _LISTS_NAMED} more" if len(lists) > _LISTS_NAMED else "")
