from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resrank.core.calibration_file import calibration_of, read_calibration_file, write_calibration_file
from resrank.core.errors import CheckpointError
from support.tiny_calibration import CALIBRATION, calibration_file

DIGEST = "c" * 64


def test_it_is_read_as_it_was_written_and_is_one_checkpoints(tmp_path: Path) -> None:
    assert read_calibration_file(tmp_path) is None
    assert calibration_of(tmp_path, DIGEST) is None
    write_calibration_file(calibration_file(DIGEST), tmp_path)
    assert read_calibration_file(tmp_path) == calibration_file(DIGEST)
    assert calibration_of(tmp_path, DIGEST) == CALIBRATION
    with pytest.raises(CheckpointError, match=f"fitted to checkpoint {DIGEST}, but this one is {'d' * 64}: remove"):
        calibration_of(tmp_path, "d" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"author": "me"}, "author: Extra inputs"),
        ({"checkpoint_sha256": "short"}, "checkpoint_sha256"),
        ({"calibration": {"reranker": {"kind": "platt", "slope": -1, "intercept": 0}}}, "slope: out of range"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fields = calibration_file(DIGEST).model_dump(mode="json")
    if "calibration" in change:
        change = {"calibration": {**fields["calibration"], **change["calibration"]}}
    (tmp_path / "calibration.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_calibration_file(tmp_path)
    assert str(tmp_path / "calibration.json") in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"calibration\.json: cannot be written: No such file or directory"):
        write_calibration_file(calibration_file(DIGEST), tmp_path / "nowhere")
