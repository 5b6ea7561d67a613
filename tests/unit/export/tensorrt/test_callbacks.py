"""TensorRT's messages, made fit for one sentence. The messages are as TensorRT-RTX 1.7.1 wrote them."""

from __future__ import annotations

import pytest

from resrank.export.tensorrt.callbacks import ErrorLines, Interruption, one_line

NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)
DIMENSION = (
    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Dimension mismatch for tensor x and profile 0. "
    "At dimension axis 1, profile has min=255, opt=255, max=255 but tensor has 256. In validate at "
    "/_src/optimizer/api/network.cpp:4054)"
)
WORKSPACE = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic Selection: no "
    "tactics to implement the operation within workspace limit. In compileGraph at "
    "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            DIMENSION,
            "Dimension mismatch for tensor x and profile 0. At dimension axis 1, profile has min=255, opt=255, max=255 "
            "but tensor has 256",
        ),
        (
            WORKSPACE,
            "[tactic.cpp:1676: enumerate_tactics] Tactic Selection: no tactics to implement the operation within "
            "workspace limit",
        ),
        (
            f"Invalid Node - mix\nITensor::getDimensions: failed\n{NO_DRIVER}",
            "Invalid Node - mix ITensor::getDimensions: failed",
        ),
        ("  plain   words ", "plain words"),
    ],
)
def test_a_message_becomes_one_line_without_source_positions(message: str, sentence: str) -> None:
    assert one_line(message) == sentence


def test_the_missing_driver_is_no_reason() -> None:
    errors = ErrorLines()
    errors.add(NO_DRIVER)
    assert errors.first() == "it gave no reason"
    errors.add(DIMENSION)
    errors.add(WORKSPACE)
    assert errors.first().startswith("Dimension mismatch")
    assert errors.mention("workspace limit")
    assert not errors.mention("cudaError")


def test_what_a_callback_kept_is_raised_once() -> None:
    interruption = Interruption()
    interruption.reraise()
    interruption.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        interruption.reraise()
    interruption.reraise()
