"""Loading a plan: what this machine cannot run, it refuses in one sentence. With a GPU, plans run."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.serving.engines import EngineError, EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.engines.cuda import driver_problem
from resrank.serving.engines.tensorrt import explain_errors, explain_validity
from support.tiny_plan import build_plan

RTX = EngineOptions(EngineKind.TENSORRT_RTX, Precision.FP32, device=0)


def gpus() -> int:
    """How many this machine has."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs resrank[tensorrt-rtx]")
    return runtime.cudaGetDeviceCount()[1] or 0


def test_without_a_driver_a_plan_says_so_in_one_sentence(plan: Path) -> None:
    if gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError) as refusal:
        load_engine(plan, RTX)
    assert str(refusal.value) == (
        f"{plan}: cannot run here: this machine has no NVIDIA driver: serve on a machine with a GPU, or export with "
        "--runtime cpu"
    )


def test_a_damaged_plan_is_named_before_the_driver(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(EngineError, match="it is cut short: copy or build it again"):
        load_engine(tmp_path / "model.plan", RTX)


@pytest.mark.parametrize(
    ("kind", "modules", "extra"),
    [
        (EngineKind.TENSORRT, ["tensorrt"], "tensorrt"),
        (EngineKind.TENSORRT_RTX, ["tensorrt_rtx", "tensorrt_rtx_bindings"], "tensorrt-rtx"),
    ],
)
def test_a_flavour_that_is_not_installed_says_what_to_install(
    kind: EngineKind, modules: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=rf"{kind.value} is not installed .*: pip install 'resrank\[{extra}\]'"):
        load_engine(Path("model.plan"), EngineOptions(kind, Precision.FP32))


def test_the_cuda_binding_that_is_not_installed_is_named(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="cuda-bindings is not installed"):
        load_engine(plan, RTX)


def test_an_old_driver_is_told_from_none() -> None:
    assert driver_problem(0, 13050).startswith("this machine has no NVIDIA driver")
    assert driver_problem(12080, 13050).startswith("the NVIDIA driver knows CUDA 12.8, but 13.5 is needed")


def logged_on_deserializing(trt: Any, blob: bytes) -> list[str]:
    """What the runtime itself says."""
    errors: list[str] = []

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.ERROR:
                errors.append(message)

    logger = Logger()
    assert trt.Runtime(logger).deserialize_cuda_engine(blob) is None
    return errors


def test_the_runtimes_own_words_become_one_sentence(trt: Any, plan: Path) -> None:
    content = plan.read_bytes()
    cut = logged_on_deserializing(trt, content[: len(content) // 2])
    assert explain_errors(cut) == "the plan is damaged or cut short: copy or build it again"
    foreign = logged_on_deserializing(trt, b"x" * 1000)
    assert explain_errors(foreign) == "the plan was built by another version: build it again"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        # From NVIDIA/TensorRT's issues.
        (
            "The engine plan file is generated on an incompatible device, expecting compute 7.5 got compute 8.6, "
            "please rebuild.",
            "another compute capability",
        ),
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting library version 8.5.3.1 "
            "got 8.6.1.6, please rebuild.",
            "another version",
        ),
        ("Requested amount of GPU memory (8589934592 bytes) could not be allocated.", "too little free memory"),
        (
            "Error Code 1: Cuda Runtime (In allocate at defaultAllocator.cpp:19: out of memory)",
            "too little free memory",
        ),
        ("Error Code 7: Internal Error (IShuffleLayer:\n  reshaping failed)", "IShuffleLayer: reshaping failed"),
    ],
)
def test_known_errors_say_what_to_do_and_others_are_quoted(message: str, cause: str) -> None:
    sentence = explain_errors([message, "What followed from it."])
    assert cause in sentence
    assert "\n" not in sentence


def test_every_diagnosis_of_a_plan_has_its_sentence(trt: Any) -> None:
    bits = trt.EngineInvalidityDiagnostics.__members__.values()
    sentences = {explain_validity(trt, int(bit)) for bit in bits}
    assert len(sentences) == len(bits)
    assert all(": " in sentence for sentence in sentences)  # what was found: what to do
    both = explain_validity(trt, int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC) | 1)
    assert "compute capabilities" in both
    assert "not built by" in both


@pytest.fixture(scope="module")
def local_plan(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for the GPU at hand."""
    if not gpus():
        pytest.skip("needs a GPU")
    path = tmp_path_factory.mktemp("local") / "model.plan"
    path.write_bytes(build_plan(trt, trt.ComputeCapability.CURRENT))
    return path


def test_a_plan_runs_in_all_its_profiles(local_plan: Path) -> None:
    engine = load_engine(local_plan, RTX)
    rng = np.random.default_rng(0)
    for shape in ((1, 8), (16, 64), (2, 3), (1, 8), (3, 1)):
        x = rng.standard_normal(shape).astype(np.float32)
        outputs = engine.run({"X": x})
        np.testing.assert_array_equal(outputs["Y"], x + x)
    with pytest.raises(EngineError, match="fit no optimisation profile"):
        engine.run({"X": np.zeros((17, 64), np.float32)})
    with pytest.raises(EngineError, match="X is float64, but the plan takes float32"):
        engine.run({"X": np.zeros((1, 8))})


def test_two_instances_run_at_once(local_plan: Path) -> None:
    engines = [load_engine(local_plan, RTX) for _ in range(2)]
    wrong: list[float] = []

    def ask(number: int) -> None:
        for step in range(200):
            x = np.full((1 + step % 16, 1 + step % 64), number * 1000 + step, np.float32)
            if not np.array_equal(engines[number].run({"X": x})["Y"], x + x):
                wrong.append(number * 1000 + step)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
