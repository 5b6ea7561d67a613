"""The builder of TensorRT for RTX: from an exported graph to engine plans, on any machine."""

from resrank.export.tensorrt.builder import EngineBuilder
from resrank.export.tensorrt.network import LayerSummary, NetworkSummary
from resrank.export.tensorrt.plan import BuiltPlan

__all__ = ["BuiltPlan", "EngineBuilder", "LayerSummary", "NetworkSummary"]
