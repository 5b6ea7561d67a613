"""PyTorch, on a GPU or a CPU: runs a checkpoint as it is, and is what a built engine has to be faster than."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, validate_folder
from resrank.core.names import Tensor as Name
from resrank.model.modeling import ResRankModel
from resrank.model.weights import load_backbone, load_projectors
from resrank.serving.engines.base import EngineError, EngineOptions, Precision

_LOW = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class TorchEngine:
    """An :class:`~resrank.serving.engines.base.Engine` on one backbone of a checkpoint.

    Attention is ``scaled_dot_product_attention`` as in the exported graphs. In bf16 and fp16 the matrices are stored
    and multiplied in that type, attention's products too, and all else is fp32: the residual stream, the norms, the
    softmax, pooling, P_in, P_out and what follows the last hidden state.
    """

    def __init__(self, part: Path, options: EngineOptions) -> None:
        """Loads the weights of one role; on the host they take 4 bytes each meanwhile.

        Args:
            part: ``encoder`` or ``reranker`` in the folder of a full checkpoint.
            options: Precision, and the GPU or the threads on the CPU (which are the whole process's).

        Raises:
            CheckpointError: The folder is not part of a valid checkpoint.
            EngineError: It is neither part, there is no such GPU, or it has too little memory.
        """
        if part.name not in (ENCODER_DIR, RERANKER_DIR):
            raise EngineError(
                f"{part}: torch runs a checkpoint's folder {ENCODER_DIR} or {RERANKER_DIR}, not {part.name}"
            )
        self._device = _open_device(options.device)
        if options.device is None and options.threads:
            torch.set_num_threads(options.threads)
        self._model = _load_part(part)
        # Kept open for the engine's life: the form of attention that engines fuse is the fastest one here, too.
        self._attention = contextlib.ExitStack()
        self._attention.enter_context(self._model.exporting())
        backbone = self._model.encoder if part.name == ENCODER_DIR else self._model.reranker
        if options.precision in _LOW:
            compute_low(backbone, _LOW[options.precision], self._device.type)
        try:
            for module in self._model.reranker_parts() if part.name == RERANKER_DIR else (backbone,):
                module.to(self._device)
        except torch.OutOfMemoryError as error:
            raise EngineError(f"{part}: {_memory_sentence(error)}") from error
        self._part = part
        self._compute = self._encode if part.name == ENCODER_DIR else self._rerank

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol).

        Raises:
            EngineError: The GPU's memory is too small for the batch.
        """
        try:
            outputs = self._compute({name: torch.tensor(array, device=self._device) for name, array in inputs.items()})
            return {name: value.cpu().numpy() for name, value in outputs.items()}
        except torch.OutOfMemoryError as error:
            raise EngineError(f"{self._part}: {_memory_sentence(error)}") from error

    def _encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {Name.EMBEDDING: self._model.encode(inputs[Name.INPUT_IDS], inputs[Name.ATTENTION_MASK])}

    def _rerank(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._model.outputs(
            inputs[Name.INPUT_IDS],
            inputs[Name.PASSAGE_POSITIONS],
            inputs.get(Name.LAST_POSITION),
            inputs.get(Name.CANDIDATES),
            inputs.get(Name.RELATIONS),
        )
        named = zip((Name.PASSAGE_STATES, Name.QUERY_STATE, Name.SCORE_RESIDUALS), found, strict=True)
        return {name: value.contiguous() for name, value in named if value is not None}


def compute_low(backbone: PreTrainedModel, dtype: torch.dtype, device: str) -> None:
    """Makes a backbone multiply matrices in a low precision and do all else in fp32, in place.

    Autocast does it, on matrices that are stored in the low type already, so that none is converted at run time. It
    keeps the residual stream in fp32: only what the products return is low.

    Args:
        backbone: In fp32.
        dtype: BF16 or FP16.
        device: ``cuda`` or ``cpu``, where it will run.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
        elif isinstance(module, nn.Embedding):  # half the memory; a lookup is no product, so its rows go on as fp32
            module.to(dtype)
            module.register_forward_hook(lambda _module, _inputs, rows: rows.float())
    # Nothing is left for its cache of converted weights.
    backbone.forward = torch.autocast(device, dtype=dtype, cache_enabled=False)(backbone.forward)


def _load_part(part: Path) -> ResRankModel:
    """The model with the weights of one role; the other backbone is a shell that takes no memory."""
    checkpoint = part.parent
    spec = validate_folder(checkpoint, verify_hashes=False)  # the exporter did, and wrote the digests down
    backbones = {}
    for name in (ENCODER_DIR, RERANKER_DIR):
        if name == part.name:
            backbones[name] = load_backbone(checkpoint / name)
        else:
            with torch.device("meta"):
                config = AutoConfig.from_pretrained(checkpoint / name)
                backbones[name] = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    projectors = load_projectors(checkpoint, spec)
    return ResRankModel(spec, backbones[ENCODER_DIR], backbones[RERANKER_DIR], *projectors).eval()


def _open_device(ordinal: int | None) -> torch.device:
    if ordinal is None:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if ordinal >= count:
        raise EngineError(
            f"GPU {ordinal} is asked for, but torch {torch.__version__} finds {count} on this machine: install the "
            "NVIDIA driver and a CUDA build of torch, or export with --runtime cpu"
        )
    return torch.device("cuda", ordinal)


def _memory_sentence(error: torch.OutOfMemoryError) -> str:
    return (
        f"the GPU is out of memory ({str(error).partition('. GPU')[0]}): run fewer instances or other programs on it, "
        "or smaller batches"
    )
