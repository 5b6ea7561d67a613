"""What TensorRT calls back while it works: its log, its progress and the plan that it writes.

The base classes belong to whichever flavour is installed, so these classes are made when it is known. TensorRT's
bindings print and drop what a callback raises. Ctrl-C arrives in callbacks, since the build itself runs no Python: it
is kept, the build is stopped, and :meth:`Interruption.reraise` raises it after the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from resrank.core.progress import Notify

_CUDA_NOISE = "::catchCudaError::"
"""On a machine without a driver every error is followed by one about the driver, which explains nothing."""

_API_ERROR = re.compile(
    r"(?:\S+: )?Error Code \d+: [\w ]+ \((?P<what>.*?)\.? *(?:In \w+ at /\S+)?\)",
    re.DOTALL,
)


@dataclass
class Interruption:
    """What a callback could not let through TensorRT.

    Attributes:
        error: For instance a KeyboardInterrupt.
    """

    error: BaseException | None = None

    def reraise(self) -> None:
        """Raises what was kept, once TensorRT has returned."""
        error, self.error = self.error, None
        if error is not None:
            raise error


@dataclass
class ErrorLines:
    """TensorRT's own words about failures.

    Attributes:
        lines: As logged, oldest first.
    """

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Keeps a line, unless it is only about the missing driver."""
        if not line.startswith("[") or _CUDA_NOISE not in line.partition("]")[0]:
            self.lines.append(line)

    def mention(self, text: str) -> bool:
        """Whether a line has this text in it."""
        return any(text in line for line in self.lines)

    def first(self) -> str:
        """The first failure on one line; later ones follow from it."""
        return one_line(self.lines[0]) if self.lines else "it gave no reason"


def one_line(message: str) -> str:
    """What one of TensorRT's messages says, without its function names, source positions and talk of the driver."""
    said = " ".join(line for line in message.splitlines() if _CUDA_NOISE not in line)
    match = _API_ERROR.fullmatch(said.strip())
    return " ".join((match["what"] if match else said).split())


def make_logger(trt: Any, errors: ErrorLines, interruption: Interruption) -> Any:
    """A logger that keeps errors and is silent else.

    Args:
        trt: The flavour's module.
        errors: Where they go.
        interruption: Where an exception during logging goes.

    Returns:
        A ``trt.ILogger``.
    """
    severities = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            with _kept(interruption):
                if severity in severities:
                    errors.add(message)

    return Logger()


def make_progress_monitor(trt: Any, notify: Notify, interruption: Interruption) -> Any:
    """Reports the phases of a build, and stops it when a callback was interrupted.

    Args:
        trt: The flavour's module.
        notify: Called with the name of each phase right below the whole build.
        interruption: Where an exception in a callback goes.

    Returns:
        A ``trt.IProgressMonitor``.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._whole: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with _kept(interruption):
                if parent_phase is None:
                    self._whole = phase_name
                elif parent_phase == self._whole:
                    notify(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            """Nothing is reported at a phase's end."""

        def step_complete(self, phase_name: str, step: int) -> bool:
            return interruption.error is None

    return Monitor()


def make_stream_writer(trt: Any, sink: Callable[[bytes], None], interruption: Interruption) -> Any:
    """Takes a plan in pieces (of 64 MiB), so that it is never in memory as a whole.

    Args:
        trt: The flavour's module.
        sink: Called with each piece in order.
        interruption: Where an exception in ``sink`` goes. TensorRT takes no notice of a failed write: whoever builds
            must look here before trusting the file.

    Returns:
        A ``trt.IStreamWriter``.
    """

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            with _kept(interruption):
                if interruption.error is None:
                    sink(data)
            return 0 if interruption.error else len(data)

    return Writer()


class _kept:  # noqa: N801  # a context manager, used like a function
    """Keeps what its block raises instead of letting it out."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None and self._interruption.error is None:
            self._interruption.error = error
        return True
