"""Regenerates the Python stubs beside every proto: ``python core/resrank/core/sidecar/generate.py [OUT]``.

The stubs are committed, so that neither a user nor an image needs a compiler; a unit test compares them with a fresh
run. Needs the ``dev`` extra: grpcio-tools for the code, mypy-protobuf for the types of the gRPC stubs.
"""

from __future__ import annotations

import sys
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[3]
PROTO = "resrank/core/sidecar/v1/retrieval.proto"


def generate(out: Path = SOURCE_ROOT) -> None:
    """Compiles the proto.

    Args:
        out: The folder under which ``resrank/core/sidecar/v1`` is written; by default this source tree.

    Raises:
        RuntimeError: The compiler refused the proto; its messages are on stderr.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]

    arguments = ["protoc", f"--proto_path={SOURCE_ROOT}"]
    arguments += [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    # The plugins are scripts beside the running interpreter, which need not be on PATH.
    for plugin in ("mypy", "mypy_grpc"):
        arguments.append(f"--plugin=protoc-gen-{plugin}={Path(sys.executable).parent / f'protoc-gen-{plugin}'}")
    status = protoc.main([*arguments, PROTO])
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status} on {PROTO}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE_ROOT)
