"""The part of ``triton_python_backend_utils`` that makes metrics; it cannot be imported outside Triton."""

from __future__ import annotations


class PbMetrics:
    """Makes metrics and remembers their values by name; while it is ``broken`` they cannot be changed."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.logged: list[str] = []
        self.broken = False
        self.Logger = self
        self.MetricFamily = _MetricFamilies(self)

    def log_error(self, text: str) -> None:
        self.logged.append(text)


class _MetricFamilies:
    COUNTER = "counter"
    GAUGE = "gauge"

    def __init__(self, pb: PbMetrics) -> None:
        self._pb = pb

    def __call__(self, *, name: str, description: str, kind: str) -> _MetricFamily:
        assert description
        assert kind == (self.COUNTER if name.endswith("_total") else self.GAUGE)
        return _MetricFamily(self._pb, name)


class _MetricFamily:
    def __init__(self, pb: PbMetrics, name: str) -> None:
        self._pb = pb
        self._name = name

    def Metric(self, labels: dict[str, str]) -> _Metric:
        """The figure's name, behind it the value of the label that it has beside ``model``."""
        others = [f"{{{value}}}" for label, value in labels.items() if label != "model"]
        assert "model" in labels
        return _Metric(self._pb, self._name + "".join(others))


class _Metric:
    def __init__(self, pb: PbMetrics, name: str) -> None:
        self._pb = pb
        self._name = name
        pb.values[name] = 0

    def increment(self, by: float) -> None:
        if self._pb.broken:
            raise RuntimeError("broken")
        self._pb.values[self._name] += by

    def set(self, value: float) -> None:
        self._pb.values[self._name] = value
