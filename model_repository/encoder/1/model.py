"""``encoder`` in the Python backend: hosts the engine that its config names."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.serving.engine_host import EncoderGraph
            from resrank.serving.hosting import open_host
        except ImportError as error:
            raise ImportError(f"{error}: Triton's Python needs pip install 'resrank[triton]'") from error

        self._host = open_host(pb_utils, args, EncoderGraph())

    def execute(self, requests: list) -> list | None:
        """Answers one batch, or takes it and answers when the engine gets there."""
        return self._host.execute(requests)

    def finalize(self) -> None:
        """Ends when all is answered."""
        self._host.close()
