"""TensorRT builders: an exported graph to engine plans, by the production library or by TensorRT-RTX."""

from resrank.export.tensorrt.builder import EngineBuilder, load_builder
from resrank.export.tensorrt.network import LayerSummary, NetworkSummary
from resrank.export.tensorrt.plan import BuiltPlan

__all__ = ["BuiltPlan", "EngineBuilder", "LayerSummary", "NetworkSummary", "load_builder"]
