"""``passage_tokenizer``: a passage's text to the encoder's token ids."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.serving.python_backend import PythonBackend, config_parameters, version_folder
            from resrank.serving.tokenizer import TokenizationStep
        except ImportError as error:
            message = f"{error}: Triton's Python needs resrank[triton], in a clone pip install '.[triton]'"
            raise ImportError(message) from error

        self._backend = PythonBackend(pb_utils, args)
        self._step = TokenizationStep(version_folder(args), config_parameters(args), for_queries=False)

    def execute(self, requests: list) -> list:
        """Answers one batch."""
        return self._backend.execute(self._step, requests)
