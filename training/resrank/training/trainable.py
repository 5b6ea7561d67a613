"""The model as training sees it: which weights have gradients, in which groups, and one entry for every pass."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel

from resrank.core.checkpoint import P_IN, P_OUT, SCORE_HEAD, CheckpointSpec, projector_shapes
from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.model.modeling import ResRankModel
from resrank.model.relations import canonical_order, relations
from resrank.training.attention import TRAINING_ATTENTION
from resrank.training.stage_config import BackboneTraining, GroupName, GroupOptimization, Mode, ModelConfig, Precision

Role = Literal["encoder", "reranker"]
Call = Literal["encode", "rank"]

ROLES: tuple[Role, Role] = ("encoder", "reranker")

_UNUSED = "pooler"
"""Of masked-language models: a layer on top of the first token that no pooling here reads."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate, a decay and a norm of their own.

    Attributes:
        name: Which part of the model.
        parameters: They have gradients; the same objects and order in every run of a config.
        learning_rate: The schedule's highest.
        weight_decay: Of matrices.
        clip_norm: The L2 norm of the whole group's gradient is cut to this.
    """

    name: GroupName
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float
    clip_norm: float

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The group as torch's optimizers take it: matrices with decay, vectors (norms, biases, gate) without."""
        matrices = [parameter for parameter in self.parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        return [
            {"params": parameters, "lr": self.learning_rate, "weight_decay": decay, "name": self.name.value}
            for parameters, decay in ((matrices, self.weight_decay), (vectors, 0.0))
            if parameters
        ]


class TrainableResRank(nn.Module):
    """A :class:`ResRankModel` whose backbones are frozen, adapted (LoRA) or trained in full.

    Every pass goes through :meth:`forward`, so that wrappers which hook it (FSDP) see each of them. A step of stage 2
    has several passes before its backward passes and leaves parts of the model out of some: replicas must therefore
    average their gradients once after the step, and not by the hooks of ``DistributedDataParallel``.

    Attributes:
        model: The reference model; its backbones carry the adapters.
        spec: The checkpoint's fields at the start. The gate of a trained model is :attr:`gate`.
        config: What is trained.
    """

    def __init__(self, model: ResRankModel, config: ModelConfig) -> None:
        """Adds adapters and gate. Draws the adapters' start from torch's default generator: seed it before.

        Args:
            model: The model to train, in fp32; it is changed in place.
            config: What is trained.

        Raises:
            InvalidInputError: A field does not fit this model.
        """
        super().__init__()
        self.model = model.requires_grad_(False)
        self.spec: CheckpointSpec = model.spec
        self.config = config
        # In a dict, where torch does not look for submodules: they only wrap the backbones that `model` owns.
        self._adapted: dict[Role, PeftModel] = {}
        for role in ROLES:
            self._prepare_backbone(role, getattr(config, role))
        start = self.spec.fusion.residual_gate if config.fusion.gate.start is None else config.fusion.gate.start
        gate = torch.full((1,), start, device=self.device)  # one dimension: FSDP shards no scalars
        if config.fusion.gate.learned and self.spec.fusion.has_vector_residual:
            del model.residual_gate
            model.residual_gate = nn.Parameter(gate, requires_grad=False)
        else:
            model.register_buffer("residual_gate", gate, persistent=False)
        self._members = self._find_members()
        self.train()

    def _prepare_backbone(self, role: Role, training: BackboneTraining) -> None:
        backbone = self.backbone(role)
        backbone.set_attn_implementation(TRAINING_ATTENTION)
        if not training.dropout:
            _remove_dropout(backbone)
        if training.mode is Mode.LORA:
            self._adapted[role] = _adapt(backbone, role, training)
            if self.config.compute.precision is Precision.BF16:
                for module in backbone.modules():
                    if isinstance(module, LoraLayer):
                        module.cast_input_dtype_enabled = False  # autocast does it; PEFT's way goes through fp32
        if training.mode is not Mode.FROZEN and self.config.compute.gradient_checkpointing:
            with _renamings_ignored():
                backbone.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

    def _find_members(self) -> dict[GroupName, tuple[str, ...]]:
        """Names of the parameters of each group, in the model's order."""
        members: dict[GroupName, list[str]] = {name: [] for name in GroupName}
        for role in ROLES:
            training: BackboneTraining = getattr(self.config, role)
            if training.mode is Mode.FROZEN:
                continue
            backbone = self.backbone(role)
            table = backbone.get_input_embeddings().get_parameter("weight")
            for name, parameter in backbone.named_parameters():
                if training.mode is Mode.LORA:
                    trained = ".lora_" in name
                else:
                    trained = _UNUSED not in name.split(".") and (
                        parameter is not table or training.train_token_embeddings
                    )
                if trained:
                    members[GroupName(role)].append(f"model.{role}.{name}")
        members[GroupName.PROJECTORS] += [f"model.{name}" for name in self._projector_names]
        if isinstance(self.model.residual_gate, nn.Parameter):
            members[GroupName.GATE].append("model.residual_gate")
        return {group: tuple(names) for group, names in members.items()}

    @property
    def _projector_names(self) -> list[str]:
        """Those of ``projectors.safetensors``."""
        return list(projector_shapes(self.spec.encoder, self.spec.reranker, self.spec.fusion))

    def backbone(self, role: Role) -> PreTrainedModel:
        """The encoder or the reranker."""
        return cast("PreTrainedModel", getattr(self.model, role))

    @property
    def gate(self) -> float:
        """The gate g as it stands; to be read by all processes together where the model is sharded."""
        return _whole(cast("Tensor", self.model.residual_gate)).item()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone("reranker").device

    def train(self, mode: bool = True) -> Self:
        """As torch's, but a frozen backbone stays in evaluation mode: its dropout would only be noise."""
        super().train(mode)
        for role in ROLES:
            if getattr(self.config, role).mode is Mode.FROZEN:
                cast("nn.Module", self.backbone(role)).eval()
        return self

    def parameter_groups(self, groups: Mapping[GroupName, GroupOptimization]) -> list[ParameterGroup]:
        """Gives gradients to the parameters of some groups and takes them from all others.

        To be called once at the start of a stage, before the model is wrapped for several devices.

        Args:
            groups: What the stage trains; a learning rate of 0 leaves a group out, and so does having no parameters
                (a frozen backbone, an identity projector, a gate that is not learned).

        Raises:
            InvalidInputError: Nothing is left to train.
        """
        parameters = dict(self.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        found = []
        for name, optimization in groups.items():
            members = tuple(parameters[member] for member in self._members[name])
            if not members or optimization.learning_rate == 0:
                continue
            for parameter in members:
                parameter.requires_grad_(True)
            found.append(
                ParameterGroup(
                    name, members, optimization.learning_rate, optimization.weight_decay, optimization.clip_norm
                )
            )
        if not found:
            names = ", ".join(groups)
            raise InvalidInputError(names, "the stage trains nothing: frozen, not there, or of learning rate 0")
        return found

    def trains(self, group: GroupName) -> bool:
        """Whether the group's parameters have gradients at present."""
        return any(self.get_parameter(name).requires_grad for name in self._members[group])

    def forward(self, call: Call, *inputs: Tensor) -> Tensor:
        """Every pass with or without gradients.

        Args:
            call: ``encode``: texts to embeddings. ``rank``: queries and candidates to scores.
            *inputs: For ``encode`` INT64 [B, L] ids and mask. For ``rank`` INT64 [B, S] ids, INT64 [B, N] slots, INT64
                [B, 1] EOS position (of :class:`resrank.core.prompt.PromptBatch`), FP16 or FP32 [B, N, d] candidates and
                FP32 [B, d] query embeddings, read only with ``query_residual``.

        Returns:
            ``encode``: FP32 [B, d]. ``rank``: FP32 [B, N] cosines, without meaning on padding.
        """
        match call:
            case "encode":
                return self._encode(*inputs)
            case "rank":
                return self._rank(*inputs)

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode(input_ids, attention_mask)

    def _rank(
        self, input_ids: Tensor, slots: Tensor, last: Tensor, candidates: Tensor, query_embeddings: Tensor
    ) -> Tensor:
        content = self.spec.reranker.slots
        if not content.content.has_relations:
            return self._score(input_ids, slots, last, candidates, query_embeddings, None)
        # Padding stands at the slot of a row's last candidate, in whatever order it is.
        counts = 1 + (slots.diff(dim=1) > 0).sum(dim=1)
        order = canonical_order(query_embeddings, candidates, counts)
        place = torch.minimum(torch.arange(order.shape[1], device=order.device), counts[:, None] - 1)
        ordered = candidates.gather(1, order.gather(1, place)[:, :, None].expand_as(candidates))
        related = relations(
            query_embeddings,
            ordered,
            counts,
            neighbors=content.neighbors or 0,
            cosine_map=self.spec.fusion.cosine_map,
        )
        scores = self._score(input_ids, slots, last, ordered, query_embeddings, related)
        return scores.gather(1, order.argsort(dim=1))

    def _score(
        self,
        input_ids: Tensor,
        slots: Tensor,
        last: Tensor,
        candidates: Tensor,
        query_embeddings: Tensor,
        related: Tensor | None,
    ) -> Tensor:
        """FP32 [B, N], of candidates in the order in which the reranker reads them."""
        with self._autocast(self._reranker_gains_by_bf16):
            found = self.model.outputs(input_ids, slots, last, candidates, related)
        passages = None if found.passage_states is None else found.passage_states.float()
        query = None if found.query_state is None else found.query_state.float()
        return self.model.score(passages, query, candidates, query_embeddings, found.score_residuals)

    def retriever_scores(self, candidates: Tensor, query_embeddings: Tensor) -> Tensor:
        """The scores of dense-start, A(cos(e_q, e_i)).

        Args:
            candidates: FP16 or FP32 [B, N, d].
            query_embeddings: FP32 [B, d].

        Returns:
            FP32 [B, N].
        """
        cosines = functional.cosine_similarity(candidates.float(), query_embeddings[:, None], dim=-1)
        cosine_map = self.spec.fusion.cosine_map
        return cosines if cosine_map is None else cosine_map.apply(cosines)

    @property
    def _reranker_gains_by_bf16(self) -> bool:
        # One that reads slots alone is too small to pay for the conversions, and its relations would lose digits.
        return self.spec.reranker.prompt is not None

    def _autocast(self, gains: bool = True) -> torch.autocast:
        enabled = gains and self.config.compute.precision is Precision.BF16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def trained_state(self) -> dict[str, Tensor]:
        """All weights that some stage may train, for a later :meth:`load_trained_state`; the tensors are shared."""
        return {name: self.get_parameter(name).detach() for names in self._members.values() for name in names}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights of :meth:`trained_state` back in place.

        Args:
            state: The weights, on any device.

        Raises:
            CheckpointError: They belong to another model or config.
        """
        current = self.trained_state()
        if differing := current.keys() ^ state.keys():
            raise CheckpointError(f"{min(differing)}: not in both the model and the saved weights; the config differs")
        for name, value in current.items():
            if value.shape != state[name].shape:
                raise CheckpointError(f"{name}: {list(state[name].shape)} is saved, {list(value.shape)} is needed")
            value.copy_(state[name])

    def adapter_config(self, role: Role) -> dict[str, Any] | None:
        """PEFT's ``adapter_config.json`` of a backbone, or None where it has no adapter.

        Args:
            role: Which backbone.

        Returns:
            Plain JSON values. The base model is called what ``resrank.json`` calls it, and never a local folder.
        """
        if role not in self._adapted:
            return None
        config: dict[str, Any] = self._adapted[role].peft_config["default"].to_dict()
        config["base_model_name_or_path"] = getattr(self.spec, role).source
        config["inference_mode"] = True
        # PEFT holds sets, whose order differs from run to run; the file's should not.
        return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}

    def adapter_state(self, role: Role) -> dict[str, Tensor]:
        """A backbone's adapter under the names of PEFT's ``adapter_model.safetensors``, in fp32 on the CPU.

        This and :meth:`projector_state` are to be called by all processes together where the model is sharded.

        Args:
            role: Which backbone; one without an adapter gives an empty dict.
        """
        if role not in self._adapted:
            return {}
        return _saved(get_peft_model_state_dict(self._adapted[role], save_embedding_layers=False))

    def projector_state(self) -> dict[str, Tensor]:
        """The projectors and w under the names of ``projectors.safetensors``; empty where there is no such file.

        Those that :meth:`trained_spec` asks for: P_out is none of them where a gate was closed.
        """
        spec = self.trained_spec()
        names = projector_shapes(spec.encoder, spec.reranker, spec.fusion)
        return _saved({name: self.model.get_parameter(name) for name in names})

    def trained_spec(self) -> CheckpointSpec:
        """The checkpoint's fields with the gate as it stands; digests of weights are still those of the start."""
        fusion = self.spec.fusion.model_copy(update={"residual_gate": self.gate})
        return self.spec.model_copy(update={"fusion": fusion})

    def merged_model(self) -> ResRankModel:
        """The trained model without adapters, in evaluation mode; a copy, except for frozen backbones.

        Not for a model that is sharded over several processes.
        """
        spec = self.trained_spec()
        projectors = self.projector_state()
        merged = ResRankModel(
            spec,
            self.merged_backbone("encoder"),
            self.merged_backbone("reranker"),
            projectors.get(P_IN),
            projectors.get(P_OUT),
            projectors.get(SCORE_HEAD),
        )
        return merged.to(self.device).eval()

    def merged_backbone(self, role: Role) -> PreTrainedModel:
        """One trained backbone without adapters; a copy, except for a frozen one. As :meth:`merged_model`'s."""
        if role in self._adapted:
            return cast("PreTrainedModel", copy.deepcopy(self._adapted[role]).merge_and_unload())
        backbone = self.backbone(role)
        return backbone if getattr(self.config, role).mode is Mode.FROZEN else copy.deepcopy(backbone)


def _adapt(backbone: PreTrainedModel, role: Role, training: BackboneTraining) -> PeftModel:
    """Puts LoRA layers into a backbone."""
    unused = [name for name, _ in backbone.named_modules() if _UNUSED in name.split(".")]
    targets = training.lora_targets
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=cast("int", training.lora_alpha),  # PEFT divides it by r; its annotation is too narrow
        lora_dropout=training.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=unused or None,
    )
    try:
        with _renamings_ignored():
            return cast("PeftModel", get_peft_model(backbone, config))
    except ValueError as error:  # PEFT's word for targets that fit no layer
        raise InvalidInputError(f"{role}.lora_targets", str(error).splitlines()[0]) from None


def _remove_dropout(backbone: PreTrainedModel) -> None:
    """Takes out what a backbone's config says about dropout; its config stays as it is."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = cast("Any", 0.0)  # a plain number, whatever torch's annotations say


@contextlib.contextmanager
def _renamings_ignored() -> Iterator[None]:
    """Hides that transformers renames "gradient" to "activation checkpointing": releases before know the old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield


def _saved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, so that training can go on while they are used."""
    return {
        name: _whole(value.detach()).to("cpu", torch.float32, copy=True).contiguous() for name, value in tensors.items()
    }


def _whole(tensor: Tensor) -> Tensor:
    """Put together from all processes where it is sharded, which all of them must ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
