"""What reads passages as text: models of the sizes that this stack is compared with, made from its own backbones.

Speed depends on architecture and lengths alone, not on weights: the cross-encoder has the architecture of the public
MiniLM-L6 ones and random weights, behind the tokenizer of the checkpoint's encoder; the text-listwise model is the
checkpoint's reranker backbone as a plain decoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification

from resrank.benchmarks.deployment import Deployment
from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, Norm
from resrank.core.scoring import Float32
from resrank.core.tokenization import load_tokenizer
from resrank.model.quiet import quiet_transformers

PAIR_TOKENS = 512
"""Longest pair that MiniLM-L6 cross-encoders take: longer passages are cut."""

_BATCH_SIZE = 64


def write_cross_encoder(deployment: Deployment, out: Path) -> None:
    """Writes a cross-encoder's folder: six layers of width 384 with a head for one number, drawn from a seed."""
    source = deployment.checkpoint / ENCODER_DIR
    config = BertConfig(
        vocab_size=load_tokenizer(source).get_vocab_size(),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=PAIR_TOKENS,
    )
    config.num_labels = 1
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(out)
    _copy_tokenizer(source, out)


def write_sentence_transformer(deployment: Deployment, out: Path) -> None:
    """Writes the encoder's folder in sentence-transformers' layout, by the names that its old versions know too."""
    spec = deployment.spec.encoder
    shutil.copytree(deployment.checkpoint / ENCODER_DIR, out, dirs_exist_ok=True)
    pooling = {"mean": "mean_tokens", "last": "lasttoken", "cls": "cls_token"}[spec.pooling.value]
    modules = {"": "Transformer", "1_Pooling": "Pooling"} | (
        {"2_Normalize": "Normalize"} if spec.embedding_norm is Norm.L2 else {}
    )
    for folder in filter(None, modules):
        (out / folder).mkdir()
    _write_json(
        out / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules.items())
        ],
    )
    _write_json(
        out / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": spec.embedding_dim,
            "pooling_mode_mean_tokens": False,
            f"pooling_mode_{pooling}": True,
        },
    )
    _write_json(out / "sentence_bert_config.json", {"max_seq_length": spec.max_passage_tokens, "do_lower_case": False})


class PairScorer:
    """A cross-encoder in sentence-transformers: torch, fp32."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Loads it.

        Args:
            folder: As :func:`write_cross_encoder` writes it.
            max_tokens: Longest pair of query and passage.
        """
        with quiet_transformers():
            self._model = CrossEncoder(str(folder), device="cpu", max_length=max_tokens)

    def scores(self, query: str, passages: Sequence[str]) -> Float32:
        """FP32 [N]; each pair is one sequence."""
        scores: Float32 = self._model.predict(
            [(query, passage) for passage in passages], batch_size=_BATCH_SIZE, show_progress_bar=False
        )
        return scores


class ListReader:
    """A text-listwise reranker: one causal pass over the query and all passages' text. It generates no token.

    The published ones generate the order token by token behind that pass, which costs on top.

    Attributes:
        max_positions: Tokens that the backbone was made for.
    """

    def __init__(self, deployment: Deployment) -> None:
        """Loads the reranker's backbone, one that reads text, in fp32, without its head."""
        folder = deployment.checkpoint / RERANKER_DIR
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        with quiet_transformers():
            self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.max_positions = int(self._model.config.max_position_embeddings)

    def tokens(self, query: str, passages: Sequence[str]) -> int:
        """Length of the sequence that is read."""
        return len(self._ids(query, passages))

    def read(self, query: str, passages: Sequence[str]) -> Float32:
        """FP32 [h], the state behind the last token, from which the first generated one would come."""
        with torch.inference_mode():
            states = self._model(torch.tensor([self._ids(query, passages)]), use_cache=False).last_hidden_state
        state: Float32 = states[0, -1].numpy()
        return state

    def _ids(self, query: str, passages: Sequence[str]) -> list[int]:
        numbered = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, start=1))
        text = f"Query: {query}\n{numbered}\nRank the passages by how well they answer the query.\nRanking:"
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids


def _copy_tokenizer(source: Path, out: Path) -> None:
    """As it is: what transformers 5 writes of a tokenizer, older versions cannot all read."""
    for file in source.iterdir():
        if "token" in file.name:
            shutil.copy(file, out / file.name)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
