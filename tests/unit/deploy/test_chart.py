"""The Helm chart, rendered by Helm's own library and held to Kubernetes' schemas. No cluster was asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "resrank"
NEEDED = ("helm_python", "kubernetes_validate")

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, NEEDED)), reason="no renderer or no schemas: pip install 'resrank[deploy]' has both"
)

LEAST: dict[str, Any] = {"repository": {"existingClaim": "models"}, "gateway": {"insecure": True}}
ALL: dict[str, Any] = {
    "repository": {"existingClaim": "models", "subPath": "resrank/1"},
    "index": {"mode": "copy", "existingClaim": "index"},
    "tls": {"secretName": "resrank-tls"},
    "gateway": {"keys": {"secretName": "resrank-keys", "metricsSecretName": "resrank-metrics"}},
    "grpc": {"expose": True},
    "autoscaling": {"kind": "hpa"},
    "metrics": {"podMonitor": True},
    "tracing": {"endpoint": "http://collector:4318"},
}
FOREIGN = {"ScaledObject", "PodMonitor"}
"""Of KEDA and of the Prometheus operator, which Kubernetes has no schemas of."""


def run(values: dict[str, Any], *files: str) -> subprocess.CompletedProcess[str]:
    options = [word for file in files for word in ("--values", str(CHART / file))]
    # In a process of its own: the library brings Go's runtime along.
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "render_chart.py", *options, "--set", json.dumps(values)],
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(values: dict[str, Any], *files: str) -> dict[str, dict[str, Any]]:
    """Kind (and name, of a second one) to the manifest, each valid."""
    import kubernetes_validate

    done = run(values, *files)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = {}
    for manifest in filter(None, yaml.safe_load_all(done.stdout)):
        kind = manifest["kind"]
        if kind not in FOREIGN:
            kubernetes_validate.validate(manifest, "1.31", strict=True)
        found[kind if kind not in found else manifest["metadata"]["name"]] = manifest
    return found


def hook(container: dict[str, Any], program: str) -> list[str]:
    """What the program that runs before a container's end is told."""
    first, *told = container["lifecycle"]["preStop"]["exec"]["command"]
    assert first == program
    return list(told)


def containers(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = manifest["spec"]["template"]["spec"]
    return {container["name"]: container for container in [*spec["initContainers"], *spec["containers"]]}


@pytest.mark.parametrize("files", [(), ("values-gpu.yaml",)])
@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_every_manifest_is_one_that_kubernetes_takes(values: dict[str, Any], files: tuple[str, ...]) -> None:
    found = rendered(values, *files)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= set(found)
    spec = found["Deployment"]["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    for container in containers(found["Deployment"]).values():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in spec["volumes"]}
    gpus = containers(found["Deployment"])["triton"]["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (1 if files else None)


def test_full_is_told_from_dead_and_a_stop_drains() -> None:
    found = rendered(LEAST)["Deployment"]
    parts = containers(found)
    gateway, triton, sidecar = parts["gateway"], parts["triton"], parts["retrieval"]
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/v1/health/live"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/v1/health/ready"
    for container in (triton, sidecar):
        assert container["livenessProbe"]["exec"] == {"command": ["healthcheck"]}
        assert container["restartPolicy"] == "Always", "ended after the gateway, in the opposite order of their start"
    # All hooks run at once: Triton's may not end before the gateway's sleep is over and the gateway has drained.
    leaves = int(hook(gateway, "sleep")[0])
    longest, least = map(int, hook(triton, "drain"))
    assert least == leaves + 20
    assert longest >= least + 25
    ends = 20 + 10  # Triton's --exit-timeout-secs, the sidecar's drain
    assert found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= longest + ends
    alone = {**LEAST, "gateway": {"enabled": False}, "grpc": {"expose": True, "insecure": True}}
    assert hook(containers(rendered(alone)["Deployment"])["triton"], "drain") == ["25"], "nobody beside it ends later"


def test_a_copy_leaves_nothing_of_what_a_pod_has_served_before(tmp_path: Path) -> None:
    values = {**LEAST, "index": {"mode": "copy", "existingClaim": "index"}}
    source, index = tmp_path / "source", tmp_path / "index"
    for folder, files in ((source, ("store.sqlite3", "lock")), (index, ("store.sqlite3", "store.sqlite3-wal", ".old"))):
        folder.mkdir()
        for name in files:
            (folder / name).write_text(folder.name)
    (index / "snapshots").mkdir()
    shell, option, script = containers(rendered(values)["Deployment"])["index"]["command"]
    script = script.replace("/source", str(source)).replace("/index", str(index))
    for _ in range(2):
        subprocess.run([shell, option, script], check=True)
        assert {path.name: path.read_text() for path in index.iterdir()} == {"store.sqlite3": "source"}


LARGE = 33_554_432


def test_numbers_are_written_as_they_were_given() -> None:
    settings = {"MAX_BODY_BYTES": LARGE, "TIMEOUT_S": 2.5, "INSECURE": True, "MODELS": "1e3"}
    values = {
        **LEAST,
        "replicas": LARGE,
        "gateway": {"insecure": True, "settings": settings},
        "retrieval": {"settings": settings},
        "triton": {"startupSeconds": LARGE},
        "tracing": {"endpoint": "http://collector:4318", "sampleOneOf": LARGE},
        "disruption": {"maxUnavailable": LARGE},
    }
    scaled: dict[str, Any] = {**LEAST, "autoscaling": {"kind": "keda", "minReplicas": LARGE, "maxReplicas": LARGE}}
    found = rendered(values)
    parts = containers(found["Deployment"])
    for name in ("gateway", "retrieval"):
        environment = {entry["name"]: entry.get("value") for entry in parts[name]["env"]}
        written = {setting: environment[f"RESRANK_{name.upper()}_{setting}"] for setting in settings}
        assert written == {**settings, "MAX_BODY_BYTES": str(LARGE), "TIMEOUT_S": "2.5", "INSECURE": "true"}
    assert f"--trace-config=rate={LARGE}" in parts["triton"]["args"]
    assert f"--backend-config=python,stub-timeout-seconds={LARGE}" in parts["triton"]["args"]
    for kind in ("hpa", "keda"):
        scaled["autoscaling"]["kind"] = kind
        assert "e+0" not in run(scaled).stdout
    assert "e+0" not in run(values).stdout


def test_triton_is_started_as_the_image_starts_it() -> None:
    dockerfile = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "docker" / "Dockerfile").read_text())
    found = re.search(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert found is not None
    image = json.loads(found[1])
    args = containers(rendered(LEAST)["Deployment"])["triton"]["args"]
    assert [arg.partition("=")[0] for arg in args] == [arg.partition("=")[0] for arg in image]
    assert "--grpc-address=127.0.0.1" in args, "reached by the gateway alone"


def test_keys_and_certificates_come_from_secrets_alone() -> None:
    found = rendered(ALL)
    parts = containers(found["Deployment"])
    environment = {entry["name"]: entry.get("value") for entry in parts["gateway"]["env"]}
    assert environment["RESRANK_GATEWAY_KEYS"] == "/keys/keys"
    assert environment["RESRANK_GATEWAY_TLS_CERTIFICATE"] == "/tls/tls.crt"
    assert environment["RESRANK_GATEWAY_UPSTREAM_TLS_CA"] == "/tls/ca.crt"
    assert "RESRANK_GATEWAY_INSECURE" not in environment
    assert "--grpc-use-ssl-mutual=true" in parts["triton"]["args"]
    sidecar = {entry["name"]: entry.get("value") for entry in parts["retrieval"]["env"]}
    assert sidecar["RESRANK_RETRIEVAL_TLS_CLIENT_CA"] == "/tls/ca.crt", "the gateway speaks to both in one way"
    volumes = {volume["name"]: volume for volume in found["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "resrank-keys"
    assert volumes["tls"]["secret"]["secretName"] == "resrank-tls"


def test_it_scales_on_how_full_the_queues_are() -> None:
    (metric,) = rendered(ALL)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "resrank_queue_filled"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "300m"}
    assert "replicas" not in rendered(ALL)["Deployment"]["spec"], "the autoscaler's"
    scaled = rendered({**LEAST, "autoscaling": {"kind": "keda"}})["ScaledObject"]["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["threshold"] == "0.3"
    assert trigger["metadata"]["query"].count("resrank_waiting_requests") == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"gateway": {"insecure": True}}, "repository.existingClaim"),
        ({"repository": {"existingClaim": "m"}}, "give tls.secretName and gateway.keys.secretName"),
        ({**LEAST, "grpc": {"expose": True}}, "grpc.expose: give tls.secretName"),
        ({**LEAST, "index": {"mode": "copy"}}, "index.mode copy needs a claim"),
        ({**LEAST, "index": {"mode": "own", "existingClaim": "i"}}, "replicas must be 1"),
        ({**LEAST, "gateway": {"enabled": False}}, "nothing of this could be called"),
        ({**ALL, "gateway": {"keys": {"secretName": "k"}}}, "gateway.keys.metricsSecretName"),
        ({**LEAST, "replica": 3}, "replica"),
        ({**LEAST, "autoscaling": {"kind": "vpa"}}, "autoscaling"),
        ({**LEAST, "autoscaling": {"kind": "hpa", "maxReplicas": 1}}, "maxReplicas: below minReplicas"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], sentence: str) -> None:
    done = run(values)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stdout == ""
