"""What the alerts count of a gateway's requests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from resrank.gateway.request_log import _QUIET

from .conftest import Serve

ALERTS = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yaml"
REQUESTS = "resrank_gateway_requests_total"


@pytest.mark.parametrize("alert", ["ResRankNotReranked", "ResRankGatewayFailing"])
async def test_probes_are_none_of_the_requests_that_shares_are_of(serve: Serve, alert: str) -> None:
    """A pod that is asked for little is probed more often than that, and one that is not ready says so by 503."""
    (expression,) = (
        rule["expr"]
        for group in yaml.safe_load(ALERTS.read_text())["groups"]
        for rule in group["rules"]
        if rule["alert"] == alert
    )
    async with serve() as http:
        for path in _QUIET:
            await http.get(path)
        await http.post("/rerank", json={"query": "q", "texts": ["a"]})
        page = (await http.get("/metrics")).text
    counted = set(re.findall(rf'^{REQUESTS}{{route="([^"]*)"', page, re.MULTILINE))
    assert counted == _QUIET | {"/rerank"}
    selectors = re.findall(rf"{REQUESTS}({{[^}}]*}})?", expression)
    assert selectors
    for selector in selectors:
        (left_out,) = re.findall(r'route!~"([^"]*)"', selector)
        assert {route for route in counted if not re.fullmatch(left_out, route)} == {"/rerank"}
