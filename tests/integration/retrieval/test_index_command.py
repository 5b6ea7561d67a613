"""``resrank index`` with a real Triton and real sidecars."""

from __future__ import annotations

import gzip
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.retrieval.local.lock import read_owner
from resrank.stack.cli.app import run as run_here
from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.triton_process import TritonProcess
from support.letter_models import SHA, write_letter_models


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, start_triton: Callable[..., TritonProcess]) -> TritonProcess:
    return start_triton(write_letter_models(tmp_path_factory.mktemp("repository")))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "resrank.stack", "index", *map(str, arguments)]


def run(*arguments: object, code: int = 0) -> Any:
    result = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout) if code == 0 else result.stderr


def write_corpus(path: Path, passages: dict[str, str]) -> Path:
    lines = "".join(json.dumps({"_id": id_, "title": id_, "text": text}) + "\n" for id_, text in passages.items())
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def test_build_describe_upsert_delete(triton: TritonProcess, tmp_path: Path, index: Path, start_sidecar: Any) -> None:
    passages = {f"p{number}": "abcd"[number % 4] * number for number in range(150)}  # three batches
    corpus = write_corpus(tmp_path / "corpus.jsonl.gz", passages)
    common = ("--index", index, "--output", "json")
    remote = (*common, "--triton-url", triton.grpc_address)

    built = run("build", corpus, *remote)
    assert (built["passages"], built["inserted"], built["unchanged"]) == (150, 150, 0)
    assert built["passages_per_s"] > 0
    again = run("build", corpus, *remote)
    assert (again["inserted"], again["updated"], again["unchanged"]) == (0, 0, 150)

    more = write_corpus(tmp_path / "more.jsonl", {"p3": "changed", "new": "dad"})
    upserted = run("upsert", more, *remote)
    assert (upserted["inserted"], upserted["updated"]) == (1, 1)
    assert run("delete", "p1", "p2", "nobody", *common) == {"deleted": 2, "missing": ["nobody"]}
    about = run("describe", *common)
    assert (about["record_count"], about["dimension"], about["encoder_sha256"]) == (149, 4, SHA)
    assert run("verify", *common) == {"records": 149, "problems": []}

    # What a sidecar serves afterwards is what the model made of title and text.
    got = start_sidecar().stub.Get(pb.GetRequest(ids=["new", "p5"], include_embeddings=True))
    expected = [["new dad".count(letter) + 1 for letter in "abcd"], ["p5 bbbbb".count(letter) + 1 for letter in "abcd"]]
    assert [np.frombuffer(record.embedding, "<f2").tolist() for record in got.records] == expected


def test_verify_lists_what_is_damaged_and_fails(start_sidecar: Any, index: Path, upsert_request: Any) -> None:
    sidecar = start_sidecar()
    sidecar.stub.Upsert(iter([upsert_request(["a", "b"])]))
    assert "is owned by process" in run("verify", "--index", index, code=1)
    sidecar.kill()
    with sqlite3.connect(index / "store.sqlite3") as connection:
        connection.execute("UPDATE records SET title = 'other' WHERE id = 'b'")
    connection.close()
    failed = subprocess.run(command("verify", "--index", index), capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "record 2 ('b'): its title, text, metadata or their digest is damaged\n" in failed.stdout
    assert "2 records compared, 2 problems" in failed.stdout  # the lexical index has the old words


def test_a_protected_sidecar_is_written_through_its_socket(triton: TritonProcess, tmp_path: Path, index: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    corpus = write_corpus(tmp_path / "corpus.jsonl", {"a": "text"})
    with SidecarProcess(index, socket=tmp_path / "s", bearer_key_file=key):
        built = run("build", corpus, "--index", index, "--triton-url", triton.grpc_address, "--output", "json")
        assert built["inserted"] == 1


def test_writes_through_the_sidecar_that_owns_the_folder(
    triton: TritonProcess, tmp_path: Path, index: Path, start_sidecar: Any
) -> None:
    sidecar = start_sidecar()
    corpus = write_corpus(tmp_path / "corpus.jsonl", {"a": "text"})
    built = run("build", corpus, "--index", index, "--triton-url", triton.grpc_address, "--output", "json")
    assert built["inserted"] == 1
    assert sidecar.stub.Describe(pb.DescribeRequest()).record_count == 1


def test_killed_in_the_middle_the_next_run_does_the_rest(triton: TritonProcess, tmp_path: Path, index: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", {f"p{number}": f"slow {number}" for number in range(960)})
    common = ("--index", index, "--triton-url", triton.grpc_address, "--output", "json")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command("build", corpus, *common), **quiet) as job:
        while ((owner := read_owner(index)) is None or owner.address is None) and job.poll() is None:
            time.sleep(0.02)
        assert owner is not None
        assert owner.address is not None
        with grpc.insecure_channel(owner.address) as channel:
            stub = RetrievalServiceStub(channel)
            while stub.Describe(pb.DescribeRequest(), timeout=10).record_count < 10:
                time.sleep(0.02)
        job.send_signal(signal.SIGKILL)
    stored = run("describe", "--index", index, "--output", "json")["record_count"]
    assert 10 <= stored < 960
    report = run("build", corpus, *common)
    assert (report["unchanged"], report["inserted"]) == (stored, 960 - stored)


@pytest.mark.parametrize(
    ("line", "sentence"), [('{"_id": "b"', "bad.jsonl:2: is not valid JSON"), ('{"text": "x"}', "bad.jsonl:2: lacks")]
)
def test_a_bad_line_is_named(triton: TritonProcess, tmp_path: Path, index: Path, line: str, sentence: str) -> None:
    corpus = write_corpus(tmp_path / "bad.jsonl", {"a": "text"})
    with corpus.open("a") as file:
        file.write(line + "\n")
    message = run("build", corpus, "--index", index, "--triton-url", triton.grpc_address, code=2)
    assert sentence in message
    assert "Traceback" not in message


def test_failures_are_sentences(tmp_path: Path, index: Path) -> None:
    assert "there is no index folder" in run("describe", "--index", index, code=1)
    corpus = write_corpus(tmp_path / "corpus.jsonl", {"a": "text"})
    message = run("build", corpus, "--index", index, "--triton-url", "127.0.0.1:1", code=3)
    assert "127.0.0.1:1" in message
    assert "Traceback" not in message


def test_collections_are_built_backed_up_and_restored(
    triton: TritonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, index, file = tmp_path / "corpus.jsonl", tmp_path / "index", tmp_path / "docs.backup"
    corpus.write_text("".join(json.dumps({"_id": id_, "text": f"{id_} dig"}) + "\n" for id_ in ("ants", "badgers")))

    def resrank(*arguments: object, code: int = 0) -> str:
        assert run_here([*map(str, arguments), "--index", str(index)]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    build = ("index", "build", corpus, "--triton-url", triton.grpc_address)
    assert "2 inserted" in resrank(*build, "--collection", "docs@v1")
    assert "2 unchanged" in resrank(*build, "--collection", "docs@v1")
    assert resrank("alias", "set", "docs", "docs@v1") == "docs names docs@v1\n"
    written = resrank("index", "backup", file, "--collection", "docs")
    assert re.fullmatch(rf"2 records in {file}, sha256 [0-9a-f]{{64}}\n", written)
    restore = ("index", "restore", file, "--collection")
    assert "2 records restored into docs@v2 and compared" in resrank(*restore, "docs@v2")
    assert "2 records restored into docs@v2 and compared" in resrank(*restore, "docs@v2")  # again: all is there
    crows = tmp_path / "crows.jsonl"
    crows.write_text(json.dumps({"_id": "crows", "text": "crows dig"}) + "\n")
    assert "1 inserted" in resrank("index", "build", crows, *build[3:], "--collection", "others")
    assert "'others' is not empty, and its record 'crows' is not one of the backup" in resrank(
        *restore, "others", code=2
    )
    assert resrank("collection", "drop", "others") == "dropped others\n"
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged or not whole" in resrank(*restore, "docs@v3", code=2)
    described = json.loads(resrank("index", "describe", "--collection", "docs@v2", "--output", "json"))
    assert (described["record_count"], described["collection"], described["encoder_sha256"]) == (2, "docs@v2", SHA)
    resrank("collection", "create", "small", "--max-records", 1)
    assert "too many records (limit 1, got 2)" in resrank(*build, "--collection", "small", code=1)
    listed = json.loads(resrank("collection", "list", "--output", "json"))
    assert {one["name"]: one["records"] for one in listed} == {"default": 0, "docs@v1": 2, "docs@v2": 2, "small": 0}
    assert "the alias 'docs' names" in resrank("collection", "drop", "docs@v1", code=1)
    assert resrank("collection", "drop", "docs@v2") == "dropped docs@v2\n"
    assert resrank("index", "verify") == "2 records compared, no problems\n"
