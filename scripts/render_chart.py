"""Renders the Helm chart to standard output, without a helm binary and without a cluster.

Example: ``python scripts/render_chart.py --values deploy/helm/resrank/values-gpu.yaml --set '{"repository": …}'``
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import helm_python

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "resrank"


def main(arguments: list[str] | None = None) -> int:
    """Renders once.

    Args:
        arguments: Of the command line; those of this process when None.

    Returns:
        1 with the chart's own sentence where the values contradict each other.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=Path, action="append", default=[], help="YAML, the later before the earlier")
    parser.add_argument("--set", default="{}", help="JSON that goes before them")
    parser.add_argument("--name", default="resrank")
    parser.add_argument("--namespace", default="default")
    given = parser.parse_args(arguments)
    values: dict[str, Any] = {}
    for file in given.values:
        _merge(values, helm_python.values_from_yaml(file.read_text()))
    _merge(values, json.loads(given.set))
    try:
        report = helm_python.lint(CHART, values, strict=True)
        errors = [message["error"] for message in report["messages"] if message["severity"] >= 2]
        with helm_python.Chart.load(CHART) as chart:
            chart.validate_schema(values)
            rendered = chart.render(values, name=given.name, namespace=given.namespace)
    except helm_python.HelmError as error:
        print(error, file=sys.stderr)
        return 1
    if errors or report["errors"]:
        print("\n".join([*errors, *report["errors"]]), file=sys.stderr)
        return 1
    for path, text in sorted(rendered.items()):
        if path.endswith(".yaml") and text.strip():
            print(f"---\n# {path}\n{text.strip()}")
    return 0


def _merge(into: dict[str, Any], over: dict[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


if __name__ == "__main__":
    sys.exit(main())
