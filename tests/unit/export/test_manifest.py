from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from resrank.core.names import Model
from resrank.export.manifest import (
    AxisRange,
    Manifest,
    ManifestError,
    Runtime,
    capability_name,
    read_manifest,
    write_manifest,
)
from resrank.serving.engines.base import EngineKind
from support.tiny_manifest import make_manifest, make_plan_facts, with_plans, write_tiny_manifest


@pytest.mark.parametrize("runtime", Runtime)
def test_what_is_written_is_read(tmp_path: Path, runtime: Runtime) -> None:
    written = write_tiny_manifest(tmp_path, runtime=runtime)
    assert read_manifest(tmp_path) == written
    fields = json.loads((tmp_path / "manifest.json").read_text())
    assert fields["schema_version"] == 4
    assert fields["runtime"] == runtime.value
    assert set(fields["models"]) == {"encoder", "reranker"}


def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_tiny_manifest(tmp_path)
    write_manifest(make_manifest(Runtime.TENSORRT), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert read_manifest(tmp_path).runtime is Runtime.TENSORRT
    assert stat.S_IMODE((tmp_path / "manifest.json").stat().st_mode) == 0o644


def test_a_folder_without_manifest_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=rf"{tmp_path} has no manifest\.json.* resrank export CHECKPOINT --out"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"checkpoint": {}}', "\xff"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(ManifestError, match=r"manifest\.json is not a manifest as export writes it .*: make one with"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("schema", [3, 5, "4", None])
def test_another_schema_says_to_export_again(tmp_path: Path, schema: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": schema, "runtime": "cpu"}))
    with pytest.raises(
        ManifestError, match=r"schema_version is .*, this version of resrank reads 4: export again .*--f"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("runtime",), "gpu", "runtime: Input should be 'cpu', 'tensorrt'"),
        (("models", "encoder", "precision"), "int4", "models.encoder.precision: "),
        (("models", "encoder", "threads"), -1, "models.encoder.threads: "),
        (("checkpoint", "sha256"), "abc", "checkpoint.sha256: "),
        (("checkpoint", "extra"), 1, "checkpoint.extra: Extra inputs are not permitted"),
        (("compute_capabilities",), ["sm89"], "compute_capabilities.0: "),
        (("models", "encoder", "engine"), "tensorrt", "encoder: engine tensorrt is not one of runtime cpu"),
    ],
)
def test_the_wrong_field_is_named(tmp_path: Path, path: tuple[str, ...], value: object, named: str) -> None:
    fields: Any = json.loads(json.dumps(write_tiny_manifest(tmp_path).model_dump(mode="json")))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ManifestError) as refused:
        read_manifest(tmp_path)
    assert named in str(refused.value)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValidationError, match="runtime torch has no compute capabilities"):
        make_manifest(Runtime.TORCH, compute_capabilities=("8.9",))
    with pytest.raises(ValidationError, match="a plan is not of engine tensorrt"):
        with_plans(make_manifest(Runtime.TENSORRT), {"8.9": make_plan_facts(EngineKind.TENSORRT_RTX)})
    with pytest.raises(ValidationError, match=r"plans for 9\.0, which compute_capabilities lacks"):
        with_plans(make_manifest(Runtime.TENSORRT, compute_capabilities=("8.0",)), {"9.0": make_plan_facts()})
    with pytest.raises(ValidationError, match="models are encoder, not encoder and reranker"):
        make_manifest(models={Model.ENCODER: make_manifest().models[Model.ENCODER]})
    with pytest.raises(ValidationError, match="min 4, opt 2, max 8 do not ascend"):
        AxisRange(min=4, opt=2, max=8)
    with pytest.raises(ValidationError, match="file"):
        make_plan_facts(file="../../etc/passwd")


def test_missing_plans_are_told() -> None:
    assert make_manifest().missing_plans(Model.ENCODER) == ()
    assert make_manifest(Runtime.TORCH).missing_plans(Model.RERANKER) == ()
    whatever_gpu = make_manifest(Runtime.TENSORRT)
    assert whatever_gpu.missing_plans(Model.ENCODER) is None
    assert with_plans(whatever_gpu, {"9.0": make_plan_facts()}).missing_plans(Model.ENCODER) == ()
    two: Manifest = make_manifest(Runtime.TENSORRT, compute_capabilities=("8.0", "8.9"))
    assert two.missing_plans(Model.RERANKER) == ("8.0", "8.9")
    assert with_plans(two, {"8.9": make_plan_facts()}).missing_plans(Model.RERANKER) == ("8.0",)


def test_capability_names() -> None:
    assert [capability_name(sm) for sm in (75, 89, 100, 120)] == ["7.5", "8.9", "10.0", "12.0"]
