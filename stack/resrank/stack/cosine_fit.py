"""Fits a checkpoint's map of cosines to a corpus: its encoder, this project's own index, and the fit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from resrank.core.adapter import validate_adapter, write_adapter_spec
from resrank.core.checkpoint import FusionSpec, is_adapter, validate_folder, write_spec
from resrank.core.errors import InvalidInputError
from resrank.core.names import CALIBRATION_FILE
from resrank.export.adapters import full_checkpoint
from resrank.export.cache import cache_folder
from resrank.export.written_aside import written_aside
from resrank.model.quiet import quiet_transformers
from resrank.stack.training_index import FlatIndexes, passages_at
from resrank.training.cosine_fit import PASSAGES, QUESTIONS, CosineFit, fit_cosines
from resrank.training.mining import Retriever
from resrank.training.passages import drawn_pools, logged_questions
from resrank.training.precision import settled
from resrank.training.progress import RunProgress
from resrank.training.stage_config import ModelConfig
from resrank.training.start_encoder import StartEncoder, vectors_identity
from resrank.training.synthetic import sentences
from resrank.training.vector_cache import VectorCache


def fit_to(checkpoint: Path, corpus: Path, questions: Path | None, console: Console) -> CosineFit:
    """Encodes some passages and questions, and fits A to them.

    Args:
        checkpoint: A full or an adapter checkpoint.
        corpus: What :func:`resrank.stack.training_index.passages_at` reads.
        questions: A log; None takes sentences of the passages.
        console: Shows how far it is.

    Raises:
        CheckpointError: The checkpoint is not valid.
        InvalidInputError: Corpus or log cannot be read, or there is too little in them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _fit(full_checkpoint(checkpoint, Path(scratch)), corpus, questions, console)


def _fit(checkpoint: Path, corpus: Path, questions: Path | None, console: Console) -> CosineFit:
    spec = validate_folder(checkpoint)
    pool, _ = drawn_pools(passages_at(corpus), PASSAGES, divided=False)
    if not pool.passages:
        raise InvalidInputError("corpus", f"{corpus} holds no passages")
    asked = sentences(pool.passages, QUESTIONS) if questions is None else logged_questions(questions)[:QUESTIONS]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = settled(ModelConfig.model_validate({"encoder": {"mode": "frozen"}}), device)
    cache = VectorCache(cache_folder() / "vectors", vectors_identity(spec, config))
    with quiet_transformers(), RunProgress(console) as progress:
        retriever = Retriever(StartEncoder(checkpoint, config, device, progress.encoding, cache), FlatIndexes())
        vectors, texts = retriever.vectors(pool), retriever.query_vectors(asked)
        with retriever.index(pool) as index:
            return fit_cosines(vectors, texts, index)


def write_with(fit: CosineFit, checkpoint: Path, out: Path) -> None:
    """Copies a checkpoint with another map of cosines; its encoder's identity, and so its indexes, stay.

    Args:
        fit: The map.
        checkpoint: A full or an adapter checkpoint.
        out: The folder to make; must not exist yet.

    Raises:
        CheckpointError: ``checkpoint`` is not valid, or ``out`` exists or cannot be written.
        InvalidInputError: ``out`` lies in ``checkpoint``.
    """
    if out.resolve().is_relative_to(checkpoint.resolve()):
        raise InvalidInputError("out", f"{out} lies in the checkpoint, {checkpoint}, which is to be copied into it")
    with written_aside(out) as partial:
        # Other scores than a calibration was fitted to.
        shutil.copytree(checkpoint, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CALIBRATION_FILE))
        if is_adapter(checkpoint):
            adapted = validate_adapter(checkpoint)
            write_adapter_spec(adapted.model_copy(update={"fusion": _mapped(adapted.fusion, fit)}), partial)
        else:
            spec = validate_folder(checkpoint, verify_hashes=False)
            write_spec(spec.model_copy(update={"fusion": _mapped(spec.fusion, fit)}), partial)


def _mapped(fusion: FusionSpec, fit: CosineFit) -> FusionSpec:
    return fusion.model_copy(update={"cosine_map": fit.cosine_map})
