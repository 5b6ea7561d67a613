"""Tiny adapter checkpoints with random adapters, made by PEFT itself over the backbones of a tiny checkpoint."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModel

from resrank.core.adapter import AdapterSpec
from resrank.core.checkpoint import PROJECTORS_FILE, file_sha256, read_spec
from resrank.export.adapters import BackboneAdapter, write_adapter
from resrank.export.backbones import PackagedBackbone
from resrank.model.quiet import quiet_transformers

CARD = "# A tiny adapter\n"


def random_adapter(backbone: Path, *, seed: int = 0, **lora: Any) -> BackboneAdapter:
    """A LoRA of PEFT's on all linear layers, with both factors random, so that it changes the model a lot.

    Args:
        backbone: ``encoder/`` or ``reranker/`` of a checkpoint.
        seed: Of the factors.
        **lora: Fields of ``LoraConfig``.
    """
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    with torch.random.fork_rng(devices=[]), quiet_transformers(), warnings.catch_warnings():
        # transformers renames "gradient" to "activation checkpointing", and PEFT still asks for the old name
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
        torch.manual_seed(seed)
        model = get_peft_model(AutoModel.from_pretrained(backbone), LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        tensors = get_peft_model_state_dict(model)
    return BackboneAdapter(model.peft_config["default"].to_dict(), tensors)


def make_tiny_adapter(
    out: Path,
    base: Path,
    *,
    train_encoder: bool = True,
    train_reranker: bool = True,
    residual_gate: float = 0.7,
    name: str = "tiny-adapter",
    sources: tuple[str, str] | None = None,
    **lora: Any,
) -> AdapterSpec:
    """Writes an adapter checkpoint over a full one, with other projectors and another gate.

    Args:
        out: The folder to make.
        base: The full checkpoint.
        train_encoder: Whether the encoder gets an adapter.
        train_reranker: Likewise.
        residual_gate: g.
        name: The checkpoint's name.
        sources: Where encoder and reranker are said to come from; None: what the base says.
        **lora: Fields of ``LoraConfig``.
    """
    spec = read_spec(base)
    if sources is not None:
        encoder, reranker = (
            part.model_copy(update={"source": source})
            for part, source in zip((spec.encoder, spec.reranker), sources, strict=True)
        )
        spec = spec.model_copy(update={"encoder": encoder, "reranker": reranker})
    fusion = spec.fusion.model_copy(update={"residual_gate": residual_gate})
    projectors = {}
    if (base / PROJECTORS_FILE).is_file():
        projectors = {key: value + 0.01 for key, value in load_file(base / PROJECTORS_FILE).items()}
    return write_adapter(
        out,
        base=base,
        spec=spec.model_copy(update={"name": name, "fusion": fusion}),
        encoder=random_adapter(base / "encoder", seed=1, **lora) if train_encoder else None,
        reranker=random_adapter(base / "reranker", seed=2, **lora) if train_reranker else None,
        projectors=projectors,
        card=CARD,
    )


def cached_backbones(base: Path, cache: Path) -> tuple[PackagedBackbone, PackagedBackbone]:
    """Puts a checkpoint's backbones into a cache folder as if they had come from packages.

    Args:
        base: A full checkpoint.
        cache: What ``RESRANK_CACHE`` will say.

    Returns:
        Encoder and reranker, for ``resrank.export.adapters.PACKAGED_BACKBONES``.
    """
    encoder, reranker = (
        PackagedBackbone(
            name=f"packed-{role}",
            distribution=f"resrank-test-{role}",
            version="1.0",
            license="Apache-2.0",
            folder=PurePosixPath("model"),
            files={"model.safetensors": file_sha256(base / role / "model.safetensors")},
        )
        for role in ("encoder", "reranker")
    )
    for role, backbone in (("encoder", encoder), ("reranker", reranker)):
        shutil.copytree(base / role, cache / "backbones" / backbone.requirement)
    return encoder, reranker
