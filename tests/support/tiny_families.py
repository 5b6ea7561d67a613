"""Tiny random backbones of every supported family, shaped to show what its attention does differently."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from resrank.core.checkpoint import CheckpointSpec
from resrank.export.initialize import InitOptions, initialize
from resrank.model.quiet import quiet_transformers
from support.tiny_checkpoint import SENTENCES, byte_level_tokenizer, make_bert, make_llama, wordpiece_tokenizer

EMBEDDING_DIM = 64
"""d of every checkpoint made here, and h of a decoder's own reranker: no projectors, the paper's form."""

LAYERS = 2
LOCAL_WINDOW = 4
"""How far a local layer of the tiny ModernBERT sees to either side; rows are longer, so a missing mask shows."""

_LIMITS = InitOptions(
    residual_gate=1.0, query_residual=False, max_passage_tokens=64, max_query_tokens=32, max_passages=8
)
_HEADS, _KEY_HEADS = 4, 2
_MAX_POSITIONS = 512
_WEIGHT_SCALE = 0.15
"""Large enough for states to depend on every layer, small enough for bf16's attention to stay that of fp32."""


def make_backbone(family: str, folder: Path) -> None:
    """Writes a two-layer backbone and a tokenizer as its family's are.

    Args:
        family: transformers' ``model_type``, one of DECODERS and ENCODERS.
        folder: The Hugging Face folder to make.
    """
    (DECODERS | ENCODERS)[family](folder)


def make_family_checkpoint(family: str, out: Path, *, seed: int = 0) -> CheckpointSpec:
    """Makes a checkpoint whose encoder, and for decoders whose reranker too, is of a family.

    Args:
        family: As in :func:`make_backbone`.
        out: The checkpoint folder to make.
        seed: Of all weights.

    Returns:
        The checkpoint's fields.
    """
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        backbone, reranker = Path(scratch, f"tiny-{family}"), Path(scratch, "tiny-llama")
        make_backbone(family, backbone)
        if family not in DECODERS:
            make_llama(reranker, EMBEDDING_DIM)
        return initialize(backbone, backbone if family in DECODERS else reranker, out, _LIMITS)


def make_projected_checkpoint(out: Path) -> CheckpointSpec:
    """Makes a checkpoint whose reranker, a Llama, reads the vectors of a BERT half its size through projectors.

    Args:
        out: The checkpoint folder to make.

    Returns:
        The checkpoint's fields.
    """
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        encoder, reranker = Path(scratch, "tiny-bert"), Path(scratch, "tiny-llama")
        make_bert(encoder, EMBEDDING_DIM // 2)
        make_backbone("llama", reranker)
        return initialize(encoder, reranker, out, _LIMITS)


def _llama(folder: Path) -> None:
    config = LlamaConfig(**_decoder_sizes(), num_key_value_heads=_KEY_HEADS)
    _save_decoder(LlamaModel(config), folder)


def _mistral(folder: Path) -> None:
    """As version 0.1: attention that slides, over more positions than the checkpoint's limits allow."""
    config = MistralConfig(**_decoder_sizes(), num_key_value_heads=_KEY_HEADS, sliding_window=256)
    _save_decoder(MistralModel(config), folder)


def _qwen2(folder: Path) -> None:
    """Biases on queries, keys and values, drawn at random (transformers starts them at 0, which hides them)."""
    config = Qwen2Config(**_decoder_sizes(), num_key_value_heads=_KEY_HEADS, use_sliding_window=False)
    model = Qwen2Model(config)
    for layer in model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(projection.bias, std=_WEIGHT_SCALE)
    _save_decoder(model, folder)


def _qwen3(folder: Path) -> None:
    """Norms on queries and keys, with gains that are not 1, and heads that are together wider than the hidden size."""
    config = Qwen3Config(
        **_decoder_sizes(),
        num_key_value_heads=_KEY_HEADS,
        head_dim=2 * EMBEDDING_DIM // _HEADS,
        use_sliding_window=False,
    )
    model = Qwen3Model(config)
    for layer in model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    _save_decoder(model, folder)


def _bert(folder: Path) -> None:
    tokenizer = wordpiece_tokenizer()
    config = BertConfig(**_encoder_sizes(tokenizer), max_position_embeddings=_MAX_POSITIONS)
    _save(BertModel(config), tokenizer, folder, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")


def _modernbert(folder: Path) -> None:
    """A global layer and a local one."""
    tokenizer = wordpiece_tokenizer()
    config = ModernBertConfig(
        **_encoder_sizes(tokenizer),
        max_position_embeddings=_MAX_POSITIONS,
        global_attn_every_n_layers=2,
        local_attention=2 * LOCAL_WINDOW,
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    )
    _save(ModernBertModel(config), tokenizer, folder, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")


def _mpnet(folder: Path) -> None:
    tokenizer = _sentence_piece_tokenizer()
    config = MPNetConfig(**_encoder_sizes(tokenizer), max_position_embeddings=_MAX_POSITIONS + 2)
    _save(MPNetModel(config), tokenizer, folder, cls_token="<s>", sep_token="</s>", pad_token="<pad>")


def _xlm_roberta(folder: Path) -> None:
    tokenizer = _sentence_piece_tokenizer()
    config = XLMRobertaConfig(**_encoder_sizes(tokenizer), max_position_embeddings=_MAX_POSITIONS + 2, pad_token_id=1)
    _save(XLMRobertaModel(config), tokenizer, folder, cls_token="<s>", sep_token="</s>", pad_token="<pad>")


DECODERS: dict[str, Callable[[Path], None]] = {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "mistral": _mistral}
"""Families that are encoder (with the last token's state) and reranker."""

ENCODERS: dict[str, Callable[[Path], None]] = {
    "bert": _bert,
    "mpnet": _mpnet,
    "xlm-roberta": _xlm_roberta,
    "modernbert": _modernbert,
}
"""Families that are encoder alone."""


def _decoder_sizes() -> dict[str, float]:
    return {
        "vocab_size": byte_level_tokenizer().get_vocab_size(),
        "hidden_size": EMBEDDING_DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": _HEADS,
        "intermediate_size": 2 * EMBEDDING_DIM,
        "max_position_embeddings": _MAX_POSITIONS,
        "initializer_range": _WEIGHT_SCALE,
    }


def _encoder_sizes(tokenizer: Tokenizer) -> dict[str, float]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": EMBEDDING_DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": _HEADS,
        "intermediate_size": 2 * EMBEDDING_DIM,
        "initializer_range": _WEIGHT_SCALE,
    }


def _sentence_piece_tokenizer() -> Tokenizer:
    """A unigram model in which padding is token 1, from which XLM-R and MPNet count their positions."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=128, special_tokens=special_tokens, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _save_decoder(model: PreTrainedModel, folder: Path) -> None:
    _save(model, byte_level_tokenizer(), folder, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, **special_tokens: str) -> None:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=_MAX_POSITIONS, **special_tokens
    ).save_pretrained(folder)
