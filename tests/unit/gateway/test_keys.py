from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resrank.core.errors import InvalidInputError
from resrank.gateway import keys
from resrank.gateway.keys import KeyFile, add_key, read_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys"


def test_a_key_is_known_by_its_digest_which_is_all_that_the_file_holds(file: Path) -> None:
    first, second = add_key(file, "search-team"), add_key(file, "batch.job_2")
    content = file.read_text()
    assert first not in content
    assert content.splitlines()[0] == f"search-team sha256:{hashlib.sha256(first.encode()).hexdigest()}"
    assert file.stat().st_mode & 0o777 == 0o600
    known = KeyFile(file)
    assert (known.name_of(first), known.name_of(second)) == ("search-team", "batch.job_2")
    assert known.name_of(first + "x") is None
    assert known.name_of("") is None
    assert len(first) >= 43
    assert list(file.parent.iterdir()) == [file]


def test_of_keys_added_at_once_none_is_lost(file: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        names = [f"key-{number}" for number in range(40)]
        made = dict(zip(names, threads.map(lambda name: add_key(file, name), names), strict=True))
    assert {name: KeyFile(file).name_of(key) for name, key in made.items()} == {name: name for name in names}


def test_a_running_gateway_takes_new_keys_and_forgets_removed_ones(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    first = add_key(file, "one")
    known = KeyFile(file)
    second = add_key(file, "two")
    assert known.name_of(second) is None
    now += 2
    assert known.name_of(second) == "two"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("one")))
    now += 2
    assert known.name_of(first) is None
    file.write_text("half a li")
    for _ in range(3):
        now += 2
        assert known.name_of(second) == "two", "a file that is being written changes nothing"
    (told,) = caplog.records
    assert told.levelname == "ERROR"
    os.unlink(file)
    now += 2
    assert known.name_of(second) == "two"
    assert len(caplog.records) == 2
    file.write_text("  # nobody any more\n")
    now += 2
    assert known.name_of(second) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"one sha256:abc\n", "line 1: must be NAME sha256:DIGEST"),
        (b"# a remark\n\none sha256:" + b"a" * 64 + b"\none sha256:" + b"b" * 64, "line 4: one is there already"),
        (b"\xff\xfe", "must hold ASCII"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=sentence):
        read_keys(file)


def test_a_missing_file_a_bad_name_and_a_name_that_is_there_are_refused(file: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        KeyFile(file)
    add_key(file, "one")
    for name, sentence in (("one", "has a key of the name one"), ("a b", "must be 1 to 64"), ("", "must be 1 to 64")):
        with pytest.raises(InvalidInputError, match=sentence):
            add_key(file, name)
