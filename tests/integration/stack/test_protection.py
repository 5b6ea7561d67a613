"""Who gets into a protected stack, and which stack is not started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from resrank.client import TlsConfig
from resrank.core.errors import InvalidInputError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.stack.local_stack import LocalStack
from resrank.stack.sidecar_process import SidecarProcess
from support.certificates import Certificates, make_certificates
from support.tiny_manifest import make_manifest, write_tiny_manifest

KEY = "0123456789abcdef-key"
Metadata = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return file


@pytest.fixture
def exported(repository: Path) -> Path:
    models = make_manifest().models
    fileless = {model: facts.model_copy(update={"onnx_sha256": {}}) for model, facts in models.items()}
    write_tiny_manifest(repository, models=fileless)
    return repository


@pytest.fixture
def stack(exported: Path, tmp_path: Path, certificates: Certificates, key_file: Path) -> Iterator[LocalStack]:
    with LocalStack(
        exported, tmp_path / "index", host="127.0.0.1", tls=certificates.served, bearer_key_file=key_file
    ) as stack:
        yield stack


def channel(address: str, tls: TlsConfig | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(
            *(None if path is None else path.read_bytes() for path in (tls.root_certificates, tls.private_key)),
            None if tls.certificate_chain is None else tls.certificate_chain.read_bytes(),
        ),
    )


def triton_answers(address: str, tls: TlsConfig | None) -> bool:
    with channel(address, tls) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5).ready)


def sidecar_answers(address: str, tls: TlsConfig | None, metadata: Metadata) -> bool:
    with channel(address, tls) as open_channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(open_channel)
        return bool(stub.Describe(pb.DescribeRequest(), timeout=5, metadata=metadata).version)


def test_only_who_has_certificate_and_key_gets_in(stack: LocalStack, certificates: Certificates) -> None:
    good: Metadata = (("authorization", f"Bearer {KEY}"),)
    assert triton_answers(stack.triton.grpc_address, certificates.mutual)
    assert sidecar_answers(stack.sidecar.address, certificates.mutual, good)
    for tls in (
        None,
        TlsConfig(certificates.authority),
        certificates.of("stranger"),
        certificates.of("expired"),
        TlsConfig(
            certificates.folder / "other.pem", *(certificates.folder / f"client.{end}" for end in ("pem", "key"))
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            triton_answers(stack.triton.grpc_address, tls)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as refused:
            sidecar_answers(stack.sidecar.address, tls, good)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    for metadata in (
        (),
        (("authorization", "Bearer 0123456789abcdef-kez"),),
        (("authorization", KEY),),
        (("authorization", "Bearer "),),
        (*good, ("authorization", "Bearer 0123456789abcdef-kez")),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            sidecar_answers(stack.sidecar.address, certificates.mutual, metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_guards_every_method_but_health_and_not_the_socket(tmp_path: Path, key_file: Path) -> None:
    with SidecarProcess(tmp_path / "index", socket=tmp_path / "s", bearer_key_file=key_file) as sidecar:
        with grpc.insecure_channel(sidecar.address) as open_channel:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(open_channel)
            reflection = reflection_pb2_grpc.ServerReflectionStub(open_channel)
            for call in (
                lambda: stub.Search(pb.SearchRequest()),
                lambda: stub.Upsert(iter([pb.UpsertRequest()])),
                lambda: stub.Delete(pb.DeleteRequest(ids=["a"])),
                lambda: stub.Get(pb.GetRequest(ids=["a"])),
                lambda: stub.Describe(pb.DescribeRequest()),
                lambda: list(
                    reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
                ),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    call()
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            health = health_pb2_grpc.HealthStub(open_channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        with grpc.insecure_channel(f"unix:{tmp_path / 's'}") as open_channel:
            described = retrieval_pb2_grpc.RetrievalServiceStub(open_channel).Describe(pb.DescribeRequest())
            assert described.record_count == 0


def test_a_server_with_an_expired_certificate_is_not_trusted(tmp_path: Path, certificates: Certificates) -> None:
    with (
        SidecarProcess(tmp_path / "index", socket=tmp_path / "s", tls=certificates.served_as("late")) as sidecar,
        pytest.raises(grpc.RpcError) as refused,
    ):
        sidecar_answers(sidecar.address, certificates.mutual, ())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_stack_that_anybody_could_call_is_not_started(
    exported: Path, tmp_path: Path, certificates: Certificates
) -> None:
    one_sided = certificates.served.__class__(certificates.served.certificate, certificates.served.key)
    for tls in (None, one_sided):
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
            with pytest.raises(InvalidInputError, match=f"host: {host} is beyond loopback"):
                LocalStack(exported, tmp_path / "index", host=host, tls=tls)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "host: 0.0.0.0 is beyond loopback"),
        (["--host", "0.0.0.0", "--bearer-key-file", "key"], "host: 0.0.0.0 is beyond loopback"),
        (["--tls-certificate", "server.pem"], "tls_certificate: a certificate and its key are needed"),
        (["--tls-certificate", "server.pem", "--tls-key", "client.key"], "is not the unencrypted key of"),
        (["--tls-certificate", "server.pem", "--tls-key", "none.key"], "cannot be read: No such file"),
        (["--tls-certificate", "san", "--tls-key", "server.key"], "is not a PEM file"),
        (["--bearer-key-file", "short"], "the key in short is too short, in bytes (limit 16, got 5)"),
    ],
)
def test_a_sidecar_that_is_not_set_up_right_says_so(
    tmp_path: Path, certificates: Certificates, options: list[str], sentence: str
) -> None:
    (certificates.folder / "key").write_text(KEY)
    (certificates.folder / "short").write_text("12345")
    ended = subprocess.run(
        [sys.executable, "-m", "resrank.retrieval", "--index", str(tmp_path / "index"), "--port", "0", *options],
        cwd=certificates.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert not (tmp_path / "index").exists()


def test_insecure_is_taken_at_its_word(tmp_path: Path) -> None:
    with SidecarProcess(tmp_path / "index", host="0.0.0.0", socket=tmp_path / "s", insecure=True) as sidecar:
        assert sidecar_answers(f"127.0.0.1:{sidecar.port}", None, ())
