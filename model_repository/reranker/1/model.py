"""``reranker`` in the Python backend: hosts the engine that its config names."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.serving.engine import open_backend
            from resrank.serving.engine_host import RerankerGraph
        except ImportError as error:
            message = f"{error}: Triton's Python needs resrank[triton], in a clone pip install '.[triton]'"
            raise ImportError(message) from error

        self._backend = open_backend(pb_utils, args, RerankerGraph())

    def execute(self, requests: list) -> list | None:
        """Answers one batch, or takes it and answers when the engine gets there."""
        return self._backend.execute(requests)

    def finalize(self) -> None:
        """Ends when all is answered."""
        self._backend.close()
