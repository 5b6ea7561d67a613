"""A hook of mkdocs: the site's pages are the repository's own, each under its path there.

mkdocs takes pages from one folder, but the README, CONTRIBUTING and the pages beside what they describe lie elsewhere.
So the site is made of what its navigation names and of what those pages link to, in turn.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs: replaces what lies in ``docs_dir`` and keeps the theme's own files."""
    kept = [file for file in files if not (file.abs_src_path or "").startswith(config.docs_dir)]
    pages = [page for entry in config.nav or () for page in _pages(entry)]
    found: dict[Path, None] = {}
    while pages:
        path = (ROOT / pages.pop()).resolve()
        if path in found or not path.is_file() or not path.is_relative_to(ROOT):
            continue  # mkdocs itself says which link leads nowhere
        found[path] = None
        if path.suffix == ".md":
            targets = (urlsplit(link) for link in LINK.findall(path.read_text(encoding="utf-8")))
            pages += [str(path.parent / target.path) for target in targets if target.path and not target.scheme]
    made = [File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)) for path in found]
    return Files([*kept, *made])


def _pages(entry: object) -> list[str]:
    """The paths of a part of the navigation, which mkdocs reads as nested lists and mappings."""
    match entry:
        case str():
            return [entry]
        case dict():
            return [page for below in entry.values() for page in _pages(below)]
        case list():
            return [page for below in entry for page in _pages(below)]
    return []
