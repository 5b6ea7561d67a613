"""Candidate lists and trainable models for tests of training, small enough for milliseconds a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from resrank.model.modeling import ResRankModel
from resrank.training.batches import Tokenizers
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from resrank.training.stage_config import ModelConfig
from resrank.training.trainable import TrainableResRank
from support.tiny_checkpoint import SENTENCES

WORDS = tuple(dict.fromkeys(word.strip(".,?") for sentence in SENTENCES for word in sentence.split()))


def tiny_lists(
    count: int, *, seed: int = 0, kind: LabelKind = LabelKind.GRADES, min_passages: int = 3, max_passages: int = 8
) -> list[CandidateList]:
    """Lists of random words and unequal lengths, each with a relevant passage and one that is not."""
    rng = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(2, longest)))

    lists = []
    for index in range(count):
        size = int(rng.integers(min_passages, max_passages + 1))
        grades = [2.0, 0.0, *rng.integers(0, 3, size=size - 2).astype(float)]
        labels = rng.permutation(grades) if kind is LabelKind.GRADES else rng.normal(size=size)
        # The number keeps a passage from standing in a list twice.
        passages = tuple(TrainingPassage(f"{text(4)} {slot}", text(30)) for slot in range(size))
        lists.append(
            CandidateList(f"q{index}", text(8), passages, tuple(float(label) for label in labels), kind, "tiny")
        )
    return lists


def tiny_trainable(
    folder: Path, config: dict[str, object] | None = None, *, seed: int = 0
) -> tuple[TrainableResRank, Tokenizers]:
    """A checkpoint's model ready to train, in fp32 unless the config says otherwise, with its tokenizers."""
    torch.manual_seed(seed)
    fields: dict[str, object] = {"compute": {"precision": "fp32"}, **(config or {})}
    model = ResRankModel.from_checkpoint(folder, verify_hashes=False)
    return (
        TrainableResRank(model, ModelConfig.model_validate(fields)),
        Tokenizers.from_checkpoint(folder, model.spec),
    )


def disturb_adapters(model: TrainableResRank, *, seed: int = 0) -> None:
    """Moves every trainable weight away from its start, where an adapter does nothing (B = 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.trained_state().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
