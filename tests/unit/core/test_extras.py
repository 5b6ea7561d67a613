from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from resrank.core import extras
from resrank.core.extras import install_command


def installed(site: Path, origin: dict[str, object] | None) -> None:
    """What an installer leaves of this package."""
    folder = site / "resrank-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: resrank\nVersion: 0.1.0\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ({"dir_info": {"editable": True}}, ["-e", "{path}[cpu]"]),
        ({"dir_info": {}}, ["{path}[cpu]"]),
        ({"archive_info": {"hash": "sha256=0"}}, ["{path}[cpu]"]),
        (None, ["resrank[cpu]"]),
    ],
    ids=["clone in place", "clone", "wheel", "index"],
)
def test_the_command_names_where_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, object] | None, words: list[str]
) -> None:
    place = tmp_path / "my clone"  # whose blank a shell must not see
    place.mkdir()
    installed(tmp_path / "site", None if origin is None else {"url": place.as_uri(), **origin})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert shlex.split(install_command("cpu")) == ["pip", "install", *(word.format(path=place) for word in words)]


def test_an_address_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, {"url": "https://example.org/resrank.git", "vcs_info": {"vcs": "git", "commit_id": "0"}})
    monkeypatch.syspath_prepend(tmp_path)
    assert shlex.split(install_command("cpu"))[2:] == ["resrank[cpu] @ git+https://example.org/resrank.git"]


def test_an_environment_without_pip_is_uvs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert install_command("cpu").startswith("uv pip install ")
