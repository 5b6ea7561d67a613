"""Envoy's configuration, as far as it can be held to something without an Envoy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from resrank.core.sidecar.v1.retrieval_pb2 import DESCRIPTOR

CONFIG = Path(__file__).parents[3] / "deploy" / "envoy" / "envoy.yaml"
SERVICE = DESCRIPTOR.services_by_name["RetrievalService"]
WRITES = {"Upsert", "Delete", "CreateCollection", "DropCollection", "SetAlias", "DeleteAlias"}
WHOLE = {"Backup"}
"""Of one sidecar's folder, whichever that would be."""


def routed() -> re.Pattern[str]:
    """The sidecars' methods that pass."""
    (listener,) = yaml.safe_load(CONFIG.read_text())["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    (manager,) = chain["filters"]
    (host,) = manager["typed_config"]["route_config"]["virtual_hosts"]
    matches: list[dict[str, Any]] = [route["match"] for route in host["routes"]]
    (pattern,) = [match["safe_regex"]["regex"] for match in matches if "safe_regex" in match]
    return re.compile(pattern)


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_the_sidecars_reads_pass_and_what_is_written_does_not(method: str) -> None:
    passes = routed().fullmatch(f"/{SERVICE.full_name}/{method}") is not None
    assert passes == (method not in WRITES | WHOLE)
