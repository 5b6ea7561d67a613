from __future__ import annotations

import pytest

from resrank.client import HealthReport
from resrank.client.results import RetrievalHealth
from resrank.core.names import Model
from resrank.loadtest.callers import require_ready
from resrank.loadtest.errors import LoadTestError
from resrank.loadtest.scenario import Scenario

MODELS = (Model.EMBED_QUERY, Model.EMBED_PASSAGE, Model.EMBED_BULK, Model.RERANK, Model.RERANK_TEXT, Model.SEARCH)


def searching(route: str) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "searching",
            "mix": {"search": 1},
            "load": {"kind": "open", "phases": ({"name": "steady", "rate": 1, "duration_s": 1},)},
            "deadline_s": 1,
            "search": {"route": route},
        }
    )


def health(*ready: Model, passages: int | None = 3) -> HealthReport:
    """Of a Triton whose other models are not ready, and of a sidecar; without passages it does not answer."""
    retrieval = None if passages is None else RetrievalHealth("a" * 64, 4, passages)
    problems = () if passages is not None else ("the retrieval sidecar does not answer",)
    return HealthReport(True, False, {model: model in ready for model in MODELS}, "a" * 64, retrieval, problems)


@pytest.mark.parametrize(
    ("route", "needed"), [("server", (Model.SEARCH,)), ("client", (Model.EMBED_QUERY, Model.RERANK))]
)
def test_a_search_needs_the_models_of_its_route_alone(route: str, needed: tuple[Model, ...]) -> None:
    require_ready(searching(route), health(*needed))
    for model in needed:
        others = [other for other in MODELS if other is not model]
        with pytest.raises(LoadTestError, match=f"^search needs model '{model}', which is not ready$"):
            require_ready(searching(route), health(*others))


def test_by_the_servers_route_the_sidecar_need_not_be_seen_from_here() -> None:
    require_ready(searching("server"), health(*MODELS, passages=None))
    with pytest.raises(LoadTestError, match="the retrieval sidecar does not answer"):
        require_ready(searching("client"), health(*MODELS, passages=None))


@pytest.mark.parametrize("route", ["server", "client"])
def test_an_empty_index_is_refused(route: str) -> None:
    with pytest.raises(LoadTestError, match="the sidecar's is empty"):
        require_ready(searching(route), health(*MODELS, passages=0))
