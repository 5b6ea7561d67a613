"""Tiny random checkpoints, made in a second or two by the same assembly that makes real ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from resrank.core.checkpoint import (
    PROJECTORS_FILE,
    SCORE_HEAD,
    CheckpointSpec,
    Pooling,
    file_sha256,
    read_spec,
    write_spec,
)
from resrank.export.compact import CompactDecoder
from resrank.export.initialize import InitOptions, initialize
from resrank.model.quiet import quiet_transformers

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France and lies on the Seine.",
    "Which river flows through the capital of France?",
    "A passage is compressed once, offline, into one vector of fixed size.",
    "In 1969 two astronauts walked on the moon while a third stayed in orbit.",
)
_MAX_POSITIONS = 1024
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"


def make_tiny_checkpoint(
    out: Path,
    *,
    embedding_dim: int = 32,
    hidden_size: int = 48,
    encoder_family: str = "bert",
    compact: bool = False,
    trained_head: bool = True,
    pooling: str = "mean",
    residual_gate: float = 1.0,
    query_residual: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> CheckpointSpec:
    """Makes a checkpoint whose states depend strongly on their inputs, so that a wrong graph shows.

    Args:
        out: The checkpoint folder to make.
        embedding_dim: d, a multiple of 4.
        hidden_size: h, a multiple of 8; equal to d gives the identity in place of projectors.
        encoder_family: ``bert`` (bidirectional) or ``llama`` (causal).
        compact: A decoder that reads slots alone, in place of one with text.
        trained_head: With a score residual, a random w of length 1 in place of 0.
        pooling: ``mean``, ``last`` or ``cls``.
        residual_gate: g.
        query_residual: Whether e_q joins the query's state.
        seed: Of all weights.
        **overrides: Fields of InitOptions (``max_passages=8``), else of one section of ``resrank.json``
            (``embedding_norm="none"``, ``state_norm="none"``, ``query_instruction="query: "``).

    Returns:
        The checkpoint's fields.
    """
    options = {key: overrides.pop(key) for key in tuple(overrides) if key in InitOptions.__dataclass_fields__}
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        encoder, reranker = Path(scratch, "tiny-encoder"), Path(scratch, "tiny-reranker")
        if encoder_family == "bert":
            make_bert(encoder, embedding_dim)
        else:
            make_llama(encoder, embedding_dim)
        make_llama(reranker, hidden_size)
        initialize(
            encoder,
            CompactDecoder(2, hidden_size, seed) if compact else reranker,
            out,
            InitOptions(
                pooling=Pooling(pooling),
                residual_gate=residual_gate,
                query_residual=query_residual,
                seed=seed,
                **{"max_passage_tokens": 64, "max_query_tokens": 32, "max_passages": 16, **options},
            ),
        )
    spec = read_spec(out)
    if spec.fusion.score_residual and trained_head:
        spec = set_score_head(
            out,
            spec.reranker.hidden_size**-0.5
            * torch.randn(spec.reranker.hidden_size, generator=torch.Generator().manual_seed(seed)),
        )
    if overrides:
        fields = spec.model_dump(mode="json")
        for key, value in overrides.items():
            (section,) = (
                name for name in ("encoder", "reranker", "fusion") if key in type(getattr(spec, name)).model_fields
            )
            fields[section][key] = value
        spec = CheckpointSpec.model_validate(fields)
        write_spec(spec, out)
    return spec


def set_score_head(folder: Path, weight: torch.Tensor) -> CheckpointSpec:
    """Puts another w into a checkpoint.

    Args:
        folder: A checkpoint with a score residual.
        weight: FP32 [h].

    Returns:
        The checkpoint's fields, with the file's new digest.
    """
    file = folder / PROJECTORS_FILE
    save_file({**load_file(file), SCORE_HEAD: weight}, file)
    spec = read_spec(folder)
    fusion = spec.fusion.model_copy(update={"projectors_sha256": file_sha256(file)})
    spec = spec.model_copy(update={"fusion": fusion})
    write_spec(spec, folder)
    return spec


def make_bert(folder: Path, hidden_size: int) -> None:
    """Writes a two-layer bidirectional backbone with a WordPiece tokenizer."""
    tokenizer = wordpiece_tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=_MAX_POSITIONS,
        initializer_range=0.3,
    )
    _save(BertModel(config), tokenizer, folder, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")


def make_llama(folder: Path, hidden_size: int) -> None:
    """Writes a two-layer causal backbone with grouped-query heads and a byte-level BPE tokenizer."""
    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=_MAX_POSITIONS,
        initializer_range=0.3,
    )
    _save(LlamaModel(config), tokenizer, folder, eos_token="<|im_end|>", pad_token="<|im_end|>")


def make_qwen3(folder: Path, hidden_size: int) -> None:
    """Writes a two-layer Qwen3: norms on queries and keys, grouped-query heads that are together wider than h."""
    tokenizer = byte_level_tokenizer()
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=_MAX_POSITIONS,
        initializer_range=0.3,
    )
    _save(Qwen3Model(config), tokenizer, folder, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def wordpiece_tokenizer() -> Tokenizer:
    """A lower-casing WordPiece over single characters and the words of SENTENCES, with BERT's template."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words = sorted({word for text in SENTENCES for word in normalizer.normalize_str(text).replace(".", "").split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_ALPHABET, *(f"##{char}" for char in _ALPHABET), *words]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE trained on SENTENCES, with the chat family's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def _save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, **special_tokens: str) -> None:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=_MAX_POSITIONS, **special_tokens
    ).save_pretrained(folder)
