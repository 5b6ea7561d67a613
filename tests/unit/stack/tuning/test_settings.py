"""Tuned settings belong to one repository on one machine, and change nothing that was exported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.errors import StackError
from resrank.core.names import Model
from resrank.export.manifest import Runtime
from resrank.export.model_configs import templates_folder
from resrank.stack.tuning import settings as tuned
from resrank.stack.tuning.choice import Setting
from resrank.stack.tuning.repository import derive, read_config
from resrank.stack.tuning.settings import MachineFacts, ModelSettings, read_settings, settings_file, write_settings
from resrank.stack.tuning.tune import settings_of, tune
from support.tiny_manifest import write_tiny_manifest

CHOSEN = {
    Model.ENCODER: ModelSettings(engines=1, threads=4, rows=32, row_ms=2.5),
    Model.RERANKER: ModelSettings(engines=4, threads=1, rows=4, row_ms=80.0),
}
HERE = MachineFacts(cpu="here", cores=4, engines={"openvino": "2026.4.1"})


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The templates with one file of weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "repository"
    write_tiny_manifest(out)
    for model in Model:
        (out / model / "1").mkdir(parents=True)
        config = text_format.Parse((templates_folder() / model / "config.pbtxt").read_text(), ModelConfig())
        if model in (Model.ENCODER, Model.RERANKER):
            config.parameters["threads"].string_value = "0"
        (out / model / "config.pbtxt").write_text(text_format.MessageToString(config))
    (out / "reranker" / "1" / "model.onnx").write_bytes(b"weights")
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_is_read(repository: Path) -> None:
    assert read_settings(repository) is None
    written, file = write_settings(repository, CHOSEN)
    assert read_settings(repository) == written
    assert written.models == CHOSEN
    assert file.parent == repository.parent / "cache" / "resrank" / "tuned"
    assert os.listdir(file.parent) == [file.name]


def test_another_export_is_another_repository(repository: Path) -> None:
    write_settings(repository, CHOSEN)
    write_tiny_manifest(repository, gpus=(), versions={"resrank": "9"})
    assert read_settings(repository) is None


@pytest.mark.parametrize("change", [{"cpu": "there"}, {"cores": 2}, {"engines": {"openvino": "2027.1"}}])
def test_another_machine_has_settings_of_its_own(repository: Path, change: dict[str, object]) -> None:
    assert settings_file(repository, HERE) != settings_file(repository, HERE.model_copy(update=change))


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1}', '{"schema_version": 3}'])
def test_a_damaged_file_is_named_with_its_remedy(repository: Path, text: str) -> None:
    _, file = write_settings(repository, CHOSEN)
    file.write_text(text)
    with pytest.raises(StackError, match=f"{file} holds no tuned settings .*: remove it, or run resrank serve --tune"):
        read_settings(repository)


def test_a_folder_that_is_no_repository_has_none(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "nothing") is None


def test_a_file_that_cannot_be_written_says_so(repository: Path) -> None:
    (repository.parent / "cache").write_text("in the way")
    with pytest.raises(StackError, match=r"could not be written: .*; set XDG_CACHE_HOME to a writable folder"):
        write_settings(repository, CHOSEN)


def test_the_derived_repository_has_the_settings_and_the_exported_files(repository: Path, tmp_path: Path) -> None:
    before = content(repository)
    settings, _ = write_settings(repository, CHOSEN)
    derived = tmp_path / "derived"
    derived.mkdir()
    derive(repository, settings, derived)
    assert content(repository) == before
    changed = {path for path, data in content(derived).items() if before[path] != data}
    assert changed == {"encoder/config.pbtxt", "reranker/config.pbtxt", "rerank_text/config.pbtxt"}
    assert {path.name for path in derived.iterdir()} == {path.name for path in repository.iterdir()}
    assert (derived / "reranker" / "1" / "model.onnx").read_bytes() == b"weights"
    config = read_config(derived, Model.RERANKER)
    assert config.instance_group[0].count == 1
    chosen = ("engines", "threads", "batch_rows")
    assert [config.parameters[name].string_value for name in chosen] == ["4", "1", "4"]
    assert config.parameters["max_queue_size"].string_value == "12"  # one second
    assert read_config(derived, Model.RERANK_TEXT).parameters["max_queue_size"].string_value == "8"


def test_the_default_is_what_the_config_says(repository: Path) -> None:
    default, others = settings_of(repository, Model.RERANKER, 2)
    assert default == Setting(1, 2, 4)
    assert default not in others
    assert {(setting.engines, setting.threads) for setting in others} == {(1, 2), (2, 1)}
    assert settings_of(repository, Model.ENCODER, 6)[0] == Setting(1, 6, 64)
    assert all(setting.engines * setting.threads <= 6 for setting in settings_of(repository, Model.ENCODER, 6)[1])


def test_a_repository_for_gpus_is_not_tuned(repository: Path) -> None:
    write_tiny_manifest(repository, runtime=Runtime.TENSORRT)
    with pytest.raises(StackError, match="exported for runtime tensorrt, and --tune measures CPU engines"):
        tune(repository)


def test_the_machine_is_this_one() -> None:
    machine = MachineFacts.of(tuned.describe_machine())
    assert machine.cores == len(os.sched_getaffinity(0))
    assert "openvino" in machine.engines
