"""What ``model.compute.precision: auto`` is on a device."""

from __future__ import annotations

import pytest
import torch

from resrank.training.precision import settled
from resrank.training.stage_config import ModelConfig, Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, Precision.FP32),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, Precision.BF16),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, Precision.BF16),
        ({"neon": True}, Precision.FP32),
    ],
    ids=["avx2", "avx512-bf16", "amx", "another architecture"],
)
def test_auto_is_bf16_where_the_cpu_multiplies_in_it(
    capabilities: dict[str, bool], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    config = ModelConfig.model_validate({"compute": {"encode_batch_tokens": 77}})
    assert config.compute.precision is Precision.AUTO
    found = settled(config, CPU)
    assert found.compute.precision is precision
    assert found.model_copy(update={"compute": config.compute}) == config
    assert found.compute.encode_batch_tokens == 77


@pytest.mark.parametrize("named", [Precision.FP32, Precision.BF16])
def test_a_precision_that_is_named_stays(named: Precision) -> None:
    config = ModelConfig.model_validate({"compute": {"precision": named}})
    assert settled(config, CPU) is config


@pytest.mark.parametrize(("supported", "precision"), [(True, Precision.BF16), (False, Precision.FP32)])
def test_auto_is_bf16_on_gpus_that_have_it(
    supported: bool, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: supported)
    assert settled(ModelConfig(), torch.device("cuda")).compute.precision is precision
