"""What every part of ResRank shares: the checkpoint, the prompt layout, the scoring maths, names, limits and errors."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("resrank")
except PackageNotFoundError:  # imported from a source tree that was never installed, as inside a Triton image
    __version__ = "0.0.0+source"
