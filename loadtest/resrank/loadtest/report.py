"""A run's report folder: one page to read, and the figures for programs."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from resrank.loadtest.kinds import OUTCOMES
from resrank.loadtest.plots import draw_distribution, draw_timeline
from resrank.loadtest.saturation import Saturation, Search
from resrank.loadtest.scenario import Scenario
from resrank.loadtest.server_metrics import engines_first
from resrank.loadtest.slo import PERCENTILES
from resrank.loadtest.summary import Summary, figures_as_json, verdicts_as_json, versions
from resrank.loadtest.timeline import timeline

HTML, JSON, SATURATION_JSON = "report.html", "summary.json", "saturation.json"
TIMELINE_CSV, SERVER_CSV = "timeline.csv", "server.csv"
TIMELINE_PNG, DISTRIBUTION_PNG = "timeline.png", "distribution.png"


def write_report(summary: Summary, folder: Path) -> None:
    """Writes the report; files of an earlier one in the folder are replaced.

    Args:
        summary: The run's figures.
        folder: Made where it is missing.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps = timeline(summary.calls, summary.result.seconds)
    images = {TIMELINE_PNG: draw_timeline(summary, steps), DISTRIBUTION_PNG: draw_distribution(summary)}
    for name, image in images.items():
        (folder / name).write_bytes(image)
    _write_csv(folder / TIMELINE_CSV, steps.rows())
    intervals = summary.result.metrics.intervals()
    server_rows = [
        {"model": model, **asdict(interval)}
        for model in engines_first(list(intervals))
        for interval in intervals[model]
    ]
    _write_csv(folder / SERVER_CSV, server_rows)
    (folder / JSON).write_text(_json(summary.as_json()), encoding="utf-8")
    (folder / HTML).write_text(_page(summary, images), encoding="utf-8")


def write_saturation(found: Saturation, search: Search, scenario: Scenario, folder: Path) -> Path:
    """Writes what a search found, every probe with its figures.

    Args:
        found: The result.
        search: What was asked for.
        scenario: Whose calls and objectives they are.
        folder: An existing folder.

    Returns:
        The JSON file.
    """
    document = {
        "rate": found.rate,
        "missed": found.missed,
        "search": search.model_dump(),
        "probes": [
            {
                "rate": probe.rate,
                "kept": probe.summary.kept,
                "slo": verdicts_as_json(probe.summary.verdicts),
                **figures_as_json(probe.summary.total),
            }
            for probe in found.probes
        ],
        "versions": versions(),
        "scenario": scenario.model_dump(mode="json"),
    }
    path = folder / SATURATION_JSON
    path.write_text(_json(document), encoding="utf-8")
    return path


def _json(document: Mapping[str, object]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _page(summary: Summary, images: Mapping[str, bytes]) -> str:
    templates = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    templates.filters["figure"] = figure
    result = summary.result
    totals = result.metrics.totals()
    return templates.get_template("report.html.j2").render(
        summary=summary,
        scenario=result.scenario,
        result=result,
        total=summary.total,
        started=datetime.fromtimestamp(result.epoch, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        percentiles=list(PERCENTILES),
        outcomes=[outcome for outcome in OUTCOMES if summary.total.outcomes[outcome] or outcome == "ok"],
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
        timeline=TIMELINE_PNG,
        distribution=DISTRIBUTION_PNG,
        totals={model: totals[model] for model in engines_first(list(totals))},
        versions=versions(),
        document=_json(result.scenario.model_dump(mode="json", exclude_defaults=True)),
    )


def figure(value: float | None) -> str:
    """A number for a reader: three digits are enough, and an em dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
