"""The adapter checkpoint: what training changed, and which base weights it changed.

A folder that holds ``resrank.json`` with ``"kind": "adapter"``, the two backbones (config, tokenizer) and the
projectors. A backbone is one of

- a base as it is: no weights, the base's digest alone;
- a base and what PEFT changed about it, in PEFT's two files;
- whole, with its weights: a small decoder that has no base, say.

A base may be the first layers of a larger model: as many as the config says. Tokenizer and config come along because
they are part of the model: merged anywhere, an adapter gives the same checkpoint to the byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resrank.core.calibration_file import read_calibration_file
from resrank.core.checkpoint import (
    ENCODER_DIR,
    RERANKER_DIR,
    EncoderSpec,
    FusionSpec,
    RerankerSpec,
    canonical_sha256,
    folder_sha256,
    is_adapter,
    read_spec,
    refuse_contradictions,
    refuse_missing_files,
    validate_projectors,
)
from resrank.core.errors import CheckpointError
from resrank.core.names import CHECKPOINT_FILE
from resrank.core.strict_json import Sha256, StrictModel, read_fields
from resrank.core.weights import WEIGHTS_FILE, StoredTensor, read_tensors

LORA_CONFIG_FILE = "adapter_config.json"
LORA_WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_MAX_RANK = 4096
# Fields of PEFT's LoraConfig that say nothing about what the adapter computes.
_WITHOUT_EFFECT = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",  # in training only
        "megatron_core",
        "peft_version",
        "qalora_group_size",  # read with use_qalora only
        "revision",
        "task_type",
    )
)
# These draw A and B only; the others (PiSSA, OLoRA, LoftQ …) change the base weights as well.
_PLAIN_STARTS = (True, False, "gaussian")


class AdaptedEncoderSpec(EncoderSpec):
    """The encoder's fields; ``source`` names its base, ``sha256`` is of its folder in the adapter checkpoint.

    Attributes:
        base_sha256: :func:`resrank.core.weights.weights_sha256` of the base; None where the weights are here.
    """

    base_sha256: Sha256 | None = Field(default=None, exclude_if=lambda value: value is None)


class AdaptedRerankerSpec(RerankerSpec):
    """The reranker's fields; ``source`` names its base, ``sha256`` is of its folder in the adapter checkpoint.

    Attributes:
        base_sha256: :func:`resrank.core.weights.weights_sha256` of the base; None where the weights are here.
    """

    base_sha256: Sha256 | None = Field(default=None, exclude_if=lambda value: value is None)


class AdapterSpec(StrictModel):
    """``resrank.json`` of an adapter checkpoint, validated as a whole."""

    schema_version: Literal[1] = 1
    kind: Literal["adapter"] = "adapter"
    name: str = Field(min_length=1, max_length=200)
    encoder: AdaptedEncoderSpec
    reranker: AdaptedRerankerSpec
    fusion: FusionSpec

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        refuse_contradictions(self.encoder, self.reranker, self.fusion)
        return self

    def digest(self) -> str:
        """Hex SHA-256 over the canonical JSON of all fields, which hold the digests of all other files."""
        return canonical_sha256(self.model_dump(mode="json"))


class _LoraConfig(BaseModel):
    """The fields of PEFT's ``LoraConfig`` that decide what a plain adapter computes."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=_MAX_RANK)
    lora_alpha: float = Field(gt=0, le=1e6)
    target_modules: list[str] = Field(min_length=1)
    exclude_modules: list[str] | None = None
    use_rslora: bool = False
    init_lora_weights: bool | str = True


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter of one backbone: W + scaling * B @ A for every adapted weight W.

    Attributes:
        folder: Where its two files lie.
        rank: r.
        scaling: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA.
        target_modules: Ends of the names of the linear layers it adapts.
        exclude_modules: Ends of the names of those it leaves out all the same.
        modules: Name of every adapted layer to its A [r, in] and B [out, r].
    """

    folder: Path
    rank: int
    scaling: float
    target_modules: tuple[str, ...]
    exclude_modules: tuple[str, ...]
    modules: Mapping[str, tuple[StoredTensor, StoredTensor]]


def write_adapter_spec(spec: AdapterSpec, folder: Path) -> None:
    """Writes ``resrank.json`` into an adapter checkpoint's folder."""
    (folder / CHECKPOINT_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def validate_adapter(folder: Path) -> AdapterSpec:
    """Reads an adapter checkpoint and checks that everything it promises is there.

    Args:
        folder: The adapter checkpoint's folder.

    Raises:
        CheckpointError: Something is missing, is a pickle, is not plain LoRA, or differs from ``resrank.json``.
    """
    if not is_adapter(folder):
        read_spec(folder)  # says what is wrong, if it is not a full one either
        raise CheckpointError(f"{folder}: a full checkpoint, not an adapter checkpoint: there is nothing to merge")
    spec = read_fields(AdapterSpec, folder / CHECKPOINT_FILE)
    sides: tuple[tuple[str, AdaptedEncoderSpec | AdaptedRerankerSpec], ...] = (
        (ENCODER_DIR, spec.encoder),
        (RERANKER_DIR, spec.reranker),
    )
    for name, fields in sides:
        refuse_missing_files(folder / name, reads_text=name == ENCODER_DIR or spec.reranker.prompt is not None)
        if (found := folder_sha256(folder / name)) != fields.sha256:
            raise CheckpointError(f"{folder / name}: sha256 is {found}, but {CHECKPOINT_FILE} says {fields.sha256}")
        _refuse_two_forms(folder / name, fields.base_sha256)
    validate_projectors(folder, spec, verify_hash=True)
    read_calibration_file(folder)  # whether it is this checkpoint's is known when it is merged
    return spec


def has_whole_weights(folder: Path) -> bool:
    """Whether a backbone of an adapter checkpoint comes with all its weights.

    Args:
        folder: ``encoder/`` or ``reranker/`` of an adapter checkpoint.
    """
    return (folder / WEIGHTS_FILE).is_file()


def _refuse_two_forms(folder: Path, base_sha256: str | None) -> None:
    lora = read_lora(folder)
    if not has_whole_weights(folder):
        if base_sha256 is None:
            raise CheckpointError(f"{folder / WEIGHTS_FILE}: missing, but {CHECKPOINT_FILE} names no base_sha256")
        return
    if base_sha256 is not None or lora is not None:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: present, but the backbone is said to have a base: its weights are either whole "
            "or an adapter of a base"
        )
    read_tensors(folder / WEIGHTS_FILE)


def was_trained(folder: Path) -> bool:
    """Whether a backbone of an adapter checkpoint is another than its base: by LoRA, or with weights of its own.

    Args:
        folder: ``encoder/`` or ``reranker/`` of an adapter checkpoint.
    """
    return has_whole_weights(folder) or read_lora(folder) is not None


def read_lora(folder: Path) -> Lora | None:
    """Reads a backbone's adapter: its config and, from the header, the shapes of its tensors.

    Args:
        folder: ``encoder/`` or ``reranker/`` of an adapter checkpoint.

    Returns:
        The adapter, or None where the backbone was not trained.

    Raises:
        CheckpointError: The files are not those of one plain LoRA adapter; the message names field or tensor.
    """
    config_file, weights_file = folder / LORA_CONFIG_FILE, folder / LORA_WEIGHTS_FILE
    if not config_file.is_file() and not weights_file.is_file():
        return None
    if not weights_file.is_file():
        raise CheckpointError(f"{weights_file}: missing (only safetensors are read, never pickles)")
    try:
        config = read_fields(_LoraConfig, config_file)
    except FileNotFoundError:
        raise CheckpointError(f"{config_file}: missing beside {LORA_WEIGHTS_FILE}") from None
    _refuse_more_than_plain_lora(config, config_file)
    modules = _pairs(weights_file, config.r)
    scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    targets, excluded = tuple(config.target_modules), tuple(config.exclude_modules or ())
    return Lora(folder, config.r, scaling, targets, excluded, modules)


def _refuse_more_than_plain_lora(config: _LoraConfig, file: Path) -> None:
    """Any field that is set and not known to be without effect could change what the adapter computes."""
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights is {config.init_lora_weights!r}, which changes the base weights too, but only "
            "plain LoRA can be merged"
        )
    extra: dict[str, Any] = config.model_extra or {}
    for field, value in extra.items():
        if field not in _WITHOUT_EFFECT and value not in (None, False, "none", [], {}):
            raise CheckpointError(f"{file}: {field} is {value!r}, but only plain LoRA (and rsLoRA) can be merged")


def _pairs(file: Path, rank: int) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    tensors = read_tensors(file)
    for name, tensor in tensors.items():
        if not name.startswith(_PREFIX) or not name.endswith((_A, _B)):
            raise CheckpointError(f"{file}: {name} is neither {_PREFIX}….lora_A.weight nor ….lora_B.weight")
        if len(tensor.shape) != 2 or tensor.shape[0 if name.endswith(_A) else 1] != rank:
            raise CheckpointError(f"{file}: {name} is {list(tensor.shape)}, which is not of rank {rank}")
        partner = name.removesuffix(_A) + _B if name.endswith(_A) else name.removesuffix(_B) + _A
        if partner not in tensors:
            raise CheckpointError(f"{file}: {name} has no {partner} beside it")
        if tensor.dtype not in ("F16", "BF16", "F32"):
            raise CheckpointError(f"{file}: {name} is {tensor.dtype}, not F16, BF16 or F32")
    names = sorted(name.removesuffix(_A) for name in tensors if name.endswith(_A))
    if not names:
        raise CheckpointError(f"{file}: holds no tensors")
    return {name.removeprefix(_PREFIX): (tensors[name + _A], tensors[name + _B]) for name in names}


def refuse_foreign_lora(lora: Lora, base: Mapping[str, StoredTensor]) -> None:
    """Holds an adapter against the weights it is to be merged into.

    Args:
        lora: The adapter.
        base: The base's tensors, by name.

    Raises:
        CheckpointError: An adapted layer does not exist in the base or has other sizes, or a layer that
            ``target_modules`` names has no tensors.
    """
    file = lora.folder / LORA_WEIGHTS_FILE
    for module, (a, b) in lora.modules.items():
        weight = base.get(f"{module}.weight")
        if weight is None:
            raise CheckpointError(f"{file}: {_PREFIX}{module}{_A}: the base has no weight {module}.weight")
        expected = (b.shape[0], a.shape[1])
        if weight.shape != expected:
            raise CheckpointError(
                f"{file}: {_PREFIX}{module}: B @ A is {list(expected)}, but the base's {module}.weight is "
                f"{list(weight.shape)}"
            )
    for name, weight in sorted(base.items()):
        module = name.removesuffix(".weight")
        wanted = _ends_like(module, lora.target_modules) and not _ends_like(module, lora.exclude_modules)
        if wanted and module != name and len(weight.shape) == 2 and module not in lora.modules:
            raise CheckpointError(
                f"{lora.folder / LORA_CONFIG_FILE}: target_modules names {module}, but {LORA_WEIGHTS_FILE} has no "
                "tensors for it"
            )


def _ends_like(module: str, ends: tuple[str, ...]) -> bool:
    """PEFT's rule: the name itself, or its last parts."""
    return f".{module}".endswith(tuple(f".{end}" for end in ends))
