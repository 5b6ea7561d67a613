"""The image's files, as far as they can be held to something without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from resrank.core.errors import StackError
from resrank.stack.ports import choose_ports
from resrank.stack.triton_control import RESTRICTED_PROTOCOLS
from resrank.stack.triton_install import find_triton
from resrank.stack.triton_process import SERVING_FLAGS
from support.certificates import Certificates, make_certificates

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy" / "docker"


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments on one line."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for line in joined.splitlines() if line for word, _, rest in [line.partition(" ")]]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def command() -> list[str]:
    (found,) = arguments("CMD")
    return list(json.loads(found))


def test_the_base_is_one_argument_which_a_digest_can_take() -> None:
    first, second = instructions()[:2]
    assert second == ("FROM", "${TRITON_IMAGE}")
    assert first[0] == "ARG"
    default = re.fullmatch(r"TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", first[1])
    assert default is not None
    assert (int(default[1]), int(default[2])) >= (26, 10)


def test_it_does_not_run_as_root() -> None:
    last = [rest for word, rest in instructions() if word == "USER"][-1]
    user, group = map(int, last.split(":"))
    assert user > 0
    assert group > 0


def test_it_serves_as_resrank_serve_does() -> None:
    wrapper, program, *flags = command()
    assert (wrapper, program) == ("restricted", "tritonserver")
    assert set(SERVING_FLAGS) < set(flags)
    given = dict(flag.partition("=")[::2] for flag in flags)
    assert given["--allow-http"] == "false"
    assert given["--model-control-mode"] == "none"
    assert given["--metrics-address"] == "127.0.0.1"
    assert given["--model-repository"] == "/repository"
    assert arguments("EXPOSE") == [given["--grpc-port"]]


def test_what_no_caller_needs_is_closed_with_a_new_key_each_time() -> None:
    def started() -> list[str]:
        told = subprocess.run([DOCKER / "restricted", "echo", "--a=b"], capture_output=True, text=True, check=True)
        return told.stdout.split()

    first, second = started(), started()
    assert first[0] == second[0] == "--a=b"
    assert re.fullmatch(f"--grpc-restricted-protocol={RESTRICTED_PROTOCOLS}:[0-9a-f]{{32}}=[0-9a-f]{{32}}", first[1])
    assert first[1] != second[1]


def test_triton_knows_every_flag() -> None:
    try:
        triton = find_triton()
    except StackError as error:
        pytest.skip(f"no Triton here: {error}")
    told = subprocess.run(
        [triton.executable, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **triton.environment},
    )
    known = set(re.findall(r"^\s*(--[\w-]+)", told.stdout + told.stderr, re.MULTILINE))
    assert {flag.partition("=")[0] for flag in command()[2:]} | {"--grpc-restricted-protocol"} <= known


def test_the_context_holds_what_the_package_is_built_from() -> None:
    rules = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    admitted = [Path(rule[1:]) for rule in rules if rule.startswith("!")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
        *(source for copied in arguments("COPY") for source in copied.split()[1:-1]),
    ]
    for path in needed:
        assert (ROOT / path).exists()
        assert any(Path(path).is_relative_to(rule) for rule in admitted), path


def test_the_extras_exist() -> None:
    (default,) = [rest for rest in arguments("ARG") if rest.startswith("EXTRAS=")]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (DOCKER / "Dockerfile").read_text() + (DOCKER / "README.md").read_text()
    named = {name for extras in re.findall(r"\btriton,cli(?:,[a-z-]+)*", text) for name in extras.split(",")}
    assert set(default.removeprefix("EXTRAS=").split(",")) | named <= set(known)


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, ready: bool, unready_model: str | None) -> None:
        self._ready = ready
        self._unready_model = unready_model

    def ServerReady(self, request: object, context: object) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=self._ready)

    def ModelReady(self, request: service_pb2.ModelReadyRequest, context: object) -> service_pb2.ModelReadyResponse:
        return service_pb2.ModelReadyResponse(ready=request.name != self._unready_model)


@contextmanager
def serving(
    port: int, ready: bool, unready_model: str | None = None, certificates: Certificates | None = None
) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(ready, unready_model), server)
    if certificates is None:
        server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        pair, authority = certificates.served, certificates.authority.read_bytes()
        pairs = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
        server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials(pairs, authority, True))
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@pytest.fixture
def healthcheck(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = SourceFileLoader("healthcheck", str(DOCKER / "healthcheck"))
    spec = spec_from_loader("healthcheck", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    # A container has no other servers; here may be those of other tests, with models that are stopped on purpose.
    monkeypatch.setattr(module.psutil, "process_iter", lambda: iter(()))
    return module


def test_the_health_check_asks_where_the_server_listens(healthcheck: ModuleType) -> None:
    assert "--grpc-port=" + healthcheck.ADDRESS.rpartition(":")[2] in command()


@pytest.mark.parametrize(("ready", "status"), [(True, 0), (False, 1)])
def test_health_is_that_all_models_are_ready(healthcheck: ModuleType, ready: bool, status: int) -> None:
    (port,) = choose_ports("127.0.0.1", None)
    healthcheck.ADDRESS = f"127.0.0.1:{port}"
    with serving(port, ready):
        assert healthcheck.main() == status


def test_a_model_that_is_not_ready_is_not_health(
    healthcheck: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = choose_ports("127.0.0.1", None)
    healthcheck.ADDRESS, healthcheck.REPOSITORY = f"127.0.0.1:{port}", repository
    (repository / "reranker" / "config.pbtxt").touch()
    with serving(port, ready=True, unready_model="reranker"):
        assert healthcheck.main() == 1
    assert capsys.readouterr().err == "healthcheck: model reranker is not ready\n"


def test_health_is_told_to_who_has_the_pods_own_certificate(
    healthcheck: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificates = make_certificates(tmp_path)
    for name, file in {"tls.crt": "server.pem", "tls.key": "server.key", "ca.crt": "ca.pem"}.items():
        (tmp_path / name).symlink_to(file)
    (port,) = choose_ports("127.0.0.1", None)
    healthcheck.ADDRESS = f"127.0.0.1:{port}"
    with serving(port, ready=True, certificates=certificates):
        assert healthcheck.main() == 1
        monkeypatch.setenv("RESRANK_HEALTH_TLS", str(tmp_path))
        assert healthcheck.main() == 0


def test_nobody_who_answers_is_not_healthy(healthcheck: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = choose_ports("127.0.0.1", None)
    healthcheck.ADDRESS = f"127.0.0.1:{port}"
    assert healthcheck.main() == 1
    assert f"healthcheck: 127.0.0.1:{port}: " in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for model in ("encoder", "reranker"):
        (folder / model / "1").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "build-engines.sh").write_text('echo "built in $(dirname "$0") with $*"\n')
    return folder


def build(repository: Path, tmp_path: Path, *options: str, gpu: bool = True) -> subprocess.CompletedProcess[str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    smi = programs / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nexit {0 if gpu else 9}\n")
    smi.chmod(0o755)
    return subprocess.run(
        [DOCKER / "build-engines", *options],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "RESRANK_REPOSITORY": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_repository_builds_its_own_engines(repository: Path, tmp_path: Path) -> None:
    ended = build(repository, tmp_path, "--device", "1")
    assert (ended.returncode, ended.stdout) == (0, f"built in {repository} with --device 1\n")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("manifest.json", "holds no model repository: run with -v"),
        ("build-engines.sh", "has no build-engines.sh: its engines are not built here"),
        ("gpu", "no GPU in this container: run with --gpus all"),
        ("writing", "may not write to"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_built(
    repository: Path, tmp_path: Path, missing: str, sentence: str
) -> None:
    if missing == "writing":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (repository / "encoder" / "1").chmod(0o555)
    elif missing != "gpu":
        (repository / missing).unlink()
    ended = build(repository, tmp_path, gpu=missing != "gpu")
    assert ended.returncode == 1
    assert ended.stderr.startswith("build-engines: ")
    assert sentence in ended.stderr
    assert ended.stdout == ""
