"""A whole stack with a tiny checkpoint: Triton, the sidecar with passages in its index, and the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from resrank.client import ResRankClient
from resrank.client.sidecar import AsyncSidecar
from resrank.core.corpus import Passage
from resrank.core.metadata import MetadataValue
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.serving.engines import EngineKind, Precision
from resrank.stack.local_stack import LocalStack
from support.tiny_checkpoint import SENTENCES, make_tiny_checkpoint

METADATA: list[dict[str, MetadataValue]] = [
    {"place": float(place), "even": place % 2 == 0, "tags": ("x",)} for place in range(40)
]
PASSAGES = [
    Passage(place + 1, f"p{place}", f"Passage {place}", f"{SENTENCES[place % len(SENTENCES)]} {place}", METADATA[place])
    for place in range(40)
]
QUERY = "two astronauts walked on the moon"


@dataclass(frozen=True)
class Served:
    """A stack that is served.

    Attributes:
        stack: Its processes.
        client: Of gRPC: what it says is what HTTP has to say.
        http: Of the gateway.
    """

    stack: LocalStack
    client: ResRankClient
    http: httpx.Client

    def rows(self, model: str) -> int:
        """Rows that a model has computed so far."""
        page = httpx.get(f"http://{self.stack.triton.metrics_address}/metrics", trust_env=False).text
        (value,) = (
            line.rpartition(" ")[2]
            for line in page.splitlines()
            if line.startswith("resrank_rows_total{") and f'model="{model}"' in line
        )
        return int(float(value))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("gateway")
    make_tiny_checkpoint(folder / "checkpoint", query_residual=True)
    options = ExportOptions(cpu_engine=EngineKind.OPENVINO, precision=Precision.FP32, threads=1)
    export_checkpoint(folder / "checkpoint", folder / "repository", options)
    with (
        LocalStack(folder / "repository", folder / "index", http=True, log_dir=folder / "logs") as stack,
        ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=30.0) as client,
    ):
        assert stack.gateway is not None
        vectors = client.embed_passages([passage.encoder_text for passage in PASSAGES])
        asyncio.run(_store(stack.sidecar.address, client.encoder_sha256(), vectors))
        with httpx.Client(base_url=stack.gateway.url, timeout=60.0, trust_env=False) as http:
            yield Served(stack, client, http)


async def _store(address: str, encoder: str, vectors: np.ndarray) -> None:
    async with AsyncSidecar(address) as sidecar:
        await sidecar.upsert(encoder, PASSAGES, vectors)


@pytest.fixture(scope="session")
def log(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's."""
    assert served.stack.gateway is not None
    assert served.stack.gateway.log_path is not None
    return served.stack.gateway.log_path
