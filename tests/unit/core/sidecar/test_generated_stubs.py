from __future__ import annotations

import re
from pathlib import Path

import pytest

import resrank.core.sidecar
from support.python_files import load_python_file

SOURCE = Path(resrank.core.sidecar.__file__).parent
FILES = ["retrieval_pb2.py", "retrieval_pb2.pyi", "retrieval_pb2_grpc.py", "retrieval_pb2_grpc.pyi"]
# The compilers' own versions stand in what they write; they may be newer than when the files were committed.
VERSIONS = re.compile(r"(\d+\.\d+\.\d+)|(^\s+\d+,$)", re.MULTILINE)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("grpc_tools")
    out = tmp_path_factory.mktemp("stubs")
    load_python_file(SOURCE / "generate.py").generate(out)
    return out


@pytest.mark.parametrize("name", FILES)
def test_regenerating_gives_the_committed_file(fresh: Path, name: str) -> None:
    committed = (SOURCE / "v1" / name).read_text()
    regenerated = (fresh / "resrank/core/sidecar/v1" / name).read_text()
    assert VERSIONS.sub("", regenerated) == VERSIONS.sub("", committed)
