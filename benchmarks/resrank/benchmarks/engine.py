"""The repository's reranker engine against ONNX Runtime in fp32, on the same graph with the same threads."""

from __future__ import annotations

from dataclasses import replace

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.flops import reranker_size
from resrank.benchmarks.gemm_peak import gemm_peak_gflops
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.workload import rerank_workload
from resrank.core.names import Model, Tensor
from resrank.core.progress import Notify
from resrank.serving.engines import EngineKind, EngineOptions, Precision, load_engine
from resrank.stack.machine import describe_machine

TARGET_WITH_BF16 = 0.65
TARGET_WITHOUT_BF16 = 1.0

_PAUSE_S = 0.01  # ONNX Runtime's threads spin for some milliseconds after a pass


def run(deployment: Deployment, *, runs: int = 30, notify: Notify = lambda _: None) -> Measurement:
    """Measures one pass over a 24-token query and 100 candidates.

    Args:
        deployment: Whose engine.
        runs: Timed passes of each side.
        notify: Called with one line per step.

    Returns:
        Milliseconds of both, and the arithmetic achieved against the peak of this machine's matrix products.

    Raises:
        BenchmarkError: The checkpoint is too small for the request.
        EngineError: An engine is not installed or refuses the graph.
    """
    machine = describe_machine()
    workload = rerank_workload(deployment)
    # Each side gets the length that suits it: ours as it is served, padded; ONNX Runtime's without padding.
    inputs, served = workload.reranker_inputs, workload.served_reranker_inputs
    chosen = deployment.engine_options(Model.RERANKER)
    # Engines have their own idea of "all cores"; a number leaves none.
    chosen = replace(chosen, threads=chosen.threads or machine.cores)
    reference = EngineOptions(EngineKind.ONNXRUNTIME, Precision.FP32, chosen.threads)
    notify("loading the engines")
    engine = load_engine(deployment.graph(Model.RERANKER), chosen)
    runtime = load_engine(deployment.graph(Model.RERANKER), reference)
    notify(f"timing {runs} passes of each")
    spent = interleave(
        {
            f"{chosen.kind.value} {chosen.precision.value}": lambda _: engine.run(served),
            "ONNX Runtime fp32": lambda _: runtime.run(inputs),
        },
        runs=runs,
        warm_up=3,
        pause_s=_PAUSE_S,
    )
    ours, theirs = (Side.of(label, times) for label, times in spent.items())
    notify("measuring the peak of matrix products")
    gflop = reranker_size(deployment).flops(inputs[Tensor.INPUT_IDS].shape[1]) / 1e9
    achieved = gflop / ours.median * 1e3
    precisions = (Precision.FP32, Precision.BF16) if machine.bf16 else (Precision.FP32,)
    peaks = {precision: gemm_peak_gflops(precision, chosen.threads) for precision in precisions}
    return Measurement(
        name="engine",
        unit="ms",
        measured=ours,
        baseline=theirs,
        bound=Bound.AT_MOST,
        target=TARGET_WITH_BF16 if machine.bf16 else TARGET_WITHOUT_BF16,
        facts={
            "threads": chosen.threads,
            "positions": inputs[Tensor.INPUT_IDS].shape[1],
            "positions as served": served[Tensor.INPUT_IDS].shape[1],
            "GFLOP a pass": gflop,
            "GFLOP/s achieved": achieved,
            **{f"GEMM peak {precision.value}, GFLOP/s": peak for precision, peak in peaks.items()},
            f"share of {chosen.precision.value} peak": achieved / peaks[chosen.precision],
        },
    )
