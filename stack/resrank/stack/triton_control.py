"""The way in which the one who started a Triton asks and steers it, whatever its gRPC port demands of callers."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from resrank.core.errors import StackError

_HOST = "127.0.0.1"
_KEY_NAME = "resrank-key"
_APIS = "health,metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"
"""All that ``--http-restricted-api`` of Triton 2.51 knows, which is all that HTTP can do."""

RESTRICTED_PROTOCOLS = "shared-memory,model-repository,logging,trace"
"""What no caller of gRPC needs, in the words of ``--grpc-restricted-protocol``. With a registered segment of shared
memory a caller can have outputs written over those that Triton talks with its models through."""


class TritonControl:
    """Speaks to a Triton of our own over HTTP on loopback, where every request takes a key that nobody else is given.

    What steers a server is closed over gRPC, by a key that nobody uses: gRPC would want a certificate of ours where
    callers need one, and a name that the server's certificate is for.

    Args:
        port: Port for HTTP.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._key = secrets.token_hex(16)
        self._grpc_key = secrets.token_hex(16)

    @property
    def flags(self) -> list[str]:
        """What Triton is started with."""
        return [
            "--allow-http=true",
            f"--http-address={_HOST}",
            f"--http-port={self.port}",
            f"--http-restricted-api={_APIS}:{_KEY_NAME}={self._key}",
            f"--grpc-restricted-protocol={RESTRICTED_PROTOCOLS}:{secrets.token_hex(8)}={self._grpc_key}",
        ]

    def hide_keys(self, pid: int) -> None:
        """Overwrites the keys on Triton's command line, which every user of this machine may read, once it was read.

        Where the kernel does not let a parent write to its child they stay; everything of this user's is then as safe
        as the command lines are.
        """
        try:
            # proc(5): fields 48 and 49 are where the arguments begin and end; the name before them may hold blanks.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            begin, end = int(fields[48 - 3]), int(fields[49 - 3])
            with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
                memory.seek(begin)
                words = memory.read(end - begin)
                for key in (self._key, self._grpc_key):
                    if (place := words.find(key.encode())) >= 0:
                        memory.seek(begin + place)
                        memory.write(b"x" * len(key))
        except OSError:
            return

    def is_ready(self, timeout_s: float) -> bool:
        """Whether Triton says that it and its models are ready; False when nobody answers in time."""
        try:
            self._ask("GET", "/v2/health/ready", timeout_s)
        except (OSError, http.client.HTTPException, StackError):
            return False
        return True

    def models(self, timeout_s: float) -> dict[str, str]:
        """Names and states (``READY``, ``UNLOADING``, …) of the models.

        Raises:
            OSError: Nobody answers.
            http.client.HTTPException: The same.
            StackError: Triton refuses.
        """
        index = json.loads(self._ask("POST", "/v2/repository/index", timeout_s))
        return {model["name"]: model.get("state", "") for model in index}

    def ensembles(self, models: Iterable[str], timeout_s: float) -> list[str]:
        """Those of the loaded models that are ensembles; raises as :meth:`models`."""
        configs: dict[str, Any] = {
            model: json.loads(self._ask("GET", f"/v2/models/{model}/config", timeout_s)) for model in models
        }
        return [model for model, config in configs.items() if config.get("platform") == "ensemble"]

    def unload(self, model: str, timeout_s: float) -> None:
        """Lets a model's requests finish and takes no new ones; returns before they have. Raises as :meth:`models`."""
        self._ask("POST", f"/v2/repository/models/{model}/unload", timeout_s)

    def _ask(self, method: str, path: str, timeout_s: float) -> bytes:
        with closing(http.client.HTTPConnection(_HOST, self.port, timeout=timeout_s)) as connection:
            connection.request(method, path, body=b"{}" if method == "POST" else None, headers={_KEY_NAME: self._key})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != http.client.OK:
            raise StackError(f"Triton answers {path} with {answer.status}: {content.decode('utf-8', 'replace')}")
        return content
