"""``rerank_text``: query and passages as texts to scores, by calls to ``embed_passage`` and ``rerank``."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.names import Parameter
            from resrank.serving.python_backend import PythonBackend, config_parameters
            from resrank.serving.text_reranking import TextRerankingStep
        except ImportError as error:
            raise ImportError(f"{error}: Triton's Python needs pip install 'resrank[triton]'") from error

        self._backend = PythonBackend(pb_utils, args)
        parameters = config_parameters(args)
        self._step = TextRerankingStep(
            self._backend.infer,
            embed_batch_size=int(parameters[Parameter.EMBED_BATCH_SIZE]),
            max_passages=int(parameters[Parameter.MAX_PASSAGES]),
        )

    async def execute(self, requests: list) -> list:
        """Answers one batch."""
        return await self._backend.execute_async(self._step, requests)
