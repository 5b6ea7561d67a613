"""The part of ``triton_python_backend_utils`` that makes metrics; it cannot be imported outside Triton."""

from __future__ import annotations


class PbMetrics:
    """Makes metrics and remembers their values by name."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.MetricFamily = _MetricFamilies(self.values)


class _MetricFamilies:
    COUNTER = "counter"
    GAUGE = "gauge"

    def __init__(self, values: dict[str, float]) -> None:
        self._values = values

    def __call__(self, *, name: str, description: str, kind: str) -> _MetricFamily:
        assert description
        assert kind == (self.COUNTER if name.endswith("_total") else self.GAUGE)
        return _MetricFamily(self._values, name)


class _MetricFamily:
    def __init__(self, values: dict[str, float], name: str) -> None:
        self._values = values
        self._name = name

    def Metric(self, labels: dict[str, str]) -> _Metric:
        """The figure's name, behind it the value of the label that it has beside ``model``."""
        others = [f"{{{value}}}" for label, value in labels.items() if label != "model"]
        assert "model" in labels
        return _Metric(self._values, self._name + "".join(others))


class _Metric:
    def __init__(self, values: dict[str, float], name: str) -> None:
        self._values = values
        self._name = name
        values[name] = 0

    def increment(self, by: float) -> None:
        self._values[self._name] += by

    def set(self, value: float) -> None:
        self._values[self._name] = value
