"""Which precision suits a device: what ``model.compute.precision: auto`` stands for."""

from __future__ import annotations

import torch

from resrank.training.stage_config import ModelConfig, Precision


def settled(config: ModelConfig, device: torch.device) -> ModelConfig:
    """The config with the precision that it means on a device.

    Args:
        config: What is trained; comes back as it is where it names a precision.
        device: Where it is trained.
    """
    if config.compute.precision is not Precision.AUTO:
        return config
    precision = Precision.BF16 if multiplies_in_bf16(device) else Precision.FP32
    return config.model_copy(update={"compute": config.compute.model_copy(update={"precision": precision})})


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bf16 matrices, and need not imitate them.

    Args:
        device: A CPU or a GPU.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # AVX2 alone is imitated through fp32: 8 GFLOP/s on one core of an AMD EPYC, where fp32 has 49.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
