"""A first checkpoint from two backbones: dense-start, so that untrained it ranks exactly as its retriever."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from resrank.core.checkpoint import (
    ENCODER_DIR,
    LONGEST_TEXT_TOKENS,
    P_IN,
    P_OUT,
    PROJECTORS_FILE,
    RERANKER_DIR,
    SCORE_HEAD,
    VECTOR_SLOTS,
    CheckpointSpec,
    EncoderSpec,
    FusionSpec,
    Pooling,
    Projector,
    PromptSpec,
    RerankerSpec,
    SlotSpec,
    file_sha256,
    folder_sha256,
    projector_shapes,
    refuse_contradictions,
    validate_folder,
    write_spec,
)
from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.core.fusion import DEFAULT_LEXICAL_WEIGHT, CosineMap
from resrank.core.names import CHECKPOINT_FILE
from resrank.core.strict_json import validation_sentence
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer, load_tokenizer
from resrank.export.backbone_files import (
    NO_FIELDS,
    keep_layers,
    load_backbone,
    read_json,
    resolve_source,
    save_backbone,
    source_name,
)
from resrank.export.compact import CompactDecoder
from resrank.export.written_aside import refuse_existing, written_aside
from resrank.model.quiet import quiet_transformers

CHAT_PROMPT = PromptSpec(
    before_query="<|im_start|>system\nRank the passages by how well they answer the query.<|im_end|>\n"
    "<|im_start|>user\nQuery:\n",
    before_passages="\nPassages:\n",
    after_passages="<|im_end|>\n<|im_start|>assistant\n",
)
"""Default for tokenizers that know ``<|im_start|>`` (Qwen, SmolLM2); the paper's own prompt is not public."""

PLAIN_PROMPT = PromptSpec(
    before_query="Rank the passages by how well they answer the query.\nQuery:\n",
    before_passages="\nPassages:\n",
    after_passages="\nRanking:\n",
)
"""Default for all other tokenizers."""

_LONGEST_DEFAULT_PASSAGE = 512
_DEFAULT_QUERY_TOKENS = 128
_COMPACT_POSITIONS = 4096  # as many candidates as a checkpoint may allow in one pass
_COMPACT_SCALE = 3.0  # with which relations were found to train well; there are no token embeddings to compare with
_LONGEST_SANE_LIMIT = 1_000_000  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True)
class InitOptions:
    """What a user may decide about a first checkpoint; None is taken from the backbones.

    Attributes:
        name: The checkpoint's name; None: the two backbones' names joined.
        pooling: None: what sentence-transformers' files say, else last for causal encoders and mean for others.
        residual_gate: g; 0 is dense-start.
        query_residual: Whether e_q is added to the query's state; dense-start needs it.
        max_passage_tokens: Longest passage; None: the encoder's own limit, at most 512.
        max_query_tokens: Longest query, for encoder and reranker alike; None: that of a checkpoint's encoder, else 128.
        max_passages: N, candidates in one forward pass.
        layers: The reranker's first so many layers alone; None: all of them.
        slots: What stands at the passages' positions.
        score_residual: γ, whose w starts at 0; 0: no such part.
        cosine_map: A; None: the identity.
        lexical_weight: See :class:`resrank.core.checkpoint.FusionSpec`.
        seed: Of the projectors' random directions.
    """

    name: str | None = None
    pooling: Pooling | None = None
    residual_gate: float = 0.0
    query_residual: bool = True
    max_passage_tokens: int | None = None
    max_query_tokens: int | None = None
    max_passages: int = 128
    layers: int | None = None
    slots: SlotSpec = VECTOR_SLOTS
    score_residual: float = 0.0
    cosine_map: CosineMap | None = None
    lexical_weight: float = DEFAULT_LEXICAL_WEIGHT
    seed: int = 0


def initialize(
    encoder: str | Path,
    reranker: str | Path | CompactDecoder,
    out: Path,
    options: InitOptions = InitOptions(),
    *,
    sources: tuple[str, str] | None = None,
) -> CheckpointSpec:
    """Makes a checkpoint from an encoder and a causal decoder.

    Args:
        encoder: Hub id or folder of any bidirectional or causal text model, or a full checkpoint's folder, whose
            encoder is then taken as it is, with its fields.
        reranker: Hub id or folder of any causal decoder, whose language-model head is not kept; or a small one to draw,
            which reads slots alone.
        out: The folder to make; must not exist yet.
        options: What the user decides.
        sources: What ``encoder.source`` and ``reranker.source`` shall say; None: the ids or folder names.

    Returns:
        The fields of the checkpoint, as written to ``resrank.json``.

    Raises:
        CheckpointError: A backbone cannot be loaded or does not fit, or ``out`` exists. ``out`` is either complete
            afterwards or not there.
        InvalidInputError: The options contradict each other, or ask for more layers than there are.
    """
    refuse_existing(out)  # before anything is fetched
    encoder_source, reranker_source = sources or (source_name(encoder), reranker_name(reranker))
    encoder_folder = resolve_source(encoder)
    reranker_folder = reranker if isinstance(reranker, CompactDecoder) else resolve_source(reranker)
    with written_aside(out) as partial, quiet_transformers():
        encoder_spec = _add_encoder(encoder_folder, partial / ENCODER_DIR, encoder_source, options)
        reranker_spec, token_norm = _add_reranker(
            reranker_folder, partial / RERANKER_DIR, reranker_source, options, encoder_spec.max_query_tokens
        )
        d, h = encoder_spec.embedding_dim, reranker_spec.hidden_size
        linear = d != h or options.slots.content.has_relations
        try:
            fusion = FusionSpec(
                projector=Projector.LINEAR if linear else Projector.IDENTITY,
                # A semi-orthogonal P_in keeps the length of a unit vector when h >= d and keeps sqrt(h/d) of it, on
                # average over directions, when it has to drop dimensions. Relations are of no fixed length.
                input_scale=token_norm / (min(1.0, (h / d) ** 0.5) if options.slots.content.has_vectors else 1.0),
                residual_gate=options.residual_gate,
                query_residual=options.query_residual,
                cosine_map=options.cosine_map,
                score_residual=options.score_residual,
                lexical_weight=options.lexical_weight,
            )
            refuse_contradictions(encoder_spec, reranker_spec, fusion)
            spec = CheckpointSpec(
                name=options.name or f"{_short(encoder_source)}+{_short(reranker_source)}",
                encoder=encoder_spec,
                reranker=reranker_spec,
                fusion=fusion,
            )
        except ValueError as error:  # what was asked for, not what was found
            raise InvalidInputError("options", validation_sentence(error)) from None
        if tensors := first_projectors(encoder_spec, reranker_spec, fusion, seed=options.seed):
            save_file(tensors, partial / PROJECTORS_FILE)
            fusion = fusion.model_copy(update={"projectors_sha256": file_sha256(partial / PROJECTORS_FILE)})
            spec = spec.model_copy(update={"fusion": fusion})
        write_spec(spec, partial)
        validate_folder(partial, verify_hashes=False)
    return spec


def first_projectors(
    encoder: EncoderSpec, reranker: RerankerSpec, fusion: FusionSpec, *, seed: int
) -> dict[str, torch.Tensor]:
    """Starting values: P_in semi-orthogonal, which keeps all angles that fit, P_out its transpose, and w = 0.

    P_in's part for vectors and its part for relations are drawn by themselves, so that the sizes of one do not change
    the other.

    Returns:
        The tensors of :func:`resrank.core.checkpoint.projector_shapes`.
    """
    generator = torch.Generator().manual_seed(seed)
    d, h, slots = encoder.embedding_dim, reranker.hidden_size, reranker.slots
    of_vectors, of_relations = torch.empty(h, d), torch.empty(h, slots.relation_width)
    torch.nn.init.orthogonal_(of_vectors, generator=generator)
    if slots.content.has_relations:
        torch.nn.init.orthogonal_(of_relations, generator=generator)
    values = {
        P_IN: torch.cat([of_vectors, of_relations], dim=1) if slots.content.has_vectors else of_relations,
        P_OUT: of_vectors.T.contiguous(),
        SCORE_HEAD: torch.zeros(h),
    }
    return {name: values[name] for name in projector_shapes(encoder, reranker, fusion)}


def _add_encoder(source: Path, target: Path, name: str, options: InitOptions) -> EncoderSpec:
    if (source / CHECKPOINT_FILE).is_file():
        return _take_encoder(source, target, options)
    model = load_backbone(source)
    save_backbone(model, source, target)
    pooling = options.pooling or _stored_pooling(source) or (Pooling.LAST if _is_causal(model) else Pooling.MEAN)
    prompts = read_json(source / "config_sentence_transformers.json", NO_FIELDS).get("prompts") or {}
    tokenizer = load_tokenizer(target)
    probe = tokenizer.encode("a", add_special_tokens=True)
    limit = _token_limit(source, model)
    max_passage_tokens = options.max_passage_tokens or min(limit, _LONGEST_DEFAULT_PASSAGE)
    max_query_tokens = options.max_query_tokens or _DEFAULT_QUERY_TOKENS
    for field, value in (("passage", max_passage_tokens), ("query", max_query_tokens)):
        if value > limit:
            raise InvalidInputError(f"max_{field}_tokens", "is more than the encoder reads", limit=limit, value=value)
    spec = EncoderSpec(
        source=name,
        sha256=folder_sha256(target),
        embedding_dim=model.config.hidden_size,
        pooling=pooling,
        max_passage_tokens=max_passage_tokens,
        max_query_tokens=max_query_tokens,
        passage_instruction=prompts.get("document") or prompts.get("passage") or "",
        query_instruction=prompts.get("query") or "",
        # The last token stands for the whole text only if it is always the same one.
        append_eos=pooling is Pooling.LAST and not probe.special_tokens_mask[-1],
    )
    for field, for_queries in (("passage", False), ("query", True)):
        try:
            EncoderTokenizer(target, spec, for_queries=for_queries)
        except CheckpointError as error:
            raise InvalidInputError(f"max_{field}_tokens", str(error).removeprefix(f"{target}: ")) from None
    return spec


def _take_encoder(checkpoint: Path, target: Path, options: InitOptions) -> EncoderSpec:
    """Copies a checkpoint's encoder: what it was trained with stays."""
    spec = validate_folder(checkpoint).encoder
    if options.pooling is not None and options.pooling is not spec.pooling:
        raise InvalidInputError(
            "pooling", "the checkpoint's encoder has another", limit=spec.pooling.value, value=options.pooling.value
        )
    wanted = {
        "max_passage_tokens": options.max_passage_tokens or spec.max_passage_tokens,
        "max_query_tokens": options.max_query_tokens or spec.max_query_tokens,
    }
    for field, value in wanted.items():
        if value > (limit := getattr(spec, field)):
            raise InvalidInputError(field, "is more than the checkpoint's encoder reads", limit=limit, value=value)
    shutil.copytree(checkpoint / ENCODER_DIR, target)
    return spec.model_copy(update=wanted)


def _add_reranker(
    source: Path | CompactDecoder, target: Path, name: str, options: InitOptions, query_tokens: int
) -> tuple[RerankerSpec, float]:
    """Saves the reranker; returns its fields and a first ``input_scale``: the mean L2 norm of its token embeddings."""
    if isinstance(source, CompactDecoder):
        model: PreTrainedModel = source.draw(max(options.max_passages, _COMPACT_POSITIONS))
        model.save_pretrained(target)
        return _reranker_spec(model, target, name, options, query_tokens, None, None), _COMPACT_SCALE
    model = load_backbone(source)
    if not _is_causal(model):
        raise CheckpointError(f"{source}: not a causal decoder; the reranker must be one")
    if options.layers is not None:
        keep_layers(model, options.layers, source)
    save_backbone(model, source, target)
    eos = read_json(target / "tokenizer_config.json", NO_FIELDS).get("eos_token")
    eos_token = eos["content"] if isinstance(eos, dict) else eos
    if not isinstance(eos_token, str):
        raise CheckpointError(f"{source}/tokenizer_config.json: eos_token is missing; the query's state is read there")
    chat = load_tokenizer(target).token_to_id("<|im_start|>") is not None
    spec = _reranker_spec(model, target, name, options, query_tokens, CHAT_PROMPT if chat else PLAIN_PROMPT, eos_token)
    needed = PromptTokenizer(target, spec).layout.length(query_tokens, options.max_passages)
    limit = getattr(model.config, "max_position_embeddings", needed)
    if needed > limit:
        raise CheckpointError(
            f"{source}: max_query_tokens {query_tokens} and max_passages {options.max_passages} need "
            f"{needed} positions, but the reranker has {limit}"
        )
    table = model.get_input_embeddings().get_parameter("weight").detach()
    return spec, float(torch.linalg.vector_norm(table, dim=-1, dtype=torch.float32).mean())


def _reranker_spec(
    model: PreTrainedModel,
    target: Path,
    name: str,
    options: InitOptions,
    query_tokens: int,
    prompt: PromptSpec | None,
    eos_token: str | None,
) -> RerankerSpec:
    return RerankerSpec(
        source=name,
        sha256=folder_sha256(target),
        hidden_size=model.config.hidden_size,
        max_query_tokens=query_tokens,
        max_passages=options.max_passages,
        prompt=prompt,
        eos_token=eos_token,
        slots=options.slots,
    )


def _is_causal(model: PreTrainedModel) -> bool:
    """Tells by trial whether a position sees only what stands before it; configs do not say it reliably."""
    middle = model.config.vocab_size // 2
    with torch.inference_mode():
        one, two = (
            model(input_ids=torch.tensor([[1, 2, 3, last]])).last_hidden_state[0, :3] for last in (middle, middle + 1)
        )
    return bool(torch.allclose(one, two, rtol=1e-3, atol=1e-4))


def _stored_pooling(folder: Path) -> Pooling | None:
    """What sentence-transformers wrote about pooling, or None."""
    config = read_json(folder / "1_Pooling" / "config.json", NO_FIELDS)
    for field, pooling in (
        ("pooling_mode_mean_tokens", Pooling.MEAN),
        ("pooling_mode_lasttoken", Pooling.LAST),
        ("pooling_mode_cls_token", Pooling.CLS),
    ):
        if config.get(field):
            return pooling
    if config:
        raise CheckpointError(f"{folder}/1_Pooling/config.json: none of mean, lasttoken and cls; give the pooling")
    return None


def _token_limit(folder: Path, model: PreTrainedModel) -> int:
    """Longest text that the encoder reads, from all files that limit it."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = (
        positions and positions - _first_position(model),
        read_json(folder / "tokenizer_config.json", NO_FIELDS).get("model_max_length"),
        read_json(folder / "sentence_bert_config.json", NO_FIELDS).get("max_seq_length"),
    )
    known = [limit for limit in limits if limit and 0 < limit < _LONGEST_SANE_LIMIT]
    return int(min([*known, LONGEST_TEXT_TOKENS]))


def _first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token: RoBERTa and its kin count from behind their padding's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def reranker_name(reranker: str | Path | CompactDecoder) -> str:
    """:func:`source_name`, of a decoder to draw as well."""
    return reranker.source if isinstance(reranker, CompactDecoder) else source_name(reranker)


def _short(source: str) -> str:
    return source.split(" ", maxsplit=1)[0].rsplit("/", 1)[-1]
