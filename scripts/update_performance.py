#!/usr/bin/env python3
"""Puts the tables and plots that ``resrank bench --out FOLDER`` wrote into docs/performance.md.

    scripts/update_performance.py FOLDER

What stands between ``<!-- bench: NAME -->`` and ``<!-- /bench -->`` becomes FOLDER/NAME.md; the plots are copied to
docs/performance. Benchmarks that FOLDER has nothing of keep what they have.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"

_SECTION = re.compile(r"(<!-- bench: (?P<name>\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_IMAGE = re.compile(r"\]\((?P<file>[\w-]+\.png)\)")


def update(document: Path, folder: Path) -> list[str]:
    """Fills the sections.

    Args:
        document: Markdown with sections.
        folder: As ``resrank bench --out`` writes it.

    Returns:
        Names of the benchmarks whose sections were filled.
    """
    pictures = document.with_suffix("")
    filled = []

    def fill(section: re.Match[str]) -> str:
        source = folder / f"{section['name']}.md"
        if not source.is_file():
            return section[0]
        text = source.read_text(encoding="utf-8")
        for image in _IMAGE.finditer(text):
            pictures.mkdir(exist_ok=True)
            shutil.copy(folder / image["file"], pictures / image["file"])
        filled.append(section["name"])
        linked = _IMAGE.sub(rf"]({pictures.name}/\g<file>)", text)
        return f"{section[1]}\n{linked}\n{section[3]}"

    document.write_text(_SECTION.sub(fill, document.read_text(encoding="utf-8")), encoding="utf-8")
    return filled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put what resrank bench --out wrote into docs/performance.md.")
    parser.add_argument("folder", type=Path, help="as resrank bench --out writes it")
    given = parser.parse_args().folder
    if not given.is_dir():
        parser.error(f"argument folder: {given} is no folder")
    done = update(DOCUMENT, given)
    print(f"{DOCUMENT}: {', '.join(done) or 'nothing to fill'}")
