"""A training run from its config to its checkpoint: gives the trainer what lives in other parts."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from resrank.core.adapter import validate_adapter, was_trained
from resrank.core.checkpoint import CheckpointSpec, is_adapter, validate_folder, write_spec
from resrank.core.errors import InvalidInputError
from resrank.core.names import COMPACT
from resrank.core.progress import Notify
from resrank.export.adapters import AdaptedBackbone, BackboneAdapter, WholeWeights, merge_adapter, write_adapter
from resrank.export.backbone_files import source_name
from resrank.export.backbones import PACKAGED_BACKBONES, materialize
from resrank.export.cache import cache_folder
from resrank.export.compact import CompactDecoder
from resrank.export.initialize import InitOptions, initialize
from resrank.export.model_card import DevelopmentFigures, RunCard, run_card
from resrank.export.shipped_checkpoints import DEFAULT, DIGESTS
from resrank.export.trained_checkpoint import write_trained
from resrank.export.written_aside import written_aside
from resrank.model.quiet import quiet_transformers
from resrank.stack.training_index import FlatIndexes, passages_at
from resrank.training.config import StartFromBackbones, StartFromCheckpoint, TrainConfig, check_fit
from resrank.training.mining import Retriever
from resrank.training.precision import settled
from resrank.training.processes import Processes
from resrank.training.progress import RunProgress
from resrank.training.run_folder import Opening, RunFolder
from resrank.training.sources import TrainingData, load_data
from resrank.training.stage_config import Mode
from resrank.training.start_encoder import StartEncoder, vectors_identity
from resrank.training.state import Progress
from resrank.training.trainable import Role, TrainableResRank
from resrank.training.trainer import Trainer
from resrank.training.vector_cache import VectorCache


def train(config: TrainConfig, opening: Opening, processes: Processes, progress: RunProgress) -> Progress:
    """Trains what a config says.

    Args:
        config: The run.
        opening: What to do with a run that was in the folder before.
        processes: Those that share the work.
        progress: Where it is shown how the run goes.

    Returns:
        How the run ended.

    Raises:
        ResRankError: The start, the data or the run itself failed, or nothing was worth keeping.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = RunFolder(config.output)
    folder.check(opening)
    processes.wait()  # nobody writes before all have looked
    config = config.model_copy(update={"model": settled(config.model, processes.device)})
    with folder.held() if processes.first else nullcontext(), quiet_transformers(), progress:
        with processes.first_goes_ahead():
            start = prepare_start(
                config, folder, renew=processes.first and opening is not Opening.RESUME, notify=progress.note
            )
            # Told before candidates are mined, which may take hours.
            spec = validate_folder(start, verify_hashes=False)
            check_fit(config, spec, processes=processes.count)
            vectors = cache_folder() / "vectors"
            known = VectorCache(vectors, vectors_identity(spec, config.model))
            encoder = StartEncoder(start, config.model, processes.device, progress.encoding, known)
            # The other processes read what the first one retrieved.
            retriever = Retriever(encoder, FlatIndexes(), cache_folder() / "mined")
            data = load_data(config.data, retriever, progress.note, passages_at)
            del encoder, retriever
        adapter = folder.start_adapter if start == folder.start and folder.start_adapter.is_dir() else None
        writer = RunCheckpointWriter(config, start, data, adapter)
        return Trainer(config, start, data, folder, writer, processes, progress, vectors).run(opening)


def prepare_start(config: TrainConfig, folder: RunFolder, *, renew: bool, notify: Notify) -> Path:
    """Gives the full checkpoint that a run starts from.

    Args:
        config: The run.
        folder: Where one is made, if it is not there.
        renew: Whether one that an earlier run made is made anew.
        notify: Told about what takes seconds.

    Returns:
        A folder not to be changed.

    Raises:
        CheckpointError: It cannot be made.
        InvalidInputError: It is given, and the run would replace it.
    """
    if isinstance(config.start, StartFromCheckpoint):
        if config.start.checkpoint.resolve().is_relative_to(folder.path.resolve()):
            raise InvalidInputError(
                "start.checkpoint", f"{config.start.checkpoint} lies in output, {folder.path}, which the run replaces"
            )
        if folder.path.resolve().is_relative_to(config.start.checkpoint.resolve()):
            raise InvalidInputError(
                "output", f"{folder.path} lies in start.checkpoint, {config.start.checkpoint}, which stays as it is"
            )
        if not is_adapter(config.start.checkpoint):
            return config.start.checkpoint
        if _wanted(folder, renew=renew):
            with written_aside(folder.start_adapter) as partial:
                shutil.copytree(config.start.checkpoint, partial, dirs_exist_ok=True)
            merge_adapter(folder.start_adapter, folder.start, notify=notify)
    elif _wanted(folder, renew=renew):
        _initialize(config, config.start, folder.start, notify)
    return folder.start


class RunCheckpointWriter:
    """Writes a run's checkpoint; implements :class:`resrank.training.trainer.CheckpointWriter`.

    An adapter checkpoint where every backbone was frozen or trained by LoRA, or is a decoder that reads slots alone and
    comes whole; else a full one. One that LoRA was trained on a second time is of neither kind: its base would be the
    start, merged, which nobody can fetch unless it is the shipped default.
    """

    def __init__(self, config: TrainConfig, base: Path, data: TrainingData, adapter: Path | None) -> None:
        """Takes what goes into the model card.

        Args:
            config: The run.
            base: The full checkpoint that it starts from.
            data: What it trains on.
            adapter: The adapter checkpoint that ``base`` was merged from, if it was.

        Raises:
            CheckpointError: ``adapter`` is not valid.
        """
        self._config = config
        self._base = base
        self._adapter = adapter
        self._adapted = None if adapter is None else validate_adapter(adapter)
        self._lists = {source.name: len(source.lists) for source in data.train}

    def write(self, model: TrainableResRank, progress: Progress, out: Path) -> None:
        """Makes the folder, see :meth:`resrank.training.trainer.CheckpointWriter.write`."""
        spec = model.trained_spec().model_copy(update={"name": self._config.name})
        card = self._card(spec, progress)
        projectors = model.projector_state()
        full = [role for role, mode in self._modes.items() if mode is Mode.FULL or self._has_no_base(model, role)]
        # One that reads slots alone has no base that could be fetched, whether it was trained or not, and is small.
        drawn = spec.reranker.prompt is None
        if not full or (full == ["reranker"] and drawn):
            if drawn and self._adapted is not None:  # whole again, in the place of what came whole with the start
                reranker = spec.reranker.model_copy(update={"source": self._adapted.reranker.source})
                spec = spec.model_copy(update={"reranker": reranker})
            write_adapter(
                out,
                base=self._base,
                spec=spec,
                encoder=self._changed(model, "encoder"),
                reranker=WholeWeights(_weights(model, "reranker")) if drawn else self._changed(model, "reranker"),
                projectors=projectors,
                card=card,
            )
            return
        weights = {role: _weights(model, role) for role, mode in self._modes.items() if mode is not Mode.FROZEN}
        write_trained(
            out,
            base=self._base,
            spec=spec,
            encoder=weights.get("encoder"),
            reranker=weights.get("reranker"),
            projectors=projectors,
            card=card,
        )

    def _changed(self, model: TrainableResRank, role: Role) -> BackboneAdapter | AdaptedBackbone | None:
        """What is known of a backbone beside its base: learned in this run, or before it."""
        if (config := model.adapter_config(role)) is not None:
            return BackboneAdapter(config, model.adapter_state(role))
        if self._adapter is None or self._adapted is None:
            return None
        return AdaptedBackbone(self._adapter / role, getattr(self._adapted, role))

    def _has_no_base(self, model: TrainableResRank, role: Role) -> bool:
        """Whether a backbone that this run trains by LoRA has been trained before, other than the shipped default's."""
        if self._adapter is None or self._adapted is None or model.adapter_config(role) is None:
            return False
        return was_trained(self._adapter / role) and self._adapted.digest() != DIGESTS[DEFAULT]

    @property
    def _modes(self) -> dict[Role, Mode]:
        return {"encoder": self._config.model.encoder.mode, "reranker": self._config.model.reranker.mode}

    def _card(self, spec: CheckpointSpec, progress: Progress) -> str:
        assert progress.best is not None  # a checkpoint is written because of its score
        assert progress.dense_start is not None
        score = progress.best.score
        return run_card(
            RunCard(
                name=spec.name,
                encoder=spec.encoder.source,
                reranker=spec.reranker.source,
                data=self._lists,
                recipe=_public(self._config.model_dump(mode="json")),
                seed=self._config.seed,
                development={
                    part.name: DevelopmentFigures(
                        lists=part.lists,
                        ndcg={
                            "reranked, retrieved order": part.retrieved,
                            "reranked, shuffled": part.shuffled,
                            "dense, this encoder": part.dense,
                            "dense, before training": before.dense,
                        },
                    )
                    for part, before in zip(score.sets, progress.dense_start.sets, strict=True)
                },
            )
        )


def _public(value: Any) -> Any:
    """A config's values as a card may show them: it is published, and where things lay on a machine is private.

    An absolute path counts from the working directory, as relative ones do; outside of it, its last part is left.
    """
    if isinstance(value, dict):
        return {field: _public(child) for field, child in value.items()}
    if isinstance(value, list):
        return [_public(child) for child in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path, here = Path(value), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def _wanted(folder: RunFolder, *, renew: bool) -> bool:
    """Whether the start checkpoint has to be made; removes what there is of an old one first."""
    if not renew and folder.start.is_dir():
        return False
    for old in (folder.start, folder.start_adapter):
        if old.is_dir():
            shutil.rmtree(old)
    return True


def _initialize(config: TrainConfig, start: StartFromBackbones, out: Path, notify: Notify) -> None:
    """Makes the start checkpoint from two backbones."""
    compact = CompactDecoder(layers=start.layers or 2, width=start.width, seed=config.seed)
    folders: list[str | Path] = []
    sources: list[str] = []
    for given in (start.encoder, start.reranker):
        if given == COMPACT:
            sources.append(compact.source)
            continue
        packaged = next((backbone for backbone in PACKAGED_BACKBONES if backbone.name == given), None)
        folders.append(given if packaged is None else materialize(packaged, cache_folder(), notify))
        sources.append(source_name(given) if packaged is None else packaged.source)
    notify("assembling the start checkpoint")
    gate = config.model.fusion.gate.start
    spec = initialize(
        folders[0],
        compact if start.reranker == COMPACT else folders[1],
        out,
        InitOptions(
            name=config.name,
            pooling=start.pooling,
            residual_gate=(0.0 if start.query_residual else 1.0) if gate is None else gate,
            query_residual=start.query_residual,
            max_passage_tokens=start.max_passage_tokens,
            max_query_tokens=start.max_query_tokens,
            max_passages=start.max_passages,
            layers=None if start.reranker == COMPACT else start.layers,
            slots=start.slots.spec(),
            score_residual=start.score_residual,
            cosine_map=None if start.cosine_map is None else start.cosine_map.spec(),
            lexical_weight=start.lexical_weight,
            seed=config.seed,
        ),
        sources=(sources[0], sources[1]),
    )
    fusion = spec.fusion.model_copy(update={"state_norm": start.state_norm})
    write_spec(spec.model_copy(update={"fusion": fusion}), out)


def _weights(model: TrainableResRank, role: Role) -> dict[str, torch.Tensor]:
    return model.merged_backbone(role).state_dict()
