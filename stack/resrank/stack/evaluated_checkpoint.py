"""The checkpoint that ``resrank eval`` measures: an adapter is merged for it, and a Triton started where none runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resrank.core.addresses import check_target
from resrank.core.errors import InvalidInputError
from resrank.core.progress import Notify
from resrank.evaluation.backends import Backend, stack_backend, torch_backend
from resrank.evaluation.names import Through


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """Which checkpoint, and where it runs.

    Attributes:
        through: Where it runs.
        folder: A full or an adapter checkpoint; needed for torch, and behind the stack for rows with a part
            left out.
        repository: Model repository to start a Triton on, where no address is given.
        triton: ``host:port`` of a running Triton.
    """

    through: Through
    folder: Path | None
    repository: Path | None
    triton: str | None

    def __post_init__(self) -> None:
        if self.triton is not None:
            check_target("triton", self.triton)
        if self.through is Through.TORCH:
            if self.folder is None:
                raise InvalidInputError(
                    "checkpoint", "needed to evaluate in torch; for the stack, give a repository or a running Triton"
                )
        elif self.repository is None and self.triton is None:
            raise InvalidInputError(
                "repository", "needed to evaluate through the stack, or else the address of a running Triton"
            )

    @contextmanager
    def open(self, scratch: Path, notify: Notify) -> Iterator[Backend]:
        """Makes it ready to be evaluated.

        Args:
            scratch: Folder for an adapter checkpoint's merged weights.
            notify: Called with one line before each step that takes seconds.

        Raises:
            ResRankError: It is not valid, or its server cannot be started or reached.
        """
        # Imported here: merging needs torch, which evaluating a deployed checkpoint does not.
        from resrank.export.adapters import full_checkpoint

        if self.through is Through.TORCH:
            assert self.folder is not None
            yield torch_backend(full_checkpoint(self.folder, scratch, notify), notify)
            return
        with self._triton(notify) as address:
            folder = None if self.folder is None else full_checkpoint(self.folder, scratch, notify)
            with stack_backend(address, folder) as backend:
                yield backend

    @contextmanager
    def _triton(self, notify: Notify) -> Iterator[str]:
        if self.triton is not None:
            yield self.triton
            return
        from resrank.stack.triton_process import TritonProcess

        assert self.repository is not None
        notify(f"starting Triton on {self.repository}")
        with TritonProcess(self.repository) as process:
            yield process.grpc_address
