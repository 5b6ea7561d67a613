"""Checkpoint to ONNX to engines to a deployable Triton model repository."""
