"""A plan that TensorRT-RTX builds in seconds, with or without a GPU."""

from __future__ import annotations

from typing import Any


def build_plan(trt: Any, capability: Any) -> bytes:
    """Y = X + X for FP32 [B, L], with a narrow profile and a wide one."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network()
    x = network.add_input("X", trt.float32, (-1, -1))
    total = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    total.name = "Y"
    network.mark_output(total)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    for largest in ((2, 8), (16, 64)):
        profile = builder.create_optimization_profile()
        profile.set_shape("X", (1, 1), (1, largest[1]), largest)
        config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))
