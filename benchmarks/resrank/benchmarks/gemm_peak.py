"""What this machine's matrix products reach at best."""

from __future__ import annotations

import time

import torch

from resrank.serving.engines import Precision

_SIZES = (512, 1024, 1536, 2048)
_SECONDS_PER_SIZE = 0.4
_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


def gemm_peak_gflops(precision: Precision, threads: int) -> float:
    """The fastest square product of torch, in GFLOP/s, over several sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return max(_gflops(size, _DTYPES[precision]) for size in _SIZES)
    finally:
        torch.set_num_threads(before)


def _gflops(size: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    product = torch.matmul(left, right)  # warms up and allocates the result
    best, end = float("inf"), time.perf_counter() + _SECONDS_PER_SIZE
    while (started := time.perf_counter()) < end:
        torch.matmul(left, right, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


class PeakProduct:
    """A square product in fp32, to be timed in turn with what it is the limit of: both then have the same neighbours.

    Attributes:
        flops: Operations of one call.
    """

    _SIZE = 2048  # long enough that waking a thread is nothing

    def __init__(self, threads: int) -> None:
        """Allocates it.

        Args:
            threads: That compute it.
        """
        self._threads = threads
        self._left, self._right = torch.randn(2, self._SIZE, self._SIZE)
        self._product = torch.empty(self._SIZE, self._SIZE)
        self.flops = 2 * self._SIZE**3

    def __call__(self, _: int) -> None:
        """Computes it once."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            torch.matmul(self._left, self._right, out=self._product)
        finally:
            torch.set_num_threads(before)
