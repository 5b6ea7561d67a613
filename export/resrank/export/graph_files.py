"""An exported graph as files: ``model.onnx`` and the external data beside it."""

from __future__ import annotations

from pathlib import Path

from resrank.core.checkpoint import file_sha256


def graph_files(onnx: Path) -> dict[str, Path]:
    """A graph's files by the names that they refer to each other by.

    Args:
        onnx: ``model.onnx``, alone with its data in its folder.
    """
    return {file.name: file for file in sorted(onnx.parent.iterdir()) if file.is_file()}


def graph_digests(onnx: Path) -> dict[str, str]:
    """File name to sha256; arguments as for :func:`graph_files`."""
    return {name: file_sha256(file) for name, file in graph_files(onnx).items()}
