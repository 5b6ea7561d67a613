from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import resrank.core.sidecar

SOURCE = Path(resrank.core.sidecar.__file__).parent
FILES = ["retrieval_pb2.py", "retrieval_pb2.pyi", "retrieval_pb2_grpc.py", "retrieval_pb2_grpc.pyi"]
# The compilers' own versions stand in what they write; they may be newer than when the files were committed.
VERSIONS = re.compile(r"(\d+\.\d+\.\d+)|(^\s+\d+,$)", re.MULTILINE)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("grpc_tools")
    out = tmp_path_factory.mktemp("stubs")
    specification = importlib.util.spec_from_file_location("generate", SOURCE / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.generate(out)
    return out


@pytest.mark.parametrize("name", FILES)
def test_regenerating_gives_the_committed_file(fresh: Path, name: str) -> None:
    committed = (SOURCE / "v1" / name).read_text()
    regenerated = (fresh / "resrank/core/sidecar/v1" / name).read_text()
    assert VERSIONS.sub("", regenerated) == VERSIONS.sub("", committed)
