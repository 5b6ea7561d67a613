"""What a plan's own bytes say is said before any runtime is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.serving.engines.base import EngineError, EngineKind
from resrank.serving.engines.plan import find_plan, plan_file, read_plan_header, refuse_foreign_plan

RTX, PRODUCTION = EngineKind.TENSORRT_RTX, EngineKind.TENSORRT


def test_the_header_says_who_built_the_plan(plan: Path, trt: Any) -> None:
    header = read_plan_header(plan)
    assert header.flavour is RTX
    assert ".".join(map(str, header.version)) == trt.__version__
    refuse_foreign_plan(plan, RTX, trt.__version__)
    refuse_foreign_plan(plan, RTX, ".".join(trt.__version__.split(".")[:3]))  # some releases leave the build number out


def changed(plan: Path, tmp_path: Path, place: int, new: bytes) -> Path:
    content = bytearray(plan.read_bytes())
    content[place : place + len(new)] = new
    path = tmp_path / "changed.plan"
    path.write_bytes(content)
    return path


def test_a_plan_of_another_version_is_refused(plan: Path, trt: Any, tmp_path: Path) -> None:
    older = changed(plan, tmp_path, 24, bytes([1, 6, 2, 9]))
    with pytest.raises(EngineError, match=rf"built by tensorrt_rtx 1\.6\.2\.9, but {trt.__version__} is installed: .*"):
        refuse_foreign_plan(older, RTX, trt.__version__)


def test_a_plan_of_the_other_flavour_is_refused(plan: Path, trt: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="a plan of tensorrt_rtx, which tensorrt does not read"):
        refuse_foreign_plan(plan, PRODUCTION, "11.1.0.4")
    # The tag and the version as trtexec reads them in TensorRT's own plans.
    production = changed(plan, tmp_path, 0, b"ftrt")
    with pytest.raises(EngineError, match="a plan of tensorrt, which tensorrt_rtx does not read"):
        refuse_foreign_plan(production, RTX, trt.__version__)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (slice(0, -1), r"bytes of \d+, so it is cut short"),
        (slice(0, 20), "20 bytes are no whole"),
        (slice(0, 0), "0 bytes"),
    ],
)
def test_a_truncated_plan_is_refused(plan: Path, tmp_path: Path, keep: slice, message: str) -> None:
    cut = tmp_path / "cut.plan"
    cut.write_bytes(plan.read_bytes()[keep])
    with pytest.raises(EngineError, match=message):
        read_plan_header(cut)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(EngineError, match="not a TensorRT plan"):
        read_plan_header(tmp_path / "model.plan")
    with pytest.raises(EngineError, match="cannot be read: No such file or directory"):
        read_plan_header(tmp_path / "missing.plan")


def test_the_only_plan_is_taken_without_asking_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "model.plan").touch()
    assert find_plan(tmp_path, lambda: pytest.fail("no need to know")) == tmp_path / "model.plan"


def test_of_several_plans_the_gpus_own_is_taken(tmp_path: Path) -> None:
    for name in ("model.sm80.plan", "model.sm89.plan", "model.sm120.plan"):
        (tmp_path / name).touch()
    assert find_plan(tmp_path, lambda: (12, 0)) == tmp_path / "model.sm120.plan"
    assert plan_file((8, 0)) == "model.sm80.plan"
    with pytest.raises(
        EngineError, match=r"no model\.sm90\.plan for this GPU, but model\.sm120\.plan, .*-capability 9\.0"
    ):
        find_plan(tmp_path, lambda: (9, 0))


def test_no_plan_names_the_build_script(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no model\.plan: build the engines with build-engines\.sh"):
        find_plan(tmp_path, lambda: (8, 9))
