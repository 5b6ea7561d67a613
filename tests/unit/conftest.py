"""One thread for each process: unit tests run in as many processes as there are cores, on models of two layers."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(name, "1" if name.endswith("THREADS") else "false")
