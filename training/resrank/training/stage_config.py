"""What a training run may decide about the model and its stages; ``resrank train --explain`` prints it.

Every field says its unit and where its default comes from. Nothing here is part of a checkpoint: what a trained model
is served with stands in ``resrank.json``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

_E2RANK = "E2Rank (arXiv 2510.22733), the nearest published constants"
_LORA = "LoRA (arXiv 2106.09685)"
_START = "a usual start for the default pair; docs/experiments/vectors.md says what was tried"
_CUSTOM = "common practice for fine-tuning transformers with AdamW"


class Mode(StrEnum):
    """Which weights of a backbone are trained."""

    FROZEN = "frozen"
    LORA = "lora"
    FULL = "full"


class GroupName(StrEnum):
    """Parameters that share a learning rate and are clipped together, apart from the others."""

    ENCODER = "encoder"
    RERANKER = "reranker"
    PROJECTORS = "projectors"
    GATE = "gate"


class Precision(StrEnum):
    """Of the backbones' products; weights, losses and scores are always fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


def _field(default: object, description: str, *, unit: str, source: str, **limits: Any) -> Any:
    extra: JsonDict = {"unit": unit, "source": source}
    if isinstance(default, type):
        return Field(default_factory=default, description=description, json_schema_extra=extra, **limits)
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class _Strict(BaseModel):
    # JSON, in which states and model cards keep a config, has no infinity: it would come back as null.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneTraining(_Strict):
    """How one backbone is trained in every stage that trains it."""

    mode: Mode = _field(
        Mode.LORA,
        "frozen: not trained; lora: PEFT adapters on frozen weights; full: every weight that the output depends on.",
        unit="frozen, lora or full",
        source=f"{_LORA}; the paper trains in full",
    )
    lora_rank: int = _field(16, "Rank r of the adapters' product B·A.", unit="dimensions", source=_LORA, ge=1, le=1024)
    lora_alpha: float = _field(
        32.0, "The adapters' product is scaled by lora_alpha / lora_rank.", unit="factor", source=_LORA, gt=0, le=1e4
    )
    lora_dropout: float = _field(
        0.0, "Share of a layer's inputs that its adapter does not see.", unit="share", source=_START, ge=0, lt=1
    )
    lora_targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = _field(
        "all-linear",
        "Which layers get an adapter: all linear ones, or those whose names end like these.",
        unit="all-linear or names",
        source="QLoRA (arXiv 2305.14314), section 4: adapters on all linear layers match full training",
    )
    dropout: bool = _field(
        False,
        "Whether the backbone's own dropout, where its config has one, is at work in training. Without it a step sees "
        "the vectors that an index will hold, and takes two thirds of the time on a CPU.",
        unit="true or false",
        source="decoders are trained without; measured on MiniLM-L6, whose config says 0.1",
    )
    train_token_embeddings: bool = _field(
        False,
        "With mode full: whether the table of token embeddings is trained too. It is a large part of a small model, "
        "and a step changes few of its rows.",
        unit="true or false",
        source=_CUSTOM,
    )


class GateTraining(_Strict):
    """The gate g of the residual fusion."""

    start: float | None = _field(
        None,
        "g before the first step; null keeps the checkpoint's. At 0 nothing but g itself has a gradient at first.",
        unit="factor on P_out(h)",
        source="the checkpoint",
        ge=-1e3,
        le=1e3,
    )
    learned: bool = _field(True, "Whether g is trained, or stays where it starts.", unit="true or false", source=_START)


class FusionTraining(_Strict):
    """What joins the two backbones."""

    gate: GateTraining = _field(GateTraining, "The gate g.", unit="section", source="docs/architecture.md")


class ComputeConfig(_Strict):
    """How passes are computed."""

    precision: Precision = _field(
        Precision.AUTO,
        "bf16: autocast over fp32 weights; fp32: no autocast; auto: bf16 where the device multiplies in it (GPUs, CPUs "
        "with AVX-512 BF16 or AMX), else fp32. A run keeps what auto was when it began.",
        unit="auto, fp32 or bf16",
        source="measured: with AVX-512 BF16 bf16 is fastest, with AVX2 alone it takes six times as long as fp32",
    )
    gradient_checkpointing: bool = _field(
        False,
        "Whether layers are computed again in the backward pass instead of kept: a third more time, far less memory.",
        unit="true or false",
        source="arXiv 1604.06174",
    )
    encode_batch_tokens: int = _field(
        4096,
        "Tokens, padding included, in one encoder pass without gradients. More suit a GPU.",
        unit="tokens",
        source="measured with MiniLM-L6 on one core: 56 passages/s at 4096, 40 at 16384",
        ge=1,
    )


class RankingLossConfig(_Strict):
    """L_rank, the listwise loss on the scores s_i."""

    kind: Literal["ranknet", "listmle", "softmax"] = _field(
        "ranknet",
        "ranknet: ordered pairs; listmle: likelihood of the order; softmax: cross-entropy with the labels' gains.",
        unit="ranknet, listmle or softmax",
        source="arXiv 2604.22180 trains with RankNet",
    )
    temperature: float = _field(0.1, "τ2: scores are divided by it.", unit="cosine", source=_E2RANK, gt=0)
    weight: float = _field(2.0, "Factor on L_rank in the sum.", unit="factor", source=_E2RANK, gt=0)
    penalty: float = _field(
        0.0,
        "p in p · mean (s_i − A(cos(e_q, e_i)))², added to L_rank: holds scores near the retriever's, so that what was "
        "learned on one kind of collection costs nothing on another.",
        unit="factor",
        source="0 leaves it out; 40 on e5-small's mapped cosines, docs/training.md",
        ge=0,
        le=1e6,
    )


class ContrastiveConfig(_Strict):
    """L_enc, InfoNCE on the encoder's embeddings."""

    temperature: float = _field(0.03, "τ1: cosines are divided by it.", unit="cosine", source=_E2RANK, gt=0)
    weight: float = _field(1.0, "λ, factor on L_enc in the sum; 0 leaves it out.", unit="factor", source=_E2RANK, ge=0)
    hard_negatives: int = _field(
        7,
        "Passages of a query's own list, not labelled relevant, that count as its negatives; those of the other lists "
        "in the pass always do.",
        unit="passages",
        source=_CUSTOM,
        ge=0,
    )
    false_negative_margin: float = _field(
        0.1,
        "A passage that is not labelled relevant but is more similar to the query than the best relevant one by more "
        "than this is left out: it is probably relevant.",
        unit="mapped cosine, A(c)",
        source="Qwen3-Embedding (arXiv 2506.05176), section 3: the mask m_ij",
        ge=-2,
        le=2,
    )


def _learning_rate(default: float) -> Any:
    return _field(default, "Highest learning rate; 0 freezes the group.", unit="per step", source=_START, ge=0)


def _weight_decay(default: float) -> Any:
    return _field(default, "Decoupled decay of matrices; vectors never decay.", unit="per step", source=_CUSTOM, ge=0)


class EncodingConfig(_Strict):
    """How the passages of a step are encoded where gradients flow into the encoder."""

    chunk_passages: int = _field(
        8,
        "Passages in one pass, those of like length together, so that little is padding. More suit a GPU.",
        unit="passages",
        source="measured with MiniLM-L6 on one core: a step over 72 passages takes 3.1 s in eights, 8.0 s at once",
        ge=1,
    )
    kept_passages: int = _field(
        64,
        "Passages whose first pass is kept in memory for the backward pass, at least one chunk. Those beyond are "
        "computed twice (gradient cache), with the same result.",
        unit="passages",
        source="GradCache (arXiv 2101.06983); about 2 GB for MiniLM-L6 and passages of 120 tokens",
        ge=1,
    )


class GroupOptimization(_Strict):
    """AdamW on one group of parameters.

    Each group has a class of its own, so that a config that sets one field keeps the group's defaults for the others.
    """

    learning_rate: float = _learning_rate(1e-4)
    weight_decay: float = _weight_decay(0.01)
    clip_norm: float = _field(
        1.0,
        "The group's gradient is scaled down to this L2 norm; each group apart, since one norm over all lets the "
        "backbones starve the projectors.",
        unit="L2 norm",
        source=_START,
        gt=0,
    )


class EncoderOptimization(GroupOptimization):
    """AdamW on the encoder."""

    learning_rate: float = _learning_rate(5e-5)


class ProjectorsOptimization(GroupOptimization):
    """AdamW on P_in and P_out."""

    learning_rate: float = _learning_rate(5e-4)
    weight_decay: float = _weight_decay(0.0)


class GateOptimization(GroupOptimization):
    """AdamW on the learned gate."""

    learning_rate: float = _learning_rate(5e-3)
    weight_decay: float = _weight_decay(0.0)


class StageConfig(_Strict):
    """What all stages have: length, batch and schedule."""

    group_names: ClassVar[tuple[GroupName, ...]] = ()

    steps: int = _field(1000, "Optimizer steps.", unit="steps", source=_START, ge=1)
    lists_per_step: int = _field(
        16, "Candidate lists whose gradients make one step, over all processes.", unit="lists", source=_START, ge=1
    )
    accumulate: int = _field(
        1,
        "Passes that a process divides its lists of one step into; divides lists_per_step.",
        unit="passes",
        source="1: the fastest where memory suffices",
        ge=1,
    )
    warmup_share: float = _field(
        0.05,
        "Share of the steps over which learning rates rise linearly, before they fall by a cosine to 0.",
        unit="share of steps",
        source=_CUSTOM,
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _passes_are_equal(self) -> Self:
        if self.lists_per_step % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide lists_per_step {self.lists_per_step}")
        return self

    @property
    def groups(self) -> dict[GroupName, GroupOptimization]:
        """The groups that this stage trains, with how."""
        return {name: getattr(self, name.value) for name in self.group_names}


class EncoderAlignmentConfig(StageConfig):
    """Stage 1a: the encoder alone, contrastively."""

    group_names = (GroupName.ENCODER,)

    contrastive: ContrastiveConfig = _field(ContrastiveConfig, "L_enc.", unit="section", source="docs/architecture.md")
    encoder: EncoderOptimization = _field(EncoderOptimization, "The encoder's AdamW.", unit="section", source=_START)
    encoding: EncodingConfig = _field(
        EncodingConfig, "Passes of the encoder inside a step.", unit="section", source="measured"
    )


class RerankerAlignmentConfig(StageConfig):
    """Stage 1b: projectors, gate and reranker listwise, on embeddings computed once."""

    group_names = (GroupName.RERANKER, GroupName.PROJECTORS, GroupName.GATE)

    ranking: RankingLossConfig = _field(RankingLossConfig, "L_rank.", unit="section", source="docs/architecture.md")
    reranker: GroupOptimization = _field(GroupOptimization, "The reranker's AdamW.", unit="section", source=_START)
    projectors: ProjectorsOptimization = _field(
        ProjectorsOptimization, "P_in's and P_out's.", unit="section", source=_START
    )
    gate: GateOptimization = _field(GateOptimization, "The learned gate's.", unit="section", source=_START)


class JointConfig(StageConfig):
    """Stage 2: everything end to end, passages encoded inside the step."""

    group_names = (GroupName.ENCODER, GroupName.RERANKER, GroupName.PROJECTORS, GroupName.GATE)

    ranking: RankingLossConfig = _field(RankingLossConfig, "L_rank.", unit="section", source="docs/architecture.md")
    contrastive: ContrastiveConfig = _field(ContrastiveConfig, "L_enc.", unit="section", source="docs/architecture.md")
    encoder: EncoderOptimization = _field(EncoderOptimization, "The encoder's AdamW.", unit="section", source=_START)
    reranker: GroupOptimization = _field(GroupOptimization, "The reranker's.", unit="section", source=_START)
    projectors: ProjectorsOptimization = _field(
        ProjectorsOptimization, "P_in's and P_out's.", unit="section", source=_START
    )
    gate: GateOptimization = _field(GateOptimization, "The learned gate's.", unit="section", source=_START)
    encoding: EncodingConfig = _field(
        EncodingConfig, "Passes of the encoder inside a step.", unit="section", source="measured"
    )


class ModelConfig(_Strict):
    """Which parts of the model are trained, and how they are computed."""

    encoder: BackboneTraining = _field(
        BackboneTraining, "The Encoder-LLM.", unit="section", source="docs/architecture.md"
    )
    reranker: BackboneTraining = _field(
        BackboneTraining, "The Reranker-LLM.", unit="section", source="docs/architecture.md"
    )
    fusion: FusionTraining = _field(
        FusionTraining, "Projectors and gate.", unit="section", source="docs/architecture.md"
    )
    compute: ComputeConfig = _field(ComputeConfig, "Precision and memory.", unit="section", source="measured")


class StagesConfig(_Strict):
    """The stages that run, in this order; null leaves one out."""

    encoder_alignment: EncoderAlignmentConfig | None = _field(
        None, "Stage 1a: the encoder, contrastively.", unit="section or null", source="arXiv 2604.22180, stage 1"
    )
    reranker_alignment: RerankerAlignmentConfig | None = _field(
        None,
        "Stage 1b: projectors, gate and reranker on embeddings computed once.",
        unit="section or null",
        source="arXiv 2604.22180, stage 1",
    )
    joint: JointConfig | None = _field(
        None, "Stage 2: encoder and reranker together.", unit="section or null", source="arXiv 2604.22180, stage 2"
    )

    @model_validator(mode="after")
    def _something_runs(self) -> Self:
        if self.encoder_alignment is None and self.reranker_alignment is None and self.joint is None:
            raise ValueError("encoder_alignment, reranker_alignment and joint are all null: nothing would be trained")
        return self
