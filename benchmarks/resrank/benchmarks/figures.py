"""How figures are written, the same in the terminal and in documents."""

from __future__ import annotations


def figure(value: float | str | None) -> str:
    """Three digits of a measured figure, all of a count or a text, a dash for what could not be measured."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
