from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resrank.benchmarks.infinity import InfinityClient, InfinityServer, infinity_version
from resrank.benchmarks.measurement import BenchmarkError


class Answers(BaseHTTPRequestHandler):
    """The two endpoints with the answers that infinity-emb 0.0.78 was seen to give."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] == "unknown":
            self._send(400, {"error": {"message": "Invalid model"}})
        elif self.path == "/rerank":
            results = [{"relevance_score": 0.9, "index": 1}, {"relevance_score": -0.2, "index": 0}]
            self._send(200, {"object": "rerank", "results": results})
        else:
            rows = [np.full(3, len(text), "<f4") for text in body["input"]]
            data = [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in rows]
            self._send(200, {"data": data})

    def _send(self, status: int, content: object) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[InfinityClient]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield InfinityClient(SimpleNamespace(port=server.server_port))
    server.shutdown()
    thread.join()
    server.server_close()


def test_scores_come_back_in_the_passages_order(client: InfinityClient) -> None:
    np.testing.assert_allclose(client.rerank("cross", "q", ["a", "b"]), [-0.2, 0.9])


def test_vectors_are_read_from_base64(client: InfinityClient) -> None:
    np.testing.assert_array_equal(client.embed("encoder", ["a", "bcd"]), [[1, 1, 1], [3, 3, 3]])


def test_a_refusal_is_told(client: InfinityClient) -> None:
    with pytest.raises(BenchmarkError, match=r"/rerank with 400: .*Invalid model"):
        client.rerank("unknown", "q", ["a"])


def test_a_missing_environment_says_what_makes_it(tmp_path: Path) -> None:
    for ask in (lambda: infinity_version(tmp_path), lambda: InfinityServer(tmp_path, {}, threads=1)):
        with pytest.raises(BenchmarkError, match="make it with scripts/setup-infinity"):
            ask()
