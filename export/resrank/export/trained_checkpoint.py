"""A full checkpoint after training: for backbones whose every weight was trained, which no adapter can hold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from resrank.core.adapter import CARD_FILE
from resrank.core.checkpoint import (
    ENCODER_DIR,
    PROJECTORS_FILE,
    RERANKER_DIR,
    CheckpointSpec,
    file_sha256,
    folder_sha256,
    validate_folder,
    write_spec,
)
from resrank.export.adapters import copy_without_weights, finite, save_weights
from resrank.export.written_aside import written_aside


def write_trained(
    out: Path,
    *,
    base: Path,
    spec: CheckpointSpec,
    encoder: Mapping[str, Tensor] | None,
    reranker: Mapping[str, Tensor] | None,
    projectors: Mapping[str, Tensor],
    card: str,
) -> CheckpointSpec:
    """Writes a full checkpoint.

    Args:
        out: The folder to make; must not exist yet.
        base: The full checkpoint that training started from.
        spec: The trained model's fields: those of ``base``, but for the name and for what training set otherwise. Its
            digests are not read.
        encoder: All weights under the names of transformers' base model; None where the encoder was frozen: its folder
            is copied as it is, so that it stays the encoder of the indexes it made.
        reranker: Likewise, of the reranker.
        projectors: The tensors of :func:`resrank.core.checkpoint.projector_shapes`.
        card: The model card, in Markdown.

    Returns:
        The fields, as written to ``resrank.json``.

    Raises:
        CheckpointError: ``out`` exists or cannot be written, or a number is not finite. ``out`` is either complete
            afterwards or not there.
    """
    with written_aside(out) as partial:
        fields: dict[str, Any] = {}
        for name, backbone, weights in ((ENCODER_DIR, spec.encoder, encoder), (RERANKER_DIR, spec.reranker, reranker)):
            source = backbone.source
            if weights is None:
                shutil.copytree(base / name, partial / name)
            else:
                copy_without_weights(base / name, partial / name)
                save_weights(weights, partial / name)
                source = f"{source} + {spec.name}"
            sha256 = folder_sha256(partial / name)
            fields[name] = backbone.model_copy(update={"source": source, "sha256": sha256})
        projectors_sha256 = None
        if projectors:
            save_file(
                {key: finite(key, weight, torch.float32) for key, weight in projectors.items()},
                partial / PROJECTORS_FILE,
            )
            projectors_sha256 = file_sha256(partial / PROJECTORS_FILE)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        fields["fusion"] = spec.fusion.model_copy(update={"projectors_sha256": projectors_sha256})
        written = spec.model_copy(update=fields)
        write_spec(written, partial)
        validate_folder(partial, verify_hashes=False)
    return written
