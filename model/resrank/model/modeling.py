"""The torch model of docs/architecture.md: the reference for every engine, and what training trains.

Imported by name only; the rest of ``resrank`` never pulls torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from resrank.core.checkpoint import (
    ENCODER_DIR,
    P_IN,
    P_OUT,
    PROJECTORS_FILE,
    RERANKER_DIR,
    SCORE_HEAD,
    CheckpointSpec,
    Norm,
    Pooling,
    projector_shapes,
    validate_folder,
)
from resrank.core.errors import CheckpointError
from resrank.model.encoder_attention import biased_attention, is_biased, token_mask
from resrank.model.weights import load_backbone, load_projectors

EXPORT_ATTENTION = "resrank"
"""Name under which transformers finds :func:`maskless_attention`."""

_TINY = 1e-12  # the same guard as in resrank.core.scoring


def maskless_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention without a materialised [S, S] mask, for graphs that engines fuse.

    Registered with transformers without a mask function, so causal decoders get no mask at all (rows are contiguous
    and padded on the right) and bidirectional encoders pass the [B, 1, 1, L] one they are given.

    Args:
        module: The attention layer; ``is_causal`` says which kind.
        query: [B, H, S, D].
        key: [B, H_kv, S, D], H a multiple of H_kv (grouped-query attention).
        value: [B, H_kv, S, D].
        attention_mask: Boolean [B, 1, 1, S], True on tokens; None for causal layers.
        scaling: Factor on the products, 1/sqrt(D) by default.
        dropout: Probability in training.

    Returns:
        [B, S, H, D] and None for the attention weights that nobody reads.
    """
    grouped = key.shape[1] != query.shape[1]
    context = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=attention_mask is None and bool(getattr(module, "is_causal", False)),
        scale=scaling,
        enable_gqa=grouped,
    )
    return context.transpose(1, 2).contiguous(), None


AttentionInterface.register(EXPORT_ATTENTION, maskless_attention)

PRODUCT_ATTENTION = "resrank_products"
"""Name under which transformers finds :func:`product_attention`."""


def product_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """The same for graphs in which ONNX has no operator for attention: written out where there is a mask.

    torch writes ``scaled_dot_product_attention`` with a mask out as well, but with a guard against rows that attend to
    nothing, which no row here is, and with a detour for the key's transposition. OpenVINO finds its fused attention
    only without both.

    Args:
        module: The layer.
        query: [B, H, S, D].
        key: [B, H_kv, S, D], with as many heads as ``query`` where there is a mask.
        value: [B, H_kv, S, D].
        attention_mask: Boolean, broadcast to [B, H, S, S], True where a position is seen; None for causal layers.
        scaling: Factor on the products, 1/sqrt(D) by default.
        **others: Of :func:`maskless_attention`.

    Returns:
        [B, S, H, D] and None for the attention weights that nobody reads.
    """
    if attention_mask is None or key.shape[1] != query.shape[1]:
        return maskless_attention(module, query, key, value, attention_mask, scaling, **others)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    weights = ((query * scale) @ key.transpose(-1, -2) + bias).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(PRODUCT_ATTENTION, product_attention)


class RerankerOutputs(NamedTuple):
    """What one pass says of its candidates; None for what the checkpoint does not have.

    Attributes:
        passage_states: P_out(h_i), FP32 [B, N, d].
        query_state: P_out(h_EOS), FP32 [B, d].
        score_residuals: w.h_i, FP32 [B, N].
    """

    passage_states: Tensor | None
    query_state: Tensor | None
    score_residuals: Tensor | None


class ScoreHead(nn.Module):
    """w: one number of each hidden state.

    Attributes:
        weight: FP32 [h].
    """

    def __init__(self, weight: Tensor) -> None:
        """Takes w over.

        Args:
            weight: FP32 [h].
        """
        super().__init__()
        self.weight = nn.Parameter(weight.float())

    def forward(self, hidden: Tensor) -> Tensor:
        """FP32 [B, N, h] to FP32 [B, N]."""
        return (hidden * self.weight).sum(dim=-1)


class ResRankModel(nn.Module):
    """Encoder-LLM, Reranker-LLM and what joins them.

    Attributes:
        spec: The checkpoint's fields.
        encoder: Any Hugging Face encoder (``AutoModel``).
        reranker: The decoder stack of any causal language model, without its ``lm_head``.
        p_in: [F] to [h], or the identity.
        p_out: [h] to [d], or the identity; not read without a vector residual.
        score_head: [h] to a number, or None without a score residual.
        residual_gate: g, a buffer so that it follows the model's device.
    """

    def __init__(
        self,
        spec: CheckpointSpec,
        encoder: PreTrainedModel,
        reranker: PreTrainedModel,
        p_in: Tensor | None = None,
        p_out: Tensor | None = None,
        score_head: Tensor | None = None,
    ) -> None:
        """Joins two backbones.

        Args:
            spec: The checkpoint's fields; sizes must fit the backbones.
            encoder: The encoder backbone.
            reranker: The decoder backbone.
            p_in: FP32 [h, F], only with the linear projector.
            p_out: FP32 [d, h], likewise, and only with a vector residual.
            score_head: FP32 [h], only with a score residual.

        Raises:
            CheckpointError: The backbones do not have the sizes that ``spec`` says, or the projectors are not those of
                :func:`resrank.core.checkpoint.projector_shapes`.
        """
        super().__init__()
        d, h = spec.encoder.embedding_dim, spec.reranker.hidden_size
        for field, module, size in (
            ("encoder.embedding_dim", encoder, d),
            ("reranker.hidden_size", reranker, h),
        ):
            found = int(module.config.hidden_size)
            if found != size:
                raise CheckpointError(f"{field}: {size}, but the backbone's hidden size is {found}")
        self.spec = spec
        self.encoder = encoder
        self.reranker = reranker
        given = {P_IN: p_in, P_OUT: p_out, SCORE_HEAD: score_head}
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items() if tensor is not None}
        if shapes != (expected := projector_shapes(spec.encoder, spec.reranker, spec.fusion)):
            raise CheckpointError(f"{PROJECTORS_FILE}: holds {shapes}, not {expected}")
        self.p_in: nn.Module = _projector(p_in) if p_in is not None else nn.Identity()
        self.p_out: nn.Module = _projector(p_out) if p_out is not None else nn.Identity()
        self.score_head = ScoreHead(score_head) if score_head is not None else None
        self.register_buffer("residual_gate", torch.tensor(spec.fusion.residual_gate), persistent=False)

    @classmethod
    def from_checkpoint(cls, folder: Path, *, verify_hashes: bool = True) -> Self:
        """Loads a checkpoint folder in fp32 and evaluation mode.

        Args:
            folder: A checkpoint as docs/architecture.md lays it out.
            verify_hashes: Whether the weights' digests are computed again.

        Raises:
            CheckpointError: The folder is not a valid checkpoint.
        """
        spec = validate_folder(folder, verify_hashes=verify_hashes)
        encoder, reranker = load_backbone(folder / ENCODER_DIR), load_backbone(folder / RERANKER_DIR)
        return cls(spec, encoder, reranker, *load_projectors(folder, spec)).eval()

    @property
    def encoder_is_causal(self) -> bool:
        """Whether no position of the encoder sees one behind it (last-token pooling families): it needs no mask."""
        return _is_causal(self.encoder)

    def reranker_parts(self) -> tuple[nn.Module, ...]:
        """The modules that :meth:`outputs` runs."""
        head = () if self.score_head is None else (self.score_head,)
        return (self.reranker, self.p_in, self.p_out, *head)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Turns texts into embeddings: e = Enc(text).

        Args:
            input_ids: INT64 [B, L], padded on the right.
            attention_mask: INT64 [B, L], 1 on tokens.

        Returns:
            FP32 [B, d], pooled and, with ``embedding_norm: l2``, of length 1.
        """
        mask: Tensor | dict[str, Tensor] | None = attention_mask
        if self.encoder.config._attn_implementation in (EXPORT_ATTENTION, PRODUCT_ATTENTION):
            mask = None if self.encoder_is_causal else token_mask(self.encoder.config, attention_mask)
        hidden = self.encoder(input_ids=input_ids, attention_mask=mask, **_NO_CACHE[_is_decoder(self.encoder)])[0]
        pooled = self._pool(hidden.float(), attention_mask)
        return functional.normalize(pooled, dim=-1) if self.spec.encoder.embedding_norm is Norm.L2 else pooled

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        match self.spec.encoder.pooling:
            case Pooling.CLS:
                return hidden[:, 0]
            case Pooling.LAST:
                last = attention_mask.sum(dim=1, keepdim=True) - 1
                return _gather_positions(hidden, last)[:, 0]
            case Pooling.MEAN:
                weights = attention_mask.to(hidden.dtype)[:, :, None]
                return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def outputs(
        self,
        input_ids: Tensor,
        passage_positions: Tensor,
        last_position: Tensor | None,
        candidates: Tensor | None = None,
        relations: Tensor | None = None,
    ) -> RerankerOutputs:
        """One causal pass over the query's tokens and one position per passage.

        Args:
            input_ids: INT64 [B, S] of ``resrank.core.prompt``, a placeholder at each slot.
            passage_positions: INT64 [B, N], the slots.
            last_position: INT64 [B, 1], where EOS stands; read with a vector residual.
            candidates: FP16 or FP32 [B, N, d], the passages' embeddings e_i; read where slots hold vectors.
            relations: FP32 [B, N, 3K + 4], their relations r_i; read where slots hold them.

        Returns:
            The parts that the checkpoint has.
        """
        if not self.spec.fusion.has_vector_residual:
            last_position = None
        elif last_position is None:
            raise ValueError("last_position is needed: the checkpoint has a vector residual")
        hidden = self.hidden_states(input_ids, passage_positions, last_position, candidates, relations)
        slots = passage_positions.shape[1]
        residuals = self.score_head(hidden[:, :slots]) if self.score_head is not None else None
        if last_position is None:
            return RerankerOutputs(None, None, residuals)
        projected = self.p_out(hidden)
        return RerankerOutputs(projected[:, :-1], projected[:, -1], residuals)

    def states(
        self,
        input_ids: Tensor,
        passage_positions: Tensor,
        last_position: Tensor,
        candidates: Tensor | None = None,
        relations: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The states of :meth:`outputs`, whose arguments these are, for a checkpoint with a vector residual.

        Returns:
            P_out(h_i) FP32 [B, N, d] and P_out(h_EOS) FP32 [B, d].
        """
        passages, query, _ = self.outputs(input_ids, passage_positions, last_position, candidates, relations)
        if passages is None or query is None:
            raise ValueError("the checkpoint has no vector residual, and so no states")
        return passages, query

    def hidden_states(
        self,
        input_ids: Tensor,
        passage_positions: Tensor,
        last_position: Tensor | None,
        candidates: Tensor | None = None,
        relations: Tensor | None = None,
    ) -> Tensor:
        """The decoder's last hidden states before P_out and w; the arguments are those of :meth:`outputs`.

        Returns:
            FP32 [B, N + 1, h]: h_i of each slot, then h_EOS; without ``last_position`` [B, N, h].
        """
        tokens = self.reranker.get_input_embeddings()(input_ids)
        x = self.p_in(self._slot_inputs(candidates, relations)) * self.spec.fusion.input_scale
        if x.requires_grad:
            # Padding stands at the slot of its row's last candidate, and scatter would hand that slot's gradient to
            # each of them: only the first passes it on.
            padding = passage_positions.diff(dim=1, prepend=passage_positions[:, :1] - 1) == 0
            x = torch.where(padding[:, :, None], x.detach(), x)
        slots = passage_positions[:, :, None].expand(-1, -1, tokens.shape[-1])
        inputs = tokens.scatter(1, slots, x.to(tokens.dtype))
        hidden = self.reranker(inputs_embeds=inputs, use_cache=False)[0].float()
        if last_position is None:
            return _gather_positions(hidden, passage_positions)
        return _gather_positions(hidden, torch.cat([passage_positions, last_position], dim=1))

    def _slot_inputs(self, candidates: Tensor | None, relations: Tensor | None) -> Tensor:
        """e_i, r_i or [e_i ; r_i], FP32 [B, N, F]."""
        content = self.spec.reranker.slots.content
        parts = []
        for name, given, read in (
            ("candidates", candidates, content.has_vectors),
            ("relations", relations, content.has_relations),
        ):
            if read and given is None:
                raise ValueError(f"{name} are needed: the checkpoint's slots hold {content.value}")
            if read and given is not None:
                parts.append(given.float())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def score(
        self,
        passage_states: Tensor | None,
        query_state: Tensor | None,
        candidates: Tensor,
        query_embedding: Tensor | None,
        score_residuals: Tensor | None = None,
    ) -> Tensor:
        """Residual fusion and cosine, differentiable; ``resrank.core.scoring`` is its NumPy twin for serving.

        Args:
            passage_states: FP32 [B, N, d] of :meth:`outputs`.
            query_state: FP32 [B, d], likewise.
            candidates: FP16 or FP32 [B, N, d], e_i.
            query_embedding: FP32 [B, d], e_q; read only with ``query_residual``.
            score_residuals: FP32 [B, N] of :meth:`outputs`.

        Returns:
            FP32 [B, N]: A of the cosines, plus the score residual.

        Raises:
            ValueError: The checkpoint has ``query_residual`` and no query embedding was given, or a part is missing
                that its scores are made of.
        """
        fusion = self.spec.fusion
        if fusion.query_residual and query_embedding is None:
            raise ValueError("query_embedding is needed: the checkpoint has query_residual")
        z_passages, z_query = candidates.float(), query_embedding
        if fusion.has_vector_residual:
            if passage_states is None or query_state is None:
                raise ValueError("states are needed: the checkpoint has a vector residual")
            z_passages = self._gated(passage_states) + z_passages
            z_query = self._gated(query_state)
            if fusion.query_residual and query_embedding is not None:
                z_query = z_query + query_embedding
        scores = functional.cosine_similarity(z_passages, cast("Tensor", z_query)[:, None], dim=-1, eps=_TINY)
        if fusion.cosine_map is not None:
            scores = fusion.cosine_map.apply(scores)
        if fusion.score_residual == 0:
            return scores
        if score_residuals is None:
            raise ValueError("score_residuals are needed: the checkpoint has a score residual")
        return scores + fusion.score_residual * score_residuals

    def _gated(self, states: Tensor) -> Tensor:
        if self.spec.fusion.state_norm is Norm.L2:
            states = functional.normalize(states, dim=-1, eps=_TINY)
        return cast("Tensor", self.residual_gate) * states

    @contextlib.contextmanager
    def exporting(self, attention: str = EXPORT_ATTENTION) -> Iterator[Self]:
        """Within the context both backbones attend in a form that engines fuse.

        Args:
            attention: ``EXPORT_ATTENTION`` or ``PRODUCT_ATTENTION``.
        """
        with contextlib.ExitStack() as stack:
            for backbone in (self.encoder, self.reranker):
                stack.enter_context(_fusible_attention(backbone, attention))
            yield self


@contextlib.contextmanager
def _fusible_attention(backbone: PreTrainedModel, attention: str) -> Iterator[None]:
    before = backbone.config._attn_implementation
    if is_biased(backbone.config):
        with biased_attention(backbone):
            backbone.config._attn_implementation = attention  # so that transformers passes the mask as it is
            try:
                yield
            finally:
                backbone.config._attn_implementation = before
        return
    backbone.set_attn_implementation(attention)
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


_NO_CACHE: dict[bool, dict[str, bool]] = {True: {"use_cache": False}, False: {}}  # encoders do not take the argument


def _is_decoder(backbone: PreTrainedModel) -> bool:
    flags = {bool(module.is_causal) for module in backbone.modules() if hasattr(module, "is_causal")}
    return flags == {True}


def _is_causal(backbone: PreTrainedModel) -> bool:
    # A decoder that was made an encoder says so in its config (GTE-Qwen2), and transformers masks padding alone then.
    return _is_decoder(backbone) and getattr(backbone.config, "is_causal", None) is not False


def _projector(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.float())
    return linear


def _gather_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """[B, S, h] and INT64 [B, P] to [B, P, h]."""
    return hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))
