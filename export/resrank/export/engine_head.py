"""The score head as engines hold it: w in a fixed length, the rest of γ·w being a factor that scoring applies.

A small or zero w would hide a broken reranker from the parity gate, as a gate of 0 would. So engines compute
SCORE_RESIDUALS with w of length 1/sqrt(h), as if γ were 1. The last norm leaves a hidden state of a length near
sqrt(h): the residual is of the size of a cosine, and the tolerances of scores fit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from resrank.core.checkpoint import PROJECTORS_FILE, SCORE_HEAD, CheckpointSpec, file_sha256
from resrank.core.names import CALIBRATION_FILE, CHECKPOINT_FILE

_SEED = 2604_22180


@dataclass(frozen=True)
class EngineHead:
    """What engines are made of, and how their outputs count.

    Attributes:
        checkpoint: The checkpoint's folder, or one beside it whose head is of that length.
        factor: On SCORE_RESIDUALS; 0 without a score residual, or where w is 0.
    """

    checkpoint: Path
    factor: float


def engine_head(checkpoint: Path, spec: CheckpointSpec, scratch: Path) -> EngineHead:
    """Gives a checkpoint's head the engines' length.

    Args:
        checkpoint: A full checkpoint's folder.
        spec: Its fields.
        scratch: Where a folder with the other head is made; backbones are links in it.
    """
    if not spec.fusion.score_residual:
        return EngineHead(checkpoint, 0.0)
    tensors = load_file(checkpoint / PROJECTORS_FILE)
    head = tensors[SCORE_HEAD].double()
    length, wanted = float(head.norm()), head.numel() ** -0.5
    if length == 0:  # of some direction, so that the gate sees whether the reranker works; scoring does not read it
        head = torch.randn(head.numel(), generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    folder = scratch / "engine-head"
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.name not in (PROJECTORS_FILE, CHECKPOINT_FILE, CALIBRATION_FILE):
            (folder / path.name).symlink_to(path.resolve())
    file = folder / PROJECTORS_FILE
    save_file({**tensors, SCORE_HEAD: (head / head.norm() * wanted).float()}, file)
    file.chmod(0o644)  # safetensors lets the owner alone read; a repository is served by another user
    fusion = spec.fusion.model_copy(update={"projectors_sha256": file_sha256(file)})
    text = spec.model_copy(update={"fusion": fusion}).model_dump_json(indent=2)
    (folder / CHECKPOINT_FILE).write_text(text + "\n", encoding="utf-8")
    return EngineHead(folder, spec.fusion.score_residual * length / wanted)
