"""Tuning measures a repository's own engines, and what it writes is what ``serve`` runs."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from resrank.core.errors import StackError
from resrank.core.names import Model
from resrank.stack.local_stack import LocalStack
from resrank.stack.tuning.choice import Setting
from resrank.stack.tuning.settings import ModelSettings, read_settings, write_settings
from resrank.stack.tuning.trials import Trials
from resrank.stack.tuning.tune import BUDGETS_S, tune
from support.triton_requests import rerank_inputs, unit_vectors

from .conftest import Exported

QUERY = "which river"


@pytest.fixture
def made(exported: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    monkeypatch.setattr("resrank.stack.tuning.trials.SECONDS", 0.05)
    return exported("query_residual-linear-openvino")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "resrank.stack.tuning.settings.settings_file", lambda repository, machine: tmp_path / "tuned" / "settings.json"
    )


def test_engines_are_measured_side_by_side(made: Exported) -> None:
    with Trials(made.repository, Model.RERANKER) as trials:
        one, two = trials.measure(Setting(1, 1, 4)), trials.measure(Setting(2, 1, 1))
    assert one.rows_per_s > 0
    assert two.rows_per_s > 0
    assert one.lone_ms == two.lone_ms > 0  # one thread both times


def test_an_engine_that_cannot_be_made_is_an_error(made: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StackError, match="the reranker with -3 threads failed: "):
        Trials(made.repository, Model.RERANKER).measure(Setting(1, -3, 1))


@pytest.mark.usefixtures("own_cache")
def test_the_stack_serves_what_was_tuned(made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resrank.stack.tuning.tune.BUDGETS_S", dict.fromkeys(BUDGETS_S, 0.0))  # the defaults alone
    steps: list[str] = []
    choices, settings, file = tune(made.repository, steps.append)
    assert file.is_file()
    assert read_settings(made.repository) == settings
    assert set(choices) == set(settings.models) == {Model.ENCODER, Model.RERANKER}
    assert len(steps) == 2
    settings, _ = write_settings(
        made.repository,
        {**settings.models, Model.RERANKER: ModelSettings(engines=2, threads=1, rows=2, row_ms=100.0)},
    )
    candidates = unit_vectors(4, made.spec.encoder.embedding_dim)
    with (
        LocalStack(made.repository, tmp_path / "index", tuned=settings) as stack,
        triton_grpc.InferenceServerClient(stack.triton.grpc_address) as client,
    ):
        served = Path(stack.triton.repository)
        config = client.get_model_config("reranker").config
        assert config.parameters["engines"].string_value == "2"
        assert config.parameters["max_queue_size"].string_value == "10"
        scores = client.infer("rerank", rerank_inputs(QUERY, candidates)).as_numpy("SCORES")[0]
    np.testing.assert_allclose(scores, made.reference.rerank(QUERY, candidates), atol=1e-3)
    assert served != made.repository
    assert not served.exists()


@pytest.mark.usefixtures("own_cache")
def test_a_stack_that_cannot_be_made_leaves_no_folder(
    made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ModelSettings(engines=1, threads=1, rows=2, row_ms=100.0)
    settings, _ = write_settings(made.repository, dict.fromkeys((Model.ENCODER, Model.RERANKER), chosen))
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StackError, match="in use"):
            LocalStack(made.repository, tmp_path / "index", triton_port=taken.getsockname()[1], tuned=settings)
    assert list(folders.iterdir()) == []
