"""``bulk_encoder`` in the Python backend: hosts the encoder's engine a second time, for bulk work."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.serving.engine_host import EncoderGraph, EngineStep
            from resrank.serving.python_backend import ModelInstance, PythonBackend
        except ImportError as error:
            raise ImportError(f"{error}: Triton's Python needs pip install 'resrank[triton]'") from error

        self._backend = PythonBackend(pb_utils, args)
        self._step = EngineStep.load(ModelInstance.from_args(args), EncoderGraph())

    def execute(self, requests: list) -> list:
        """Answers one batch."""
        return self._backend.execute(self._step, requests)
