"""A checkpoint's weights, read from its folders; nothing is drawn at random without being told."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from resrank.core.checkpoint import P_IN, P_OUT, PROJECTORS_FILE, SCORE_HEAD, CheckpointSpec, projector_shapes
from resrank.core.errors import CheckpointError


def load_projectors(folder: Path, spec: CheckpointSpec) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Reads a checkpoint's projectors.

    Args:
        folder: The checkpoint's.
        spec: Its fields, which say whether there are any.

    Returns:
        P_in FP32 [h, F], P_out FP32 [d, h] and w FP32 [h]; None for what it does not have.

    Raises:
        CheckpointError: The file is damaged or holds something else.
    """
    if not spec.fusion.has_projectors_file:
        return None, None, None
    file = folder / PROJECTORS_FILE
    try:
        projectors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if projectors.keys() != (expected := projector_shapes(spec.encoder, spec.reranker, spec.fusion)).keys():
        raise CheckpointError(f"{file}: holds {sorted(projectors)}, not {sorted(expected)}")
    return projectors.get(P_IN), projectors.get(P_OUT), projectors.get(SCORE_HEAD)


def load_backbone(folder: Path) -> PreTrainedModel:
    """Loads one backbone in fp32.

    Raises:
        CheckpointError: transformers cannot load it, or weights are missing.
    """
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise many kinds for an unusable folder
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    refuse_missing_weights(folder, report["missing_keys"])
    drop_drawn_pooler(model, report["missing_keys"])
    return cast("PreTrainedModel", model)


def refuse_missing_weights(folder: Path, missing_keys: Iterable[str]) -> None:
    """Refuses a backbone of which transformers drew some weights at random.

    Args:
        folder: Where it was loaded from.
        missing_keys: Of the loading report.

    Raises:
        CheckpointError: A weight that counts is missing; the message names the first.
    """
    # A pooler on top of the first token is made anew for masked-language models; no pooling here uses it.
    missing = sorted(key for key in missing_keys if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")


def drop_drawn_pooler(backbone: PreTrainedModel, missing_keys: Iterable[str]) -> None:
    """Takes out a pooler that transformers drew at random: saved, it would make other bytes of the same model."""
    if any(key.startswith("pooler.") for key in missing_keys):
        backbone.register_module("pooler", None)
