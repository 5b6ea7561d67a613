"""The paper's form, as two recipes configure it, trained by ``resrank train`` on tiny random models of its families."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import CheckpointSpec, Pooling, Projector, validate_folder
from resrank.evaluation.scorer import CandidateVectors
from resrank.evaluation.torch_scorer import TorchScorer
from resrank.export.adapters import merge_adapter
from resrank.stack.cli.app import run
from resrank.training import trainer
from resrank.training.batches import Tokenizers
from resrank.training.development import Development, DevelopmentScore
from resrank.training.embedding_table import EmbeddingTable, encode_texts
from resrank.training.list_scores import score_lists
from resrank.training.stage_config import Precision
from resrank.training.trainable import ROLES, TrainableResRank
from support.tiny_checkpoint import byte_level_tokenizer, make_llama, make_qwen3
from support.tiny_run import losses, one_set
from support.tiny_training import tiny_lists

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
STAGES = ("encoder_alignment", "reranker_alignment", "joint")
LISTS = tiny_lists(6)
WIDTH = 32  # d = h
TEXTS = [passage.encoder_text for candidates in LISTS for passage in candidates.passages]
SAME = 5e-6  # of two computations in fp32, in cosines and in components of vectors of length 1
ROUNDED = 2e-4  # likewise, of adapters and the same in fp16, which has 11 bits: training moves scores by tenths


@dataclass
class Run:
    """A finished run, and what the trainer's own model was at each development score.

    Attributes:
        folder: Holds the backbones, ``encoder`` and ``reranker``, and the run.
        scores: Of LISTS, at the start and after every stage.
        weights: All that may be trained, likewise.
        model: As the trainer left it.
        tokenizers: The trainer's.
    """

    folder: Path
    scores: list[list[np.ndarray]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    model: TrainableResRank = field(init=False)
    tokenizers: Tokenizers = field(init=False)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run" / "checkpoint"

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Looks at the model instead of judging it; every score is better than the last, so the last step is kept."""

        def evaluate(development: Development, model: TrainableResRank, **_: Any) -> DevelopmentScore:
            self.model, self.tokenizers = model, development._tokenizers
            self.scores.append(self.score()[1])
            self.weights.append({name: value.clone() for name, value in model.trained_state().items()})
            better = 0.5 + len(self.scores) / 100
            return one_set(better, better, dense=0.5)

        patch.setattr(Development, "evaluate", evaluate)

    def score(self) -> tuple[EmbeddingTable, list[np.ndarray]]:
        """What the model as it stands stores of LISTS and how it scores them."""
        with fp32(self.model):
            table = EmbeddingTable.build(self.model, self.tokenizers, LISTS)
            return table, score_lists(self.model, self.tokenizers, table, LISTS, lists_per_pass=4)

    def difference(self, checkpoint: Path) -> float:
        """Between the model as it stands and ``ResRankModel.from_checkpoint``: the largest in a vector or a score.

        Scores are compared over the same stored vectors, since a component may round to fp16 the other way.
        """
        with fp32(self.model):
            vectors = encode_texts(self.model, self.tokenizers.passages, TEXTS)
        table, scores = self.score()
        reference = TorchScorer(checkpoint)
        stored = [table.passages[table.passage_rows(candidates)].numpy() for candidates in LISTS]
        found = reference.score([CandidateVectors(c.query, part) for c, part in zip(LISTS, stored, strict=True)])
        embeddings = reference.embed_passages(TEXTS)
        return largest_difference([vectors.numpy(), *scores], [embeddings, *found])


@contextmanager
def fp32(model: TrainableResRank) -> Iterator[None]:
    """Where a recipe trains in bf16, its rounding would hide differences of weights."""
    config = model.config
    model.config = config.model_copy(
        update={"compute": config.compute.model_copy(update={"precision": Precision.FP32})}
    )
    try:
        yield
    finally:
        model.config = config


def train(recipe: str, make_backbone: Callable[[Path, int], None], folder: Path) -> Run:
    """Runs a recipe in which models, data and sizes are others, through the command."""
    for role in ROLES:
        torch.manual_seed(ROLES.index(role))
        make_backbone(folder / role, WIDTH)
    lines = [
        {
            "id": candidates.id,
            "query": candidates.query,
            "passages": [
                {"title": passage.title, "text": passage.text, "label": int(label)}
                for passage, label in zip(candidates.passages, candidates.labels, strict=True)
            ],
        }
        for candidates in LISTS
    ]
    (folder / "lists.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides: dict[str, object] = {
        **{f"start.{role}": folder / role for role in ROLES},
        "data.train": f"[{{kind: listwise, path: {folder / 'lists.jsonl'}}}]",
        "data.exclude": "[]",
        "data.development": "[{hold_back: 2}]",
    }
    for stage in STAGES:
        # Higher rates than a trained model would bear, so that every stage moves the scores within two steps.
        groups = {"encoder_alignment": ["encoder"], "reranker_alignment": ["reranker"]}.get(stage, ROLES)
        overrides |= {f"stages.{stage}.steps": 2, f"stages.{stage}.lists_per_step": 2}
        overrides |= {f"stages.{stage}.{group}.learning_rate": 1e-3 for group in groups}
    options = [part for name, value in overrides.items() for part in ("--set", f"{name}={value}")]
    finished = Run(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESRANK_CACHE", str(folder / "cache"))
        patch.setattr(trainer, "draw_curves", lambda log, out: out.write_bytes(b""))  # takes as long as the run
        finished.watch(patch)
        command = ["train", str(RECIPES / f"{recipe}.yaml"), "--out", str(folder / "run"), *options]
        assert run(command) == 0
    return finished


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("qwen3_4b", make_qwen3, tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("same_family", make_llama, tmp_path_factory.mktemp("llama"))


def largest_difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def assert_papers_form(spec: CheckpointSpec) -> None:
    """Last-token pooling behind EOS, the identity for projectors, gate 1, and no query residual."""
    assert (spec.encoder.pooling, spec.encoder.append_eos) == (Pooling.LAST, True)
    assert (spec.encoder.embedding_dim, spec.reranker.hidden_size) == (WIDTH, WIDTH)
    assert (spec.fusion.projector, spec.fusion.projectors_sha256) == (Projector.IDENTITY, None)
    assert (spec.fusion.residual_gate, spec.fusion.query_residual) == (1.0, False)


@pytest.mark.parametrize("recipe", ["qwen", "llama"])
def test_every_stage_trains_and_no_weight_is_left_out(recipe: str, request: pytest.FixtureRequest) -> None:
    """Each of the three moves the scores by far more than rounding does."""
    done: Run = request.getfixturevalue(recipe)
    assert [(stage, step) for stage, step, _ in losses(done.folder / "run")] == [(stage, 2) for stage in STAGES]
    moved = [largest_difference(one, other) for one, other in itertools.pairwise(done.scores)]
    assert len(moved) == len(STAGES)
    assert min(moved) > 100 * ROUNDED
    first, last = done.weights[0], done.weights[-1]
    assert [name for name in first if torch.equal(first[name], last[name])] == []


def test_the_papers_sizes_are_trained_in_full_with_gradient_checkpointing(qwen: Run) -> None:
    """All weights but the table of token embeddings, which the recipe leaves out as every config does by default."""
    assert all(layer.gradient_checkpointing for role in ROLES for layer in qwen.model.backbone(role).layers)
    assert qwen.weights[0].keys() == {
        f"model.{role}.{name}"
        for role in ROLES
        for name, _ in AutoModel.from_pretrained(qwen.folder / role).named_parameters()
        if name != "embed_tokens.weight"
    }
    assert "model.encoder.layers.0.self_attn.q_norm.weight" in qwen.weights[0]


def test_what_was_trained_in_full_is_the_checkpoint(qwen: Run) -> None:
    assert_papers_form(validate_folder(qwen.checkpoint))
    assert qwen.difference(qwen.checkpoint) < SAME


def test_the_encoder_of_that_family_is_read_behind_the_texts_end(qwen: Run) -> None:
    """A passage's vector is transformers' own last state of its tokens and EOS, alone and without padding."""
    encoder, tokenizer = AutoModel.from_pretrained(qwen.checkpoint / "encoder"), byte_level_tokenizer()
    texts = [passage.encoder_text for passage in LISTS[0].passages]
    for text, embedding in zip(texts, TorchScorer(qwen.checkpoint).embed_passages(texts), strict=True):
        ids = [*tokenizer.encode(text).ids, tokenizer.token_to_id("<|im_end|>")]
        with torch.no_grad():
            state = encoder(torch.tensor([ids])).last_hidden_state[0, -1]
        np.testing.assert_allclose(embedding, torch.nn.functional.normalize(state, dim=0).numpy(), atol=1e-5)


def test_the_same_family_pair_is_trained_by_adapters_on_both(llama: Run) -> None:
    assert {name.split(".")[1] for name in llama.weights[0]} == set(ROLES)
    assert all(".lora_" in name for name in llama.weights[0])
    adapter = validate_adapter(llama.checkpoint)
    assert (adapter.encoder.source, adapter.reranker.source) == ROLES
    assert adapter.encoder.base_sha256 != adapter.reranker.base_sha256


def test_the_adapters_merge_to_what_was_trained(llama: Run, tmp_path: Path) -> None:
    """They are stored in fp16: that rounding is the whole difference."""
    bases = {role: llama.folder / role for role in ROLES}
    assert_papers_form(merge_adapter(llama.checkpoint, tmp_path / "merged", **bases))
    trained = llama.weights[-1]
    assert llama.difference(tmp_path / "merged") < ROUNDED
    llama.model.load_trained_state({name: value.half().float() for name, value in trained.items()})
    assert llama.difference(tmp_path / "merged") < SAME
    llama.model.load_trained_state(trained)
