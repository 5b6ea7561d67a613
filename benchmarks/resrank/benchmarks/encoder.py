"""The encoder's engine: its share of the machine's peak, int8 and bf16 against fp32, and its cost by passage length."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.flops import encoder_size
from resrank.benchmarks.gemm_peak import PeakProduct
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.study import Plot, Series, Study
from resrank.core.cpu import has_vnni
from resrank.core.names import Model, Tensor
from resrank.core.progress import Notify
from resrank.serving.engines import Engine, EngineError, EngineKind, EngineOptions, Precision, load_engine
from resrank.stack.machine import usable_cores

PEAK_TARGET = 0.65
INT8_TARGET = 2.5
"""With VNNI, without which OpenVINO has no such engine."""

LENGTHS = (16, 32, 64, 118, 256)
JUDGED = 118
"""Tokens of a usual passage."""

ROWS = (1, 8, 32)
_POSITIONS = 2048
"""In a call by which lengths are compared."""

_RUNS = 9
_PAUSE_S = 0.05  # torch's threads keep their cores for a while, which OpenVINO's then lack
_PEAK = "torch's products"


def run(deployment: Deployment, *, notify: Notify = lambda _: None) -> Study:
    """Measures rows a second of each precision that runs here, in one process, call by call in turn.

    Args:
        deployment: Whose encoder.
        notify: Called with one line per step.

    Returns:
        One row a length, with the arithmetic achieved; judged are fp32 against the peak, and int8 against fp32.

    Raises:
        EngineError: Not even fp32 runs here.
    """
    threads = deployment.engine_options(Model.ENCODER).threads or usable_cores()
    graph = deployment.graph(Model.ENCODER)
    engines: dict[Precision, Engine] = {}
    for precision in (Precision.FP32, Precision.BF16, Precision.INT8):
        notify(f"loading OpenVINO {precision.value}")
        try:
            engines[precision] = load_engine(graph, EngineOptions(EngineKind.OPENVINO, precision, threads))
        except EngineError:
            if precision is Precision.FP32:
                raise
    product = PeakProduct(threads)
    size = encoder_size(deployment)
    longest = deployment.spec.encoder.max_passage_tokens
    lengths = [length for length in LENGTHS if length <= longest]
    speeds: dict[tuple[int, int, Precision], Side] = {}
    peaks: dict[tuple[int, int], Side] = {}
    shapes = [(max(1, _POSITIONS // length), length) for length in lengths] + [(rows, JUDGED) for rows in ROWS]
    for rows, tokens in dict.fromkeys(shapes):
        notify(f"{rows} rows of {tokens} tokens")
        inputs = _rows(rows, tokens)
        spent = interleave(
            {_PEAK: product}
            | {precision.value: partial(_call, engine, inputs) for precision, engine in engines.items()},
            runs=_RUNS,
            warm_up=1,
            pause_s=_PAUSE_S,
        )
        peaks[rows, tokens] = Side.of(_PEAK, [product.flops / each / 1e6 for each in spent[_PEAK]])
        for precision in engines:
            times = [1e3 * rows / each for each in spent[precision.value]]
            speeds[rows, tokens, precision] = Side.of(f"OpenVINO {precision.value}", times)
    gflops = {key: side.median * size.flops(key[1]) / 1e9 for key, side in speeds.items()}
    measurements = [_against_peak(speeds, gflops, peaks)]
    if Precision.INT8 in engines:
        best = {
            precision: max((side for key, side in speeds.items() if key[1:] == (JUDGED, precision)), key=_median)
            for precision in (Precision.INT8, Precision.FP32)
        }
        measurements.append(
            Measurement(
                "int8 against fp32",
                "passages/s",
                best[Precision.INT8],
                best[Precision.FP32],
                Bound.AT_LEAST,
                INT8_TARGET,
            )
        )
    by_length = {(rows, tokens) for rows, tokens in shapes[: len(lengths)]}
    return Study(
        name="encoder",
        title="The encoder's engine alone",
        columns=("rows", "tokens", "precision", "passages/s", "GFLOP/s", "share of the fp32 peak"),
        rows=tuple(
            (rows, tokens, precision.value, side.median, gflops[key], gflops[key] / peaks[rows, tokens].median)
            for key, side in speeds.items()
            for rows, tokens, precision in (key,)
        ),
        measurements=tuple(measurements),
        plots=(
            Plot(
                "encoder",
                "A passage's time by its length, and its products at the fp32 peak",
                "tokens",
                "ms",
                (
                    *(
                        Series(
                            precision.value,
                            tuple(map(float, lengths)),
                            tuple(
                                1e3 / speeds[rows, tokens, precision].median
                                for rows, tokens in sorted(by_length, key=_tokens)
                            ),
                        )
                        for precision in engines
                    ),
                    Series(
                        "limit: FLOP over the fp32 peak",
                        tuple(map(float, lengths)),
                        tuple(
                            size.flops(tokens) / peaks[rows, tokens].median / 1e6
                            for rows, tokens in sorted(by_length, key=_tokens)
                        ),
                    ),
                ),
                log_x=True,
                log_y=True,
            ),
        ),
        notes=(
            "Arithmetic is that of products alone: two operations a weight and token, and attention's two products.",
            "The peak is a product of two 2048 x 2048 matrices, timed in turn with the engines of each row.",
            *(() if has_vnni() else ("This CPU has no VNNI instructions, so there is no int8 engine.",)),
        ),
        facts={"threads": threads, "parameters": size.parameters},
    )


def _against_peak(
    speeds: Mapping[tuple[int, int, Precision], Side],
    gflops: Mapping[tuple[int, int, Precision], float],
    peaks: Mapping[tuple[int, int], Side],
) -> Measurement:
    judged = [key for key in speeds if key[1:] == (JUDGED, Precision.FP32)]
    key = max(judged, key=lambda key: gflops[key] / peaks[key[:2]].median)
    share = gflops[key] / speeds[key].median
    side = speeds[key]
    achieved = Side(
        f"OpenVINO fp32, {key[0]} rows",
        share * side.median,
        share * side.p95,
        share * side.least,
        share * side.greatest,
        side.runs,
    )
    return Measurement(
        "encoder against the peak",
        "GFLOP/s",
        achieved,
        peaks[key[:2]],
        Bound.AT_LEAST,
        PEAK_TARGET,
    )


def _rows(rows: int, tokens: int) -> dict[str, NDArray[Any]]:
    ids = np.random.default_rng(0).integers(1000, 2000, (rows, tokens))
    return {Tensor.INPUT_IDS: ids, Tensor.ATTENTION_MASK: np.ones_like(ids)}


def _call(engine: Engine, inputs: Mapping[str, NDArray[Any]], _: int) -> object:
    return engine.run(inputs)


def _median(side: Side) -> float:
    return side.median


def _tokens(shape: tuple[int, int]) -> int:
    return shape[1]
