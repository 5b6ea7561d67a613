"""A cross-encoder trained on judged lists: what the same lists and as much time give to a model that reads the text."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from resrank.core.errors import InvalidInputError
from resrank.export.written_aside import written_aside
from resrank.model.quiet import quiet_transformers
from resrank.training.lists import CandidateList
from resrank.training.losses.ranking import ListwiseSoftmax

TRAINING_FILE = "training.json"
"""What a trained folder says of how it came about."""

_LISTS_PER_STEP = 4
_LEARNING_RATE = 5e-5  # as sentence-transformers' cross-encoders are trained, give or take a factor of 2
_TOKENS = 256  # of a pair in training: few paragraphs are longer, and time goes with the longest of a step
_CLIP = 1.0
_SEED = 20261128  # of default.yaml

_LOSS = ListwiseSoftmax(temperature=1.0)


@dataclass(frozen=True)
class TrainingFacts:
    """How a cross-encoder came about.

    Attributes:
        base: What it started from.
        lists: How many lists it has seen, repetitions included.
        seconds: How long that took.
    """

    base: str
    lists: int
    seconds: float


def train(
    base: Path,
    name: str,
    lists: Sequence[CandidateList],
    out: Path,
    shares: Iterable[float],
    *,
    notify: Callable[[int, float], None] = lambda lists, loss: None,
) -> TrainingFacts:
    """Trains every weight by the listwise softmax loss, a step for each share of the training that has gone by.

    Args:
        base: Folder of a bidirectional encoder.
        name: What it is called.
        lists: Judged lists; drawn without repetition until all have been seen.
        out: Folder to make, as sentence-transformers reads it.
        shares: From 0 to 1, by which the learning rate falls; :func:`until` gives those of a time.
        notify: Called after each step with the lists seen so far and the step's loss.

    Raises:
        InvalidInputError: There is no list.
        CheckpointError: ``out`` exists or cannot be written.
    """
    if not lists:
        raise InvalidInputError("lists", "none has anything to rank")
    started, seen = time.monotonic(), 0
    with written_aside(out) as partial, torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(_SEED)  # the head is drawn, and so is dropout
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
        order = cycle(random.Random(_SEED).sample(list(lists), len(lists)))
        for share in shares:
            batch = list(islice(order, _LISTS_PER_STEP))
            labels, valid = _labels(batch)
            loss = _LOSS(_scores(model, tokenizer, batch), labels, valid)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - share)
            optimizer.step()
            optimizer.zero_grad()
            seen += len(batch)
            notify(seen, float(loss.detach()))
        facts = TrainingFacts(name, seen, time.monotonic() - started)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / TRAINING_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")
    return facts


def until(seconds: float) -> Iterator[float]:
    """The share of a time that has gone by, again and again until all of it has."""
    started = time.monotonic()
    while (share := (time.monotonic() - started) / seconds) < 1:
        yield share


def read_facts(folder: Path) -> TrainingFacts:
    """How the cross-encoder in a folder came about.

    Raises:
        InvalidInputError: The folder is none of :func:`train`.
    """
    try:
        found = TrainingFacts(**json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(
            "cross_encoder",
            f"{folder} holds none of scripts/train_cross_encoder.py, which makes one: {TRAINING_FILE} cannot be read "
            f"({error})",
        ) from error
    return found


def _labels(lists: Sequence[CandidateList]) -> tuple[Tensor, Tensor]:
    """FP32 [B, N] labels, 0 on padding, and BOOL [B, N], False there."""
    rows = [torch.tensor(candidates.labels) for candidates in lists]
    valid = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True), valid


def _scores(model: Any, tokenizer: Any, lists: Sequence[CandidateList]) -> Tensor:
    """FP32 [B, N], a pair's one number each, 0 on padding."""
    pairs = [(candidates.query, passage.encoder_text) for candidates in lists for passage in candidates.passages]
    queries, passages = map(list, zip(*pairs, strict=True))
    tokens = tokenizer(queries, passages, truncation=True, max_length=_TOKENS, padding=True, return_tensors="pt")
    logits: Tensor = model(**tokens).logits[:, 0]
    return pad_sequence(list(torch.split(logits, [len(candidates) for candidates in lists])), batch_first=True)
